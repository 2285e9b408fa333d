"""Text that goes to others, on a standard output or in a message. What they cannot take is no reason to
fail."""

from __future__ import annotations

import contextlib
from typing import TextIO

LOG_LEVELS = ("debug", "info", "warning", "error")
"""Of messages, as users name them; the least severe first."""


def write_text(stream: TextIO | None, text: str) -> None:
    """In one write, and flushed. What the stream's encoding does not have is written as an escape. What fails
    is ignored: the stream may be closed or its reader gone, since the program is ending, or be a stand-in of
    the program's that has no flush()."""
    if stream is None:
        return
    with contextlib.suppress(Exception):
        try:
            stream.write(text)
        except UnicodeEncodeError as error:
            # Nothing of the text was written.
            stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        stream.flush()


def utf8(text: str) -> str:
    """The text as a message can hold it. What UTF-8 does not have, as in names of files that are not UTF-8,
    is an escape."""
    return text.encode(errors="backslashreplace").decode()
