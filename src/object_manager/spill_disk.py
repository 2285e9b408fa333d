"""The real SpillDisk: files in the node's places (spill_places.py, external_place.py), written and read by
threads.

The threads write straight from the store's pages and read straight into them. A large object is read by
several of them. A read that fails is tried again where its place says so: a storage elsewhere may come back.

What was written is known by its checksums (checksums.py): what comes back otherwise is lost, and never a
value. Of a file that a client wrote there are none: it is known by its number on the disk, its size
and the time of its last byte.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ray_mono.common.threads import run_in_pool
from ray_mono.object_manager.checksums import BLOCK_BYTES, are_right, checksums
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.external_storage import ExternalStorage
from ray_mono.object_manager.seams import Prepare, UnreadableSource
from ray_mono.object_manager.spill_directories import SpillDirectories
from ray_mono.object_manager.spill_files import ALIGNMENT, Extent, SpillFile, aligned
from ray_mono.object_manager.spill_places import AlteredFileError, DirectoryPlace, SpillPlace, Stamp, ends

# Between two slices a thread looks whether the process ends.
_SLICE_BYTES = 16 << 20
_CHECK_BYTES = 4 << 20
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
            *(
                DirectoryPlace(path, config.local_fs_capacity_threshold, directories.bring_back)
                for path in directories.paths
            ),
        ]
        self.num_external = len(external.places) if external is not None else 0
        self.num_directories = len(self._places)
        self._directories = directories
        self._external = external
        self._config = config
        # Of the objects in each file, by their offset.
        self._checksums: dict[SpillFile, dict[int, bytes]] = {}
        # Of the files that clients have written; None while they write.
        self._stamps: dict[SpillFile, Stamp | None] = {}
        self._closed = threading.Event()
        self._writers = ThreadPoolExecutor(config.max_io_workers, "spill")
        self._readers = ThreadPoolExecutor(config.max_io_workers, "restore")
        # Files of clients are on this machine, and do not wait for a storage elsewhere that is gone.
        self._makers = ThreadPoolExecutor(config.max_io_workers, "make")

    def path(self, file: SpillFile) -> str:
        return self._place(file).path(file.number)

    async def write(self, extents: Sequence[Extent], contents: Sequence[memoryview]) -> None:
        await run_in_pool(self._writers, lambda: self._write(extents, contents))

    async def read(self, extent: Extent, start: int, target: memoryview, prepare: Prepare) -> None:
        num_parts = max(1, min(self._config.max_io_workers, len(target) // _READ_BYTES_MIN))
        part_bytes = -(-len(target) // (num_parts * BLOCK_BYTES)) * BLOCK_BYTES
        reads = [
            run_in_pool(self._readers, self._reading(extent, start, target, prepare, first, part_bytes))
            for first in range(0, max(1, len(target)), max(1, part_bytes))
        ]
        done = await asyncio.gather(*reads, return_exceptions=True)
        for failure in done:
            if failure is not None:
                raise failure

    async def check(self, extent: Extent) -> None:
        await run_in_pool(self._readers, lambda: self._check(extent))

    async def copy(self, sources: Sequence[Extent], targets: Sequence[Extent]) -> None:
        await run_in_pool(self._writers, lambda: self._copy(sources, targets))

    async def make(self, file: SpillFile, size_bytes: int) -> None:
        await run_in_pool(self._makers, lambda: self._place(file).make(file.number, size_bytes))
        self._stamps[file] = None

    async def made(self, file: SpillFile) -> None:
        place = self._place(file)
        found = await run_in_pool(self._makers, lambda: place.flush(file.number))
        if file in self._stamps:
            self._stamps[file] = found

    def map(self, file: SpillFile, size_bytes: int) -> memoryview:
        return self._place(file).map(file.number, size_bytes)

    async def remove(self, file: SpillFile) -> None:
        self._checksums.pop(file, None)
        self._stamps.pop(file, None)
        await run_in_pool(self._writers, lambda: self._place(file).remove(file.number))

    def close(self) -> None:
        self._closed.set()
        # What is being written elsewhere would be there after all is removed.
        self._writers.shutdown(wait=self._external is not None, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._makers.shutdown(wait=False, cancel_futures=True)
        self._directories.close()
        if self._external is not None:
            self._external.close()

    # ---- in threads

    def _write(self, extents: Sequence[Extent], contents: Sequence[memoryview]) -> None:
        file, place, found = extents[0].file, self._place(extents[0].file), {}

        def parts() -> Iterator[memoryview]:
            """Each object's checksums are taken when its turn has come: the copy finds it in the cache."""
            for extent, content in zip(extents, contents, strict=True):
                found[extent.offset] = checksums(content)
                yield content
                yield _PADDING[: aligned(extent.size_bytes) - extent.size_bytes]

        place.check_room(sum(aligned(extent.size_bytes) for extent in extents))
        with place.writing(file.number) as write:
            for some in _slices(parts()):
                self._go_on()
                write(some)
        self._checksums[file] = found

    def _reading(
        self, extent: Extent, start: int, target: memoryview, prepare: Prepare, first: int, count: int
    ) -> Callable[[], None]:
        def read() -> None:
            part = target[first : first + count]
            self._read(extent, start + first, part, lambda at, count: prepare(first + at, count))

        return read

    def _read(self, extent: Extent, start: int, target: memoryview, prepare: Prepare) -> None:
        place, end = self._place(extent.file), start + len(target)
        self._check_stamp(extent.file)
        with place.reading(extent.file.number, extent.offset + start, len(target)) as read:
            for first, last in _spans(start, end, extent.size_bytes):
                wanted = slice(max(first, start), min(last, end))
                part = target[wanted.start - start : wanted.stop - start]
                prepare(wanted.start - start, len(part))
                span = part if len(part) == last - first else memoryview(bytearray(last - first))
                self._read_patiently(place, read, span, extent.offset + first)
                self._check_span(extent, first, span)
                if span is not part:
                    part[:] = span[wanted.start - first : wanted.stop - first]

    def _check(self, extent: Extent) -> None:
        place = self._place(extent.file)
        self._check_stamp(extent.file)
        with place.reading(extent.file.number, extent.offset, extent.size_bytes) as read:
            if self._checksums_of(extent) is None:
                return
            buffer = memoryview(bytearray(min(_CHECK_BYTES, extent.size_bytes)))
            for at in range(0, extent.size_bytes, _CHECK_BYTES):
                span = buffer[: extent.size_bytes - at]
                self._read_patiently(place, read, span, extent.offset + at)
                self._check_span(extent, at, span)

    def _check_stamp(self, file: SpillFile) -> None:
        stamp, place = self._stamps.get(file), self._place(file)
        if stamp is not None and place.stamp(file.number) != stamp:
            raise AlteredFileError(place.name(file.number), "it is not the file that was written")

    def _check_span(self, extent: Extent, first: int, span: memoryview) -> None:
        expected = self._checksums_of(extent)
        if expected is not None and not are_right(expected, first, span):
            raise AlteredFileError(
                self._place(extent.file).name(extent.file.number), "its bytes are not those that were written"
            )

    def _checksums_of(self, extent: Extent) -> bytes | None:
        return self._checksums.get(extent.file, {}).get(extent.offset)

    def _read_patiently(
        self, place: SpillPlace, read: Callable[[memoryview, int], None], part: memoryview, offset: int
    ) -> None:
        left_s, pause_s = place.retry_s, _PAUSES_S[0]
        while True:
            self._go_on()
            try:
                return read(part, offset)
            except (FileNotFoundError, AlteredFileError):
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
        place = self._place(file)
        if file.directory != sources[0].file.directory:
            place.check_room(targets[-1].offset + aligned(targets[-1].size_bytes))
        with place.writing(file.number) as write:
            for source, target in zip(sources, targets, strict=True):
                write([_PADDING[: target.offset - written]])
                for at in range(0, source.size_bytes, _SLICE_BYTES):
                    part = buffer[: min(_SLICE_BYTES, source.size_bytes - at)]
                    try:
                        self._read(source, at, part, lambda start, count: None)
                    except OSError as error:
                        raise UnreadableSource(source, error) from error
                    write([part])
                written = target.offset + target.size_bytes
        # Those that were taken from memory.
        pairs = zip(sources, targets, strict=True)
        found = {target.offset: self._checksums_of(source) for source, target in pairs}
        self._checksums[file] = {offset: each for offset, each in found.items() if each is not None}

    def _place(self, file: SpillFile) -> SpillPlace:
        return self._places[file.directory]

    def _go_on(self) -> None:
        if self._closed.is_set():
            raise ends()


def _slices(parts: Iterable[memoryview]) -> Iterator[list[memoryview]]:
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


def _spans(start: int, end: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """What has to be read for bytes [start, end) of an object so that it can be checked: spans of whole
    blocks. Those that stick out at either end are one block long."""
    at = start - start % BLOCK_BYTES
    whole = end if end == size_bytes else end - end % BLOCK_BYTES
    while at < end:
        last = min(at + _SLICE_BYTES, whole) if start <= at < whole else at + BLOCK_BYTES
        last = min(last, size_bytes)
        yield at, last
        at = last
