"""The real SpillDisk: files in the node's places (spill_places.py, external_place.py), written and read by
threads.

The threads write straight from the store's pages and read straight into them. A large object is read by
several of them. A read that fails is tried again where its place says so: a storage elsewhere may come back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.external_storage import ExternalStorage
from ray_mono.object_manager.seams import Prepare
from ray_mono.object_manager.spill_directories import SpillDirectories
from ray_mono.object_manager.spill_files import ALIGNMENT, Extent, SpillFile
from ray_mono.object_manager.spill_places import DirectoryPlace, SpillPlace, ends

# Between two slices a thread looks whether the process ends.
_SLICE_BYTES = 16 << 20
_PARTS_PER_WRITE = 512  # the kernel takes 1024
# An object is read by several threads from twice this size on.
_READ_BYTES_MIN = 4 << 20
_PAUSES_S = (0.1, 5.0)
"""Between two reads of what could not be read: the first, and the longest."""
_PADDING = memoryview(bytes(ALIGNMENT))

logger = logging.getLogger(__name__)


class FileSpillDisk:
    """Implements SpillDisk."""

    def __init__(
        self,
        directories: SpillDirectories,
        config: ObjectManagerConfig,
        external: ExternalStorage | None = None,
    ) -> None:
        """external: where files go then. The last directory has what is to be mapped."""
        self._places: list[SpillPlace] = [
            *(external.places if external is not None else ()),
            *(DirectoryPlace(path, config.local_fs_capacity_threshold) for path in directories.paths),
        ]
        self.num_external = len(external.places) if external is not None else 0
        self.num_directories = len(self._places)
        self._directories = directories
        self._external = external
        self._config = config
        self._closed = threading.Event()
        self._writers = ThreadPoolExecutor(config.max_io_workers, "spill")
        self._readers = ThreadPoolExecutor(config.max_io_workers, "restore")

    def path(self, file: SpillFile) -> str:
        return self._place(file).path(file.number)

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
        await _run(self._writers, lambda: self._place(file).make(file.number, size_bytes))

    async def remove(self, file: SpillFile) -> None:
        await _run(self._writers, lambda: self._place(file).remove(file.number))

    def close(self) -> None:
        self._closed.set()
        # What is being written elsewhere would be there after all is removed.
        self._writers.shutdown(wait=self._external is not None, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._directories.close()
        if self._external is not None:
            self._external.close()

    # ---- in threads

    def _write(self, file: SpillFile, parts: Sequence[memoryview]) -> None:
        place = self._place(file)
        place.check_room(sum(len(part) for part in parts))
        with place.writing(file.number) as write:
            for some in _slices(parts):
                self._go_on()
                write(some)

    def _reading(
        self, extent: Extent, start: int, target: memoryview, prepare: Prepare, first: int, count: int
    ) -> Callable[[], None]:
        def read() -> None:
            part = target[first : first + count]
            self._read(extent, start + first, part, lambda at, count: prepare(first + at, count))

        return read

    def _read(self, extent: Extent, start: int, target: memoryview, prepare: Prepare) -> None:
        place = self._place(extent.file)
        start += extent.offset
        with place.reading(extent.file.number, start, len(target)) as read:
            for at in range(0, len(target), _SLICE_BYTES):
                part = target[at : at + _SLICE_BYTES]
                prepare(at, len(part))
                self._read_patiently(place, read, part, start + at)

    def _read_patiently(
        self, place: SpillPlace, read: Callable[[memoryview, int], None], part: memoryview, offset: int
    ) -> None:
        left_s, pause_s = place.retry_s, _PAUSES_S[0]
        while True:
            self._go_on()
            try:
                return read(part, offset)
            except FileNotFoundError:
                raise
            except OSError as error:
                if left_s <= 0:
                    raise
                if left_s == place.retry_s:
                    logger.warning("%s; it is tried again for %g s", error, left_s)
            self._closed.wait(pause_s)
            left_s, pause_s = left_s - pause_s, min(2 * pause_s, _PAUSES_S[1])

    def _copy(self, sources: Sequence[Extent], targets: Sequence[Extent]) -> None:
        buffer = memoryview(bytearray(_SLICE_BYTES))
        file, written = targets[0].file, 0
        with self._place(file).writing(file.number) as write:
            for source, target in zip(sources, targets, strict=True):
                write([_PADDING[: target.offset - written]])
                for at in range(0, source.size_bytes, _SLICE_BYTES):
                    part = buffer[: min(_SLICE_BYTES, source.size_bytes - at)]
                    self._read(source, at, part, lambda start, count: None)
                    write([part])
                written = target.offset + target.size_bytes

    def _place(self, file: SpillFile) -> SpillPlace:
        return self._places[file.directory]

    def _go_on(self) -> None:
        if self._closed.is_set():
            raise ends()


async def _run(pool: ThreadPoolExecutor, job: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(pool, job)


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
