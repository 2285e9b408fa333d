"""What a process shows of others on its own standard output: it cannot fail because of it."""

from __future__ import annotations

import contextlib
from typing import TextIO


def write_text(stream: TextIO | None, text: str) -> None:
    """In one write, and flushed. What the stream's encoding does not have is written as an escape. A stream that is closed, or whose
    reader is gone, is ignored: the program is ending."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):
        try:
            stream.write(text)
        except UnicodeEncodeError as error:
            # Nothing of the text was written.
            stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        stream.flush()
