"""The store's file in /dev/shm: the real SharedMemory.

The file is as long as the capacity from the start, and sparse. Whoever writes to a page of it for which the
system has no memory dies of SIGBUS, client or server. So no range is granted before `posix_fallocate` has put
pages under it; where that is refused (ENOSPC, ENOMEM) the store is full as any other. Pages are never given
back while the store lives: they are warm.

The file's name carries what the launcher chose. A file left by a process that was killed is known by its
lock, which died with its holder, and is replaced; one that is in use is an error. Only this user may open it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

from ray_mono.common.mapped_file import MappedFile

logger = logging.getLogger(__name__)


class MemoryFileError(Exception):
    """The file cannot be made; the message says why and what to change."""


class MemoryFile:
    """One file, mapped once, shared with every client on the node. Implements SharedMemory."""

    def __init__(self, path: str, capacity_bytes: int) -> None:
        """Raises MemoryFileError."""
        self.path = path
        self.capacity_bytes = capacity_bytes
        self.backed_bytes = 0
        check_room(path, capacity_bytes)
        self._fd = _open_fresh(path)
        os.ftruncate(self._fd, capacity_bytes)
        self._mapped = MappedFile(self._fd, capacity_bytes)

    def extend(self, until_bytes: int) -> bool:
        until_bytes = min(until_bytes, self.capacity_bytes)
        if until_bytes <= self.backed_bytes:
            return True
        try:
            os.posix_fallocate(self._fd, self.backed_bytes, until_bytes - self.backed_bytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            return False
        self.backed_bytes = until_bytes
        return True

    def view(self, offset: int, length: int) -> memoryview:
        return self._mapped.view[offset : offset + length]

    def prepare(self, offset: int, length: int) -> None:
        self._mapped.prepare(offset, length)

    def close(self) -> None:
        """Removes the name. Clients that still have it mapped keep the memory until they end."""
        if self._fd < 0:
            return
        _unlink_if_same(self.path, self._fd)
        self._mapped.close()
        os.close(self._fd)
        self._fd = -1


def check_room(path: str, capacity_bytes: int) -> None:
    """Refuses a capacity that the file system can never hold, and warns of one that it cannot hold now.

    Raises MemoryFileError.
    """
    folder = Path(path).parent
    try:
        status = os.statvfs(folder)
    except OSError as error:
        raise MemoryFileError(f"--store-file {path}: {folder} cannot be used: {error.strerror}") from error
    total_bytes = status.f_blocks * status.f_frsize
    free_bytes = status.f_bavail * status.f_frsize
    if capacity_bytes > total_bytes:
        raise MemoryFileError(
            f"an object store of {capacity_bytes} bytes does not fit into {folder}, which holds {total_bytes}"
            " bytes: choose a smaller --object-store-memory, or enlarge it"
            " (docker run --shm-size; mount -o remount,size=...)"
        )
    if capacity_bytes > free_bytes:
        logger.warning(
            "%s has %d bytes free, less than the store's capacity of %d: "
            "the store will be full before its time",
            folder,
            free_bytes,
            capacity_bytes,
        )


def _open_fresh(path: str) -> int:
    """A new, empty, locked file under that name."""
    flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    for _ in range(3):
        try:
            fd = os.open(path, flags | os.O_EXCL, 0o600)
        except FileExistsError:
            _remove_stale(path)
            continue
        except OSError as error:
            raise MemoryFileError(f"--store-file {path} cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Somebody took it for stale between our two calls.
            os.close(fd)
            continue
        return fd
    raise MemoryFileError(f"--store-file {path}: others keep making it at the same time")


def _remove_stale(path: str) -> None:
    """Removes a file whose maker is gone. Raises MemoryFileError where it is in use or not ours."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as error:
        raise MemoryFileError(f"--store-file {path} exists and cannot be opened: {error.strerror}") from error
    try:
        if os.fstat(fd).st_uid != os.getuid():
            raise MemoryFileError(f"--store-file {path} belongs to another user")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MemoryFileError(f"--store-file {path} is in use by another object manager") from None
        logger.warning("%s was left behind by a process that is gone: replaced", path)
        _unlink_if_same(path, fd)
    finally:
        os.close(fd)


def _unlink_if_same(path: str, fd: int) -> None:
    """Removes the name unless it stands for another file by now."""
    try:
        if os.path.samestat(os.lstat(path), os.fstat(fd)):
            os.unlink(path)
    except FileNotFoundError:
        pass
