"""Wakes a loop when something in a directory changes: inotify, as far as a log monitor needs it.

A wake-up only says that it is worth looking. Without inotify (its limit of instances is used up, say) the
caller's own period has to do.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os

logger = logging.getLogger(__name__)

_IN_MODIFY = 0x2
_IN_CREATE = 0x100
_READ_BYTES = 1 << 16


class DirectoryWatch:
    """A watch of one directory. It belongs to the running loop."""

    def __init__(self, directory: str) -> None:
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if (
            self._fd < 0
            or libc.inotify_add_watch(self._fd, os.fsencode(directory), _IN_MODIFY | _IN_CREATE) < 0
        ):
            logger.warning(
                "cannot watch %s (%s): looking at intervals", directory, os.strerror(ctypes.get_errno())
            )
            return
        self._loop.add_reader(self._fd, self._on_readable)

    async def wait(self, timeout_s: float) -> bool:
        """Returns when something has changed since the last wait (True), or after timeout_s."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def wake(self) -> None:
        """Ends the wait, as a change does."""
        self._changed.set()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_readable(self) -> None:
        os.read(self._fd, _READ_BYTES)
        self._changed.set()
