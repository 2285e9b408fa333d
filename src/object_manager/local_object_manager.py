"""What is written to disk when the store has no room, and what is read back: Ray's LocalObjectManager.

A machine without I/O over the Store and its SpillFiles. It decides when and what; the room spills.py has it
done and tells how it went.

**Writing.** Room is wanted by whoever waits for it (a create, a restore, a pull), and a little ahead: when
more than a share (`object_spilling_threshold`) of the store could be had only by writing. Then the least
recently used primary copies that nobody reads are gathered until they are min_spilling_size_bytes, or
`file_share` of a small store, and are written as one file. Fewer are written only where nothing else is being
written, since that could give the room. Once something was written, one file follows another until
`files_ahead` files less than the threshold are left: so the disk does not stand still until the store is full
again. What is written stays in memory as well until the memory is wanted: then it is evicted as a copy is.

**Reading.** What somebody wants is read back in the order of asking, when the store has room for it. Where it
has none, and none can be made (everything is read or being written by clients), it does not wait: whoever
asked reads it on disk, in place. So creates, restores and pulls never wait for each other in a circle:
restores do not wait for readers, and the others have their bound.

**Elsewhere.** Directories may be storages elsewhere (S3), whose files nobody maps. What has to be mapped lies
in a directory of its own then: what is larger than the store, and what is to be read in place, which is
copied there first.

**Failures.** A file that could not be written leaves its objects as they were. The directory rests for a
while, and the others are tried. While all rest nothing is written, and the reason stands in what a create is
told that finds no room.

**Compaction.** Files of which most is dead are copied together, one copy at a time. One that cannot be read
stays as it is: what lives in it is lost when somebody reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from ray_mono.common.our_bug import check, known
from ray_mono.object_manager.allocator import aligned
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import ObjectKey
from ray_mono.object_manager.spill_files import Extent, SpillFile, SpillFiles
from ray_mono.object_manager.store import Store
from ray_mono.object_manager.stored_object import Allocated, Full, NeedsBacking, ObjectState

_SPILLING = (ObjectState.SPILLING, ObjectState.FREED_SPILLING)
_RESTORING = (ObjectState.RESTORING, ObjectState.FREED_RESTORING)


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Effect: make this file of objects that lie in memory at these offsets, in this order."""

    number: int
    extents: dict[ObjectKey, Extent]
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReadObject:
    """Effect: read it into memory at this offset."""

    object_id: ObjectKey
    extent: Extent
    offset: int


@dataclass(frozen=True, slots=True)
class ReadInPlace:
    """Effect: there is no room for it: whoever wants it reads it on disk, if it can be read there."""

    object_id: ObjectKey
    extent: Extent


@dataclass(frozen=True, slots=True)
class BringHere:
    """Effect: there is no room for it, and it is elsewhere: copy it to where it can be read in place."""

    object_id: ObjectKey
    source: Extent
    target: Extent


@dataclass(frozen=True, slots=True)
class BackRestore:
    """Effect: a restore waits for pages up to here."""

    until_bytes: int


