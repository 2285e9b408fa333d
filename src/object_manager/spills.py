"""Spilling, alive: carries out what the LocalObjectManager decides.

Files are written from the store's own pages, and read into them, by the threads of the disk; who waits is
told.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol, assert_never

from ray_mono.common.our_bug import known
from ray_mono.common.store_messages import DISK_FULL
from ray_mono.common.world import Clock
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import ObjectKey
from ray_mono.object_manager.local_object_manager import (
    BackRestore,
    BringHere,
    CopyFiles,
    LocalObjectManager,
    ReadInPlace,
    ReadObject,
    RemoveFile,
    SpillEffect,
    WriteFile,
)
from ray_mono.object_manager.seams import SharedMemory, SpillDisk, UnreadableSource
from ray_mono.object_manager.spill_files import Extent, SpillFile, SpillFiles, aligned
from ray_mono.object_manager.spill_report import SpillReport
from ray_mono.object_manager.store import Store

logger = logging.getLogger(__name__)


class Restores(Protocol):
    """Who waits for objects that are on disk."""

    def sealed(self, object_id: ObjectKey, pulled: bool) -> None:
        """It is in memory."""
        ...

    def readable_on_disk(self, object_id: ObjectKey) -> None:
        """It has to be read where it is."""
        ...

    def lost(self, object_id: ObjectKey, reason: str) -> None: ...

    def unobtainable(self, object_id: ObjectKey, error: str) -> None:
        """There is no room for it anywhere."""
        ...


class Spills:
    """All that is written to disk and read from it. Without a disk nothing is."""

    def __init__(
        self,
        config: ObjectManagerConfig,
        store: Store,
        files: SpillFiles,
        memory: SharedMemory,
        disk: SpillDisk | None,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        extend: Callable[[int], None],
        waiting: Callable[[], Restores],
        settle: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        """extend(until_bytes) has pages put under the store's file. settle() runs after each step. tell(text)
        tells people."""
        self.manager = LocalObjectManager(
            config,
            store,
            files,
            disk.num_directories if disk is not None else 0,
            disk.num_external if disk is not None else 0,
        )
        self._memory = memory
        self._disk = disk
        self.has_disk = disk is not None
        self._clock = clock
        self._spawn = spawn
        self._extend = extend
        self._waiting = waiting
        self._settle = settle
        self._tell = tell
        self._report = SpillReport(config.verbose_spill_logs_bytes)

    def plan_files(self, object_id: ObjectKey, size_bytes: int) -> list[Extent]:
        """See LocalObjectManager."""
        return self.manager.plan_files(object_id, size_bytes)

    async def make_file(self, extent: Extent) -> None:
        """Raises OSError."""
        await self._known_disk().make(extent.file, aligned(extent.size_bytes))

    def made(self, file: SpillFile) -> None:
        """A client has written it."""
        self._spawn(self._made(file), f"look at spilled file {file.number}")

    def map(self, extent: Extent) -> memoryview:
        """The bytes of an object that has a file of its own, writable. Raises OSError."""
        return self._known_disk().map(extent.file, aligned(extent.size_bytes))[: extent.size_bytes]

    def remove(self, file: SpillFile) -> None:
        """A file that is in no table."""
        self._spawn(self._remove(file), f"remove spilled file {file.number}")

    def path(self, file: SpillFile) -> str:
        """Where clients find it."""
        return self._known_disk().path(file)

    def check_invariants(self) -> None:
        """Raises InternalError."""
        self.manager.check_invariants()

    async def read(self, extent: Extent, start: int, length: int) -> memoryview:
        """Bytes of an object that is on disk, which stays there meanwhile. Raises OSError."""
        target = memoryview(bytearray(length))
        await self._known_disk().read(extent, start, target, lambda start, count: None)
        return target

    async def check(self, object_id: ObjectKey, extent: Extent) -> None:
        """An object that is on disk there is lost if it cannot be read."""
        try:
            await self._known_disk().check(extent)
        except OSError as error:
            self.unreadable(object_id, extent, error)

    def unreadable(self, object_id: ObjectKey, extent: Extent, error: OSError) -> None:
        """What is on disk there cannot be read."""
        if self.manager.unreadable(object_id, extent):
            self._lost(object_id, extent, error)

    def _lost(self, object_id: ObjectKey, extent: Extent, error: OSError) -> None:
        is_file_gone = isinstance(error, FileNotFoundError)
        for each in (object_id, *(self.manager.file_is_gone(extent.file) if is_file_gone else ())):
            logger.error("object %s cannot be read from disk: %s", each.hex(), error)
            self._waiting().lost(each, f"it was spilled, and cannot be read from disk: {error}")

    def backed(self) -> None:
        """There are pages under the store's file, or none."""
        self.manager.backed()

    def want(self, object_id: ObjectKey) -> None:
        """Somebody waits for it."""
        self.manager.want(object_id, self._clock.time_s())

    def unwant(self, object_id: ObjectKey) -> None:
        """Nobody does any more."""
        self.manager.unwant(object_id)

    def restore(self) -> None:
        """Memory came free."""
        self._carry_out(self.manager.restore())

    def make_room(self, wanted_bytes: int) -> None:
        """See LocalObjectManager."""
        self._carry_out(self.manager.make_room(wanted_bytes))

    def close(self) -> None:
        if self._disk is not None:
            self._disk.close()

    def _known_disk(self) -> SpillDisk:
        return known(self._disk, "the disk")

    def _carry_out(self, effects: Iterable[SpillEffect]) -> None:
        for effect in effects:
            match effect:
                case WriteFile(number):
                    self._spawn(self._write(effect), f"spill file {number}")
                case ReadObject(object_id):
                    self._spawn(self._read(effect), f"restore {object_id.hex()}")
                case ReadInPlace(object_id):
                    self._spawn(self._look_at(effect), f"look at {object_id.hex()} on disk")
                case BringHere(object_id):
                    self._spawn(self._bring(effect), f"copy {object_id.hex()} to where it can be mapped")
                case BackRestore(until_bytes):
                    self._extend(until_bytes)
                case CopyFiles(number):
                    self._spawn(self._copy(effect), f"compact spilled files, copy {number}")
                case RemoveFile(file):
                    self.remove(file)
                case _:
                    assert_never(effect)

    async def _write(self, write: WriteFile) -> None:
        extents = list(write.extents.values())
        contents = [
            self._memory.view(offset, extent.size_bytes)
            for extent, offset in zip(extents, write.offsets, strict=True)
        ]
        size_bytes, num_objects = 0, 0
        self._report.begun(self._clock.time_s())
        try:
            await self._known_disk().write(extents, contents)
        except OSError as error:
            logger.warning("%d objects could not be spilled: %s", len(write.extents), error)
            self.manager.not_written(write.number, why_not_written(error), self._clock.time_s())
        else:
            self.manager.written(write.number)
            size_bytes = sum(extent.size_bytes for extent in extents)
            num_objects = len(extents)
        if text := self._report.ended(size_bytes, num_objects, self._clock.time_s()):
            logger.info("%s", text)
            self._tell(text)
        self._settle()

    async def _read(self, read: ReadObject) -> None:
        object_id, extent = read.object_id, read.extent
        target = self._memory.view(read.offset, extent.size_bytes)
        try:
            await self._known_disk().read(
                extent, 0, target, lambda start, count: self._memory.prepare(read.offset + start, count)
            )
        except OSError as error:
            self.manager.not_restored(object_id)
            self._lost(object_id, extent, error)
        else:
            if self.manager.restored(object_id):
                self._waiting().sealed(object_id, pulled=False)
        self._settle()

    async def _look_at(self, look: ReadInPlace) -> None:
        try:
            await self._known_disk().check(look.extent)
        except OSError as error:
            self.manager.looked_at(look)
            self.unreadable(look.object_id, look.extent, error)
        else:
            if self.manager.looked_at(look):
                self._waiting().readable_on_disk(look.object_id)
        self._settle()

    async def _bring(self, bring: BringHere) -> None:
        object_id = bring.object_id
        try:
            await self._known_disk().copy([bring.source], [bring.target])
        except UnreadableSource as unreadable:
            self.manager.not_brought(bring)
            self.unreadable(object_id, bring.source, unreadable.error)
        except OSError as error:
            logger.warning("object %s cannot be read in place: %s", object_id.hex(), error)
            self.manager.not_brought(bring)
            self._waiting().unobtainable(
                object_id,
                f"object {object_id.hex()} has no room in the store, nor on disk: {why_not_written(error)}",
            )
        else:
            if self.manager.brought(bring):
                self._waiting().readable_on_disk(object_id)
            else:
                self.remove(bring.target.file)
        self._settle()

    async def _copy(self, copy: CopyFiles) -> None:
        try:
            await self._known_disk().copy(copy.sources, list(copy.extents.values()))
        except UnreadableSource as unreadable:
            logger.warning("a file of spilled objects is not compacted: %s", unreadable)
            self.manager.cannot_copy(copy.number, unreadable.source.file)
        except OSError as error:
            logger.warning("%d files of spilled objects could not be compacted: %s", len(copy.files), error)
            self.manager.not_copied(copy.number, why_not_written(error), self._clock.time_s())
        else:
            self.manager.copied(copy.number)
        self._settle()

    async def _made(self, file: SpillFile) -> None:
        try:
            await self._known_disk().made(file)
        except OSError as error:
            logger.warning("%s", error)

    async def _remove(self, file: SpillFile) -> None:
        try:
            await self._known_disk().remove(file)
        except OSError as error:
            logger.warning("%s", error)


def why_not_written(error: OSError) -> str:
    """For who finds no room."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{DISK_FULL}: {error}"
    return f"objects cannot be written to disk: {error}"
