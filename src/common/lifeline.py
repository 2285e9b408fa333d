"""Processes that end when another one does that is not their parent. They end whatever they do, and though
their own parent may have died long before: the kernel kills them.

The one holds a FIFO open for writing; the others have it open for reading, and have asked for SIGKILL as the
signal that tells of a change. There is one change: the last writer is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal

_F_SETSIG = 10
"""Linux's. `fcntl` knows it from Python 3.11 on where it was built so."""


LIFELINE_SUFFIX = ".life"
"""Behind the path of the raylet's socket: the FIFO on which its workers depend."""


class Lifeline:
    """Held by the process on whose life others depend."""

    def __init__(self, path: str) -> None:
        """path: where the FIFO is made. Raises OSError."""
        self._path = path
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.mkfifo(path, 0o600)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Whoever depends on it ends now."""
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def depend_on(path: str) -> bool:
    """This process ends when the holder of the lifeline does. False where there is none: the holder has ended
    in order, or there never was one. A holder that was killed before this call is not noticed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    return True
