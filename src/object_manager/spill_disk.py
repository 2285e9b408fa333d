"""The real SpillDisk: files in the node's directories, written and read by threads.

The threads write straight from the store's pages and read straight into them, without the interpreter's lock.
A large object is read by several of them. A file counts as written when the disk has it (fdatasync): what the
disk refuses later would be lost without a word, since the memory is given to others by then. Then it leaves
the page cache, since memory is what there is too little of; pages that are used again are also faster than
fresh ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.seams import Prepare
from ray_mono.object_manager.spill_directories import SpillDirectories
from ray_mono.object_manager.spill_files import Extent, SpillFile

# Between two slices a thread looks whether the process ends.
_SLICE_BYTES = 16 << 20
_PARTS_PER_WRITE = 512  # the kernel takes 1024
# An object is read by several threads from twice this size on.
_READ_BYTES_MIN = 4 << 20
# Where no descriptor is left one may come free soon.
_DESCRIPTOR_PAUSE_S = 0.1
_DESCRIPTOR_TRIES = 100


class FileSpillDisk:
    """Implements SpillDisk."""

    def __init__(self, directories: SpillDirectories, config: ObjectManagerConfig) -> None:
        self.num_directories = len(directories.paths)
        self._directories = directories
        self._config = config
        self._closed = threading.Event()
        self._writers = ThreadPoolExecutor(config.max_io_workers, "spill")
        self._readers = ThreadPoolExecutor(config.max_io_workers, "restore")

    def path(self, file: SpillFile) -> str:
        return os.path.join(self._directories.paths[file.directory], str(file.number))

    async def write(self, file: SpillFile, parts: Sequence[memoryview]) -> None:
        await _run(self._writers, lambda: self._write(file, parts))

    async def read(self, extent: Extent, start: int, target: memoryview, prepare: Prepare) -> None:
        num_parts = max(1, min(self._config.max_io_workers, len(target) // _READ_BYTES_MIN))
        part_bytes = -(-len(target) // num_parts)
        reads = [
            _run(self._readers, self._reading(extent, start, target, prepare, first, part_bytes))
            for first in range(0, max(1, len(target)), max(1, part_bytes))
        ]
        done = await asyncio.gather(*reads, return_exceptions=True)
        for failure in done:
            if failure is not None:
                raise failure

    async def copy(self, sources: Sequence[Extent], targets: Sequence[Extent]) -> None:
        await _run(self._writers, lambda: self._copy(sources, targets))

    async def make(self, file: SpillFile, size_bytes: int) -> None:
        await _run(self._writers, lambda: self._make(file, size_bytes))

    async def remove(self, file: SpillFile) -> None:
        await _run(self._writers, lambda: os.unlink(self.path(file)))

    def close(self) -> None:
        self._closed.set()
        self._writers.shutdown(wait=False, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._directories.close()

    # ---- in threads

    def _write(self, file: SpillFile, parts: Sequence[memoryview]) -> None:
        self._check_room(file, sum(len(part) for part in parts))
        with _new_file(self.path(file)) as fd:
            for some in _slices(parts):
                self._go_on()
                _write_all(fd, some)

    def _reading(
        self, extent: Extent, start: int, target: memoryview, prepare: Prepare, first: int, count: int
    ) -> Callable[[], None]:
        def read() -> None:
            fd = _open(self.path(extent.file), os.O_RDONLY)
            try:
                end = min(first + count, len(target))
                # All of it at once: the kernel's own reading ahead asks for little at a time.
                os.posix_fadvise(fd, extent.offset + start + first, end - first, os.POSIX_FADV_WILLNEED)
                for at in range(first, end, _SLICE_BYTES):
                    self._go_on()
                    part = target[at : min(at + _SLICE_BYTES, end)]
                    prepare(at, len(part))
                    _read_all(fd, part, extent.offset + start + at, self.path(extent.file))
            finally:
                os.close(fd)

        return read

    def _copy(self, sources: Sequence[Extent], targets: Sequence[Extent]) -> None:
        buffer = memoryview(bytearray(_SLICE_BYTES))
        with _new_file(self.path(targets[0].file)) as fd:
            for source, target in zip(sources, targets, strict=True):
                os.lseek(fd, target.offset, os.SEEK_SET)
                read_fd = _open(self.path(source.file), os.O_RDONLY)
                try:
                    for at in range(0, source.size_bytes, _SLICE_BYTES):
                        self._go_on()
                        part = buffer[: min(_SLICE_BYTES, source.size_bytes - at)]
                        _read_all(read_fd, part, source.offset + at, self.path(source.file))
                        _write_all(fd, [part])
                finally:
                    os.close(read_fd)

    def _make(self, file: SpillFile, size_bytes: int) -> None:
        self._check_room(file, size_bytes)
        with _new_file(self.path(file)) as fd:
            os.posix_fallocate(fd, 0, size_bytes)

    def _check_room(self, file: SpillFile, wanted_bytes: int) -> None:
        """Raises OSError where the file system is fuller than it may be, or would be then."""
        directory = self._directories.paths[file.directory]
        status = os.statvfs(directory)
        free_bytes, total_bytes = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        share = self._config.local_fs_capacity_threshold
        if free_bytes - wanted_bytes < total_bytes * (1 - share):
            raise OSError(
                errno.ENOSPC,
                f"{wanted_bytes} bytes more would fill it over {share:.0%} (local_fs_capacity_threshold):"
                f" {free_bytes} of {total_bytes} bytes are free",
                directory,
            )

    def _go_on(self) -> None:
        if self._closed.is_set():
            raise OSError(errno.ECANCELED, "the object manager ends")


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


async def _run(pool: ThreadPoolExecutor, job: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(pool, job)


def _open(path: str, flags: int) -> int:
    for _ in range(_DESCRIPTOR_TRIES):
        try:
            return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        threading.Event().wait(_DESCRIPTOR_PAUSE_S)
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _slices(parts: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The same bytes, in pieces that one call writes."""
    some: list[memoryview] = []
    some_bytes = 0
    for part in parts:
        while len(part):
            piece = part[: _SLICE_BYTES - some_bytes]
            part = part[len(piece) :]
            some.append(piece)
            some_bytes += len(piece)
            if some_bytes == _SLICE_BYTES or len(some) == _PARTS_PER_WRITE:
                yield some
                some, some_bytes = [], 0
    if some:
        yield some


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
            raise OSError(errno.EIO, "the file is shorter than what was written", path)
        target, offset = target[count:], offset + count
