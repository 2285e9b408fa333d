"""What stays of the output of workers that are gone.

The latest files stay, up to a number and a size. The oldest are deleted.

    RAY_MONO_ENDED_WORKER_LOGS_MAX          files, 1,000 unless it says otherwise
    RAY_MONO_ENDED_WORKER_LOG_BYTES_MAX     bytes of all of them together, 1 GiB unless it says otherwise

A worker has two files. Those of living workers are never deleted.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

FILES_VARIABLE = "RAY_MONO_ENDED_WORKER_LOGS_MAX"
FILES_MAX = 1_000
BYTES_VARIABLE = "RAY_MONO_ENDED_WORKER_LOG_BYTES_MAX"
BYTES_MAX = 1 << 30

logger = logging.getLogger(__name__)


class Remover(Protocol):
    """Deletes files: LogDirectory."""

    def remove(self, path: Path) -> None: ...


class EndedLogs:
    """The files of ended workers in one directory, the oldest first."""

    def __init__(self, remover: Remover) -> None:
        """The limits come from the environment. One that is no number is warned of, and not used."""
        self._remover = remover
        self._files_max = _limit(FILES_VARIABLE, FILES_MAX)
        self._bytes_max = _limit(BYTES_VARIABLE, BYTES_MAX)
        self._files: deque[tuple[Path, int]] = deque()
        self._size_bytes = 0

    def add(self, paths: Iterable[Path]) -> None:
        """These have ended, the oldest first. Deletes what is too much."""
        for path in paths:
            try:
                size_bytes = path.stat().st_size
            except FileNotFoundError:
                size_bytes = 0
            self._files.append((path, size_bytes))
            self._size_bytes += size_bytes
        while len(self._files) > self._files_max or self._size_bytes > self._bytes_max:
            path, size_bytes = self._files.popleft()
            self._size_bytes -= size_bytes
            self._remover.remove(path)


def _limit(variable: str, default: int) -> int:
    value = os.environ.get(variable, "")
    if value and not value.isdecimal():
        logger.warning("%s must be a number of 0 or more, got %r: %d is used", variable, value, default)
    return int(value) if value.isdecimal() else default
