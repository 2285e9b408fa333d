"""Source lines that a traceback lacks because it was written where there is no source: those of a notebook's
cells, or of a prompt.

Such code has no file. IPython, and Python's own prompt, keep it in `linecache`, in their own process and not
in the workers.
"""

from __future__ import annotations

import linecache
import os
import re

_FRAME = re.compile(r'  File "(?P<file>.+)", line (?P<number>\d+), in ')
_SOURCE_INDENT = "    "


def add_source_lines(traceback_text: str) -> str:
    """`traceback_text` with the lines that this process knows. Files are not read: another machine's may have
    other content."""
    lines = traceback_text.split("\n")
    completed = []
    for line, next_line in zip(lines, [*lines[1:], ""], strict=True):
        completed.append(line)
        frame = _FRAME.match(line)
        if frame is None or next_line.startswith(_SOURCE_INDENT):
            continue
        name = frame["file"]
        if name in linecache.cache and not os.path.exists(name):
            source = linecache.getline(name, int(frame["number"])).strip()
            completed += [_SOURCE_INDENT + source] if source else []
    return "\n".join(completed)
