"""Where files of spilled objects lie: a directory of a disk, or a storage elsewhere (external_place.py).

What is here is called by threads, and holds them up. A file in a directory counts as written when the disk
has it (fdatasync): what the disk refuses later would be lost without a word, since the memory is given to
others by then. Then it leaves the page cache, since memory is what there is too little of; pages that are
used again are also faster than fresh ones.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

# Where no descriptor is left one may come free soon.
_DESCRIPTOR_PAUSE_S = 0.1
_DESCRIPTOR_TRIES = 100


Stamp = tuple[int, int, int, int]
"""Device, number, size, and when it was last written. A number alone may be another file's soon."""


class AlteredFileError(OSError):
    """A file is not the one that was written, or not all of it. No other try helps."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(errno.EIO, what, path)


class SpillPlace(Protocol):
    """Files have numbers. All raise OSError; FileNotFoundError or AlteredFileError where what was written is
    gone for good."""

    retry_s: float
    """How long a read that fails is tried again."""

    def path(self, number: int) -> str:
        """Where clients map it; empty where they cannot."""
        ...

    def name(self, number: int) -> str:
        """For messages."""
        ...

    def check_room(self, wanted_bytes: int) -> None:
        """Raises OSError where so much may not be written."""
        ...

    def writing(self, number: int) -> AbstractContextManager[Callable[[list[memoryview]], None]]:
        """Makes a file of what the function is given. If anything fails, nothing stays."""
        ...

    def reading(
        self, number: int, offset: int, count: int
    ) -> AbstractContextManager[Callable[[memoryview, int], None]]:
        """The function reads what lies at an offset of the file; so much is wanted of it, from there on."""
        ...

    def make(self, number: int, size_bytes: int) -> None:
        """A file of this size, for a client to write."""
        ...

    def map(self, number: int, size_bytes: int) -> memoryview:
        """The bytes of a file that was made, writable."""
        ...

    def remove(self, number: int) -> None: ...

    def flush(self, number: int) -> Stamp:
        """What clients have written is on the disk then. Before, a disk of another machine may say later
        when it was written."""
        ...

    def stamp(self, number: int) -> Stamp:
        """By what a file is known that clients have written."""
        ...


class DirectoryPlace:
    """Implements SpillPlace."""

    retry_s = 0.0

    def __init__(self, directory: str, capacity_share: float, bring_back: Callable[[str], None]) -> None:
        """capacity_share: up to which the file system is filled. bring_back(directory) makes it again if
        somebody has removed it; raises OSError."""
        self._directory = directory
        self._capacity_share = capacity_share
        self._bring_back = bring_back
        self._making = threading.Lock()

    def path(self, number: int) -> str:
        return os.path.join(self._directory, str(number))

    def name(self, number: int) -> str:
        return self.path(number)

    def check_room(self, wanted_bytes: int) -> None:
        """Raises OSError where the file system is fuller than it may be, or would be then."""
        self._bring_back(self._directory)
        status = os.statvfs(self._directory)
        free_bytes, total_bytes = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        if free_bytes - wanted_bytes < total_bytes * (1 - self._capacity_share):
            raise OSError(
                errno.ENOSPC,
                f"{wanted_bytes} bytes more would fill it over {self._capacity_share:.0%}"
                f" (local_fs_capacity_threshold): {free_bytes} of {total_bytes} bytes are free",
                self._directory,
            )

    @contextlib.contextmanager
    def writing(self, number: int) -> Iterator[Callable[[list[memoryview]], None]]:
        with _new_file(self.path(number)) as fd:
            yield lambda parts: _write_all(fd, parts)

    @contextlib.contextmanager
    def reading(self, number: int, offset: int, count: int) -> Iterator[Callable[[memoryview, int], None]]:
        path = self.path(number)
        fd = _open(path, os.O_RDONLY)
        try:
            if os.fstat(fd).st_size < offset + count:
                raise AlteredFileError(path, "the file is shorter than what was written")
            # All of it at once: the kernel's own reading ahead asks for little at a time.
            os.posix_fadvise(fd, offset, count, os.POSIX_FADV_WILLNEED)
            yield lambda target, at: _read_all(fd, target, at, path)
        finally:
            os.close(fd)

    def make(self, number: int, size_bytes: int) -> None:
        # One after the other: several at once would each find the same room free.
        with self._making:
            self.check_room(size_bytes)
            with _new_file(self.path(number)) as fd:
                os.posix_fallocate(fd, 0, size_bytes)

    def map(self, number: int, size_bytes: int) -> memoryview:
        fd = _open(self.path(number), os.O_RDWR)
        try:
            return memoryview(mmap.mmap(fd, size_bytes))
        finally:
            os.close(fd)

    def remove(self, number: int) -> None:
        os.unlink(self.path(number))

    def flush(self, number: int) -> Stamp:
        fd = _open(self.path(number), os.O_RDONLY)
        try:
            os.fdatasync(fd)
            return _stamp(os.fstat(fd))
        finally:
            os.close(fd)

    def stamp(self, number: int) -> Stamp:
        return _stamp(os.stat(self.path(number)))


def ends() -> OSError:
    """What whoever reads or writes is told when the process ends."""
    return OSError(errno.ECANCELED, "the object manager ends")


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[int]:
    """The descriptor of a new file. At the end it is on the disk; if anything fails, it is gone."""
    fd = _open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        yield fd
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def _open(path: str, flags: int) -> int:
    for _ in range(_DESCRIPTOR_TRIES):
        try:
            return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        threading.Event().wait(_DESCRIPTOR_PAUSE_S)
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _write_all(fd: int, parts: list[memoryview]) -> None:
    while parts:
        count = os.writev(fd, parts)
        while parts and count >= len(parts[0]):
            count -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][count:]


def _read_all(fd: int, target: memoryview, offset: int, path: str) -> None:
    while len(target):
        count = os.preadv(fd, [target], offset)
        if not count:
            raise AlteredFileError(path, "the file is shorter than what was written")
        target, offset = target[count:], offset + count
