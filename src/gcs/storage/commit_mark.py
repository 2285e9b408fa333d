"""How many commits a file must hold: a number beside it, written after each commit and before its answer.

sqlite drops the end of its write-ahead log by itself where that was cut off or changed, and takes an empty
file for a new one. Neither can be told from a crash before a commit by looking at the file. So the number
stands in another file, and a file with fewer commits has lost what was acknowledged.
"""

from __future__ import annotations

import os

from ray_mono.common import private_files

SUFFIX = "-commits"
TEXT = "%020d\n"


class CommitMark:
    """The number in one file. Raises OSError where the disk does."""

    def __init__(self, path: str) -> None:
        """path: of the database; the mark's is beside it, and made where there is none."""
        self._descriptor = private_files.open_file(path + SUFFIX, os.O_RDWR | os.O_CREAT)

    def read(self) -> int:
        """0 where nothing was ever committed, or the mark did not survive a loss of power."""
        text = os.pread(self._descriptor, 64, 0)
        return int(text) if text.strip().isdigit() else 0

    def write(self, commits: int) -> None:
        os.pwrite(self._descriptor, (TEXT % commits).encode(), 0)

    def close(self) -> None:
        os.close(self._descriptor)