@dataclass(frozen=True, slots=True)
class CopyFiles:
    """Effect: make one file of what lives in these: where each lies, and where it is to lie."""

    number: int
    files: tuple[SpillFile, ...]
    extents: dict[ObjectKey, Extent]
    sources: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Effect: nobody needs it."""

    file: SpillFile


SpillEffect = WriteFile | ReadObject | ReadInPlace | BringHere | BackRestore | CopyFiles | RemoveFile


@dataclass(frozen=True, slots=True)
class _Resting:
    """A directory in which nothing could be written."""

    until_s: float
    reason: str


class LocalObjectManager:
    """Of one node. With no directories nothing is ever spilled."""

    def __init__(
        self,
        config: ObjectManagerConfig,
        store: Store,
        files: SpillFiles,
        num_directories: int,
        num_external: int = 0,
    ) -> None:
        """See SpillDisk."""
        self._config = config
        self._store = store
        self._files = files
        self._spillable = store.spillable
        self._num_external = num_external
        # Those that take turns.
        self._num_directories = num_external or num_directories
        self._threshold_bytes = int(config.object_spilling_threshold * config.capacity_bytes)
        share_bytes = int(config.file_share * config.capacity_bytes)
        self._file_bytes = max(1, min(config.min_spilling_size_bytes, share_bytes))
        self._low_bytes = max(0, self._threshold_bytes - config.files_ahead * self._file_bytes)
        # Whether files follow one another: since one was written, until no more than _low_bytes are left.
        self._goes_on = False
        self._next_number = 1
        self._next_directory = 0
        self._resting: dict[int, _Resting] = {}
        self._reason = ""
        self._writing: dict[int, WriteFile] = {}
        self._writing_bytes = 0
        self._copying: CopyFiles | None = None
        self._wanted: dict[ObjectKey, float] = {}  # since when; in order of arrival
        self._reading: dict[ObjectKey, None] = {}
        self._bringing: dict[ObjectKey, BringHere] = {}
        self._looking: dict[ObjectKey, ReadInPlace] = {}
        self._backing = False
        # Grows whenever those who wait for room may be tried again, or told that there will be none.
        self.changes = 0

    # ---- figures

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for an object that is on disk."""
        return bool(self._wanted)

    @property
    def is_due(self) -> bool:
        """Whether make_room() may have something to do, also where nobody waits for room but restores."""
        is_full = self._spillable.total_bytes > self._threshold_bytes
        return bool(self._wanted or self._goes_on or is_full or self._files.is_untidy)

    @property
    def oldest_s(self) -> float | None:
        """Since when the first of them waits."""
        return next(iter(self._wanted.values()), None)

    @property
    def wanted_bytes(self) -> int:
        """The room that the first of them waits for; 0 where none waits for room."""
        return aligned(self._store.size_of(next(iter(self._wanted)))) if self._may_restore() else 0

    @property
    def can_make_room(self) -> bool:
        """Whether memory comes free by itself: objects are written, or can be."""
        return not self._reason and bool(
            self._writing or (self._spillable.total_bytes and self._directory() is not None)
        )

    @property
    def is_disk_failing(self) -> bool:
        """Nothing could be written at last, and that not to a storage elsewhere: files of clients are on this
        node's disk, which may have room."""
        return bool(self._reason) and not self._num_external

    # ---- reading

    def want(self, object_id: ObjectKey, now_s: float) -> None:
        """Somebody waits for an object that is on disk."""
        under_way = (self._reading, self._bringing, self._looking, self._wanted)
        if not any(object_id in some for some in under_way):
            self._wanted[object_id] = now_s
            self.changes += 1

    def unwant(self, object_id: ObjectKey) -> None:
        """Nobody does any more, or it is freed: not read, unless it is being read already."""
        if self._wanted.pop(object_id, None) is not None:
            self.changes += 1

    def restore(self) -> list[SpillEffect]:
        """Starts reading what there is room for. Call it when memory came free, or `changes` grew."""
        effects: list[SpillEffect] = []
        while self._may_restore():
            object_id = next(iter(self._wanted))
            allocation = self._store.restore(object_id)
            match allocation:
                case Allocated(offset):
                    self._reading[object_id] = None
                    effects.append(ReadObject(object_id, self._files.where(object_id), offset))
                case NeedsBacking(until_bytes):
                    self._backing = True
                    return [*effects, BackRestore(until_bytes)]
                case Full():
                    if self.can_make_room and self._store.can_hold(self._store.size_of(object_id)):
                        return effects
                    effects.append(self._read_in_place(object_id))
                case _:
                    assert_never(allocation)
            del self._wanted[object_id]
        return effects

    def _read_in_place(self, object_id: ObjectKey) -> ReadInPlace | BringHere:
        source = self._files.where(object_id)
        if source.file.directory >= self._num_external:
            look = self._looking[object_id] = ReadInPlace(object_id, source)
            return look
        target = self._files.plan(self._num_external, [(object_id, source.size_bytes)])[object_id]
        bring = self._bringing[object_id] = BringHere(object_id, source, target)
        return bring

    def looked_at(self, look: ReadInPlace) -> bool:
        """False where it was freed meanwhile."""
        del self._looking[look.object_id]
        self.changes += 1
        return self._files.is_at(look.object_id, look.extent)

    def unreadable(self, object_id: ObjectKey, extent: Extent) -> bool:
        """It cannot be read where it lies, and is lost. False where it is not only there (any more)."""
        is_there = self._files.is_at(object_id, extent) and self._store.is_spilled(object_id)
        if not is_there or object_id in self._reading:
            return False
        self.unwant(object_id)
        self._store.not_restored(object_id)
        return True

    def file_is_gone(self, file: SpillFile) -> list[ObjectKey]:
        """All that is only there is lost: not each when somebody asks for it, so that a task that returned
        several of them runs again once."""
        alive = self._files.alive_in(file)
        return [object_id for object_id, extent in alive if self.unreadable(object_id, extent)]

    def brought(self, bring: BringHere) -> bool:
        """It can be read in place. False where it was freed meanwhile: then its file is to be removed."""
        self.not_brought(bring)
        if not self._files.is_at(bring.object_id, bring.source):
            return False
        self._files.move(bring.object_id, bring.target)
        return True

    def not_brought(self, bring: BringHere) -> None:
        """It stays where it was."""
        del self._bringing[bring.object_id]
        self.changes += 1

    def _may_restore(self) -> bool:
        return bool(self._wanted) and not self._backing and len(self._reading) < self._config.max_io_workers

    def backed(self) -> None:
        """There are pages, or none: who waits for them may be tried again."""
        if self._backing:
            self._backing = False
            self.changes += 1

    def restored(self, object_id: ObjectKey) -> bool:
        """It is read. False where it was freed meanwhile."""
        self._end_reading(object_id)
        return self._store.restored(object_id)

    def not_restored(self, object_id: ObjectKey) -> None:
        """It cannot be read, and is lost."""
        self._end_reading(object_id)
        self._store.not_restored(object_id)

    def _end_reading(self, object_id: ObjectKey) -> None:
        del self._reading[object_id]
        self.changes += 1

    # ---- writing

    def make_room(self, wanted_bytes: int) -> list[SpillEffect]:
        """Has as much written as is needed, and removes what is dead. wanted_bytes: what the first of those
        who wait for room needs; 0 where nobody does."""
        effects: list[SpillEffect] = []
        self._goes_on = self._goes_on and self._spillable.total_bytes > self._low_bytes
        while len(self._writing) < self._config.max_io_workers and self._is_due(wanted_bytes):
            write = self._write()
            if write is None:
                break
            effects.append(write)
        copy = self._compact()
        if copy is not None:
            effects.append(copy)
        return [*effects, *(RemoveFile(file) for file in self._files.take_dead())]

    def _is_due(self, wanted_bytes: int) -> bool:
        spillable_bytes = self._spillable.total_bytes
        if not spillable_bytes or (self._writing and spillable_bytes < self._file_bytes):
            return False
        coming_bytes = self._store.obtainable_bytes + self._writing_bytes
        is_short = wanted_bytes > 0 and (not self._writing or wanted_bytes > coming_bytes)
        goes_on = self._goes_on and not self._writing
        return is_short or goes_on or spillable_bytes > self._threshold_bytes

    def _write(self) -> WriteFile | None:
        directory = self._directory()
        if directory is None:
            return None
        self._next_directory = directory + 1
        rows = self._store.choose_to_spill(self._file_bytes, self._config.max_fused_object_count)
        extents = self._files.plan(directory, [(row.object_id, row.size_bytes) for row in rows])
        write = WriteFile(self._take_number(), extents, tuple(row.offset for row in rows))
        self._writing[write.number] = write
        self._writing_bytes += _size_bytes(write)
        return write

    def plan_files(self, object_id: ObjectKey, size_bytes: int) -> list[Extent]:
        """One file in each directory; the client writes the first that can be made. Those that rest are
        tried last, and all the same: its size is another one, and so is what it is told."""
        directories = [self._num_external]
        if not self._num_external:
            directories = sorted(self._turns(), key=self._resting.__contains__)
            self._next_directory = directories[0] + 1
        return [self._files.plan(each, [(object_id, size_bytes)])[object_id] for each in directories]

    def written(self, number: int) -> None:
        """The file is on disk."""
        write = self._end_writing(number)
        self._goes_on = True
        self._tell("")
        self._store.spilled(write.extents)

    def not_written(self, number: int, reason: str, now_s: float) -> None:
        """It could not be made, and nothing is left of it."""
        write = self._end_writing(number)
        self._rest(_directory_of(write.extents), reason, now_s)
        self._store.not_spilled(write.extents)

    def _end_writing(self, number: int) -> WriteFile:
        self.changes += 1
        write = self._writing.pop(number)
        self._writing_bytes -= _size_bytes(write)
        return write

    # ---- directories

    def _directory(self) -> int | None:
        """Whose turn it is."""
        return next((directory for directory in self._turns() if directory not in self._resting), None)

    def _turns(self) -> list[int]:
        """All of them, and whose turn it is comes first."""
        number = self._num_directories
        return [(self._next_directory + step) % number for step in range(number)]

    def _rest(self, directory: int, reason: str, now_s: float) -> None:
        self._resting[directory] = _Resting(now_s + self._config.spill_retry_s, reason)
        if self._directory() is None:
            self._tell("; ".join(dict.fromkeys(each.reason for each in self._resting.values())))

    def _tell(self, reason: str) -> None:
        """Why nothing can be written: told until something was, since a try alone makes no room."""
        self._reason = reason
        self._store.spilling_stops(reason)

    @property
    def next_deadline_s(self) -> float | None:
        return min(each.until_s for each in self._resting.values()) if self._resting else None

    def expire(self, now_s: float) -> None:
        """Directories that rested may be tried again."""
        for directory, resting in list(self._resting.items()):
            if resting.until_s <= now_s:
                del self._resting[directory]
                self.changes += 1

    # ---- compaction

    def _compact(self) -> CopyFiles | None:
        if self._copying is not None or self._directory() is None:
            return None
        files = self._files.compact(self._config.min_spilling_size_bytes, self._may_move)
        if not files:
            return None
        living = self._files.living(files)
        extents = self._files.plan(
            files[0].directory, [(object_id, extent.size_bytes) for object_id, extent in living]
        )
        sources = tuple(extent for _, extent in living)
        self._copying = CopyFiles(self._take_number(), tuple(files), extents, sources)
        return self._copying

    def _may_move(self, object_id: ObjectKey) -> bool:
        is_read = object_id in self._bringing or object_id in self._looking
        return self._store.may_move_on_disk(object_id) and not is_read

    def copied(self, number: int) -> None:
        """What nobody freed and nobody reads meanwhile has moved."""
        copy = self._end_copying(number)
        source_of = dict(zip(copy.extents, copy.sources, strict=True))
        kept = [
            object_id
            for object_id, source in source_of.items()
            if self._files.is_at(object_id, source) and self._may_move(object_id)
        ]
        self._files.moved(copy.files, copy.extents, kept)

    def not_copied(self, number: int, reason: str, now_s: float) -> None:
        copy = self._end_copying(number)
        self._files.moved(copy.files, {}, ())
        self._rest(_directory_of(copy.extents), reason, now_s)

    def cannot_copy(self, number: int, file: SpillFile) -> None:
        """Something in this one of the files cannot be read, which says nothing of the directory."""
        copy = self._end_copying(number)
        self._files.leave(file)
        self._files.moved(copy.files, {}, ())

    def _end_copying(self, number: int) -> CopyFiles:
        copy = known(self._copying, "the copy that has ended")
        check(copy.number == number, f"copy {number} does not run")
        self._copying = None
        return copy

    def _take_number(self) -> int:
        number = self._next_number
        self._next_number += 1
        return number

    def check_invariants(self) -> None:
        """Raises InternalError."""
        writing_bytes = sum(_size_bytes(write) for write in self._writing.values())
        check(writing_bytes == self._writing_bytes, f"{self._writing_bytes} bytes written, {writing_bytes}")
        moving = {object_id for write in self._writing.values() for object_id in write.extents}
        found = {row.object_id for row in self._store.objects() if row.state in _SPILLING}
        check(moving == found, "objects that are being written to disk differ")
        found = {row.object_id for row in self._store.objects() if row.state in _RESTORING}
        check(self._reading.keys() == found, "objects that are being read from disk differ")
        for object_id in self._wanted:
            check(self._store.is_spilled(object_id), f"{object_id.hex()} is wanted, and not on disk")


def _size_bytes(write: WriteFile) -> int:
    return sum(extent.size_bytes for extent in write.extents.values())


def _directory_of(extents: dict[ObjectKey, Extent]) -> int:
    return next(iter(extents.values())).file.directory
