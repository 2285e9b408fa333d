"""Which bytes of which file on disk are whose: the table of what is spilled.

A machine without I/O. Objects are written many at a time, one after another into one file, since a disk is
slow at many small files. A file is written once and never changed. What becomes of it:

- An object that is freed makes its bytes dead. A file goes when all of its bytes are (`take_dead`).
- A file of which most is dead is *sparse*: what lives in such files is copied into a new one (`compact`,
  `moved`), and they go.

While a file is copied from, it is busy and stays. The directories take turns: each may be another disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ray_mono.common.our_bug import check, known
from ray_mono.object_manager.keys import ObjectKey

# What is read in place is found at such an offset in memory, too.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class SpillFile:
    """One file, by its number; `directory` counts the directories that there are."""

    number: int
    directory: int


@dataclass(frozen=True, slots=True)
class Extent:
    """Where one object lies on disk."""

    file: SpillFile
    offset: int
    size_bytes: int


@dataclass(slots=True)
class _Content:
    total_bytes: int
    live_bytes: int
    live: dict[ObjectKey, Extent] = field(default_factory=dict)
    is_busy: bool = False
    is_left: bool = False


def aligned(size_bytes: int) -> int:
    """What an object takes in a file. It is at least one unit: an empty object has a place of its own."""
    return max(ALIGNMENT, -(-size_bytes // ALIGNMENT) * ALIGNMENT)


class SpillFiles:
    """Of one node."""

    def __init__(self, sparse_share: float) -> None:
        """sparse_share: how much of a file is dead when it is worth a copy of the rest."""
        self._sparse_share = sparse_share
        self._next_number = 0
        self._files: dict[SpillFile, _Content] = {}
        self._extents: dict[ObjectKey, Extent] = {}
        self._dead: list[SpillFile] = []
        self._sparse: dict[SpillFile, None] = {}  # exactly those that are sparse and not busy
        # Of all files; and what of that is dead.
        self.total_bytes = 0
        self.dead_bytes = 0

    def __len__(self) -> int:
        return len(self._files)

    @property
    def is_untidy(self) -> bool:
        """Whether there are dead files to be removed, or sparse ones."""
        return bool(self._dead or self._sparse)

    @property
    def num_objects(self) -> int:
        return len(self._extents)

    def plan(self, directory: int, sizes: Sequence[tuple[ObjectKey, int]]) -> dict[ObjectKey, Extent]:
        """A new file for these objects, in this order. It is in no table yet."""
        file = SpillFile(self._next_number, directory)
        self._next_number += 1
        extents, offset = {}, 0
        for object_id, size_bytes in sizes:
            extents[object_id] = Extent(file, offset, size_bytes)
            offset += aligned(size_bytes)
        return extents

    def written(self, extents: Mapping[ObjectKey, Extent], kept: Sequence[ObjectKey]) -> None:
        """A planned file is on disk. Of its objects these are still wanted."""
        content = _Content(sum(aligned(extent.size_bytes) for extent in extents.values()), 0)
        file = next(iter(extents.values())).file
        self._files[file] = content
        self.total_bytes += content.total_bytes
        self.dead_bytes += content.total_bytes
        for object_id in kept:
            check(object_id not in self._extents, f"object {object_id.hex()} is on disk twice")
            self._add(object_id, extents[object_id])
        self._look_at(file)

    def where(self, object_id: ObjectKey) -> Extent:
        return known(self._extents.get(object_id), f"where object {object_id.hex()} lies on disk")

    def is_at(self, object_id: ObjectKey, extent: Extent) -> bool:
        """Whether it lies there and nowhere else."""
        return self._extents.get(object_id) == extent

    def alive_in(self, file: SpillFile) -> list[tuple[ObjectKey, Extent]]:
        """What is in it, if it is (still) a file of ours."""
        content = self._files.get(file)
        return list(content.live.items()) if content is not None else []

    def drop(self, object_id: ObjectKey) -> None:
        """The object is gone."""
        file = self.where(object_id).file
        self._remove(object_id)
        self._look_at(file)

    def take_dead(self) -> list[SpillFile]:
        """The files that nobody needs: their names are to be removed."""
        dead, self._dead = self._dead, []
        return dead

    def move(self, object_id: ObjectKey, extent: Extent) -> None:
        """There is a copy of it in a planned file of its own, which stands for it from now on."""
        old = self.where(object_id).file
        self._remove(object_id)
        self._look_at(old)
        self.written({object_id: extent}, [object_id])

    # ---- compaction

    def compact(self, max_bytes: int, may_move: Callable[[ObjectKey], bool]) -> list[SpillFile]:
        """Sparse files to copy from, with at most so much that lives (or one file). They are busy until
        `moved`. A file stays as it is while something in it may not be moved."""
        chosen: list[SpillFile] = []
        for file in self._sparse:
            content = self._files[file]
            if all(may_move(object_id) for object_id in content.live):
                if chosen and content.live_bytes > max_bytes:
                    break
                max_bytes -= content.live_bytes
                chosen.append(file)
        for file in chosen:
            self._files[file].is_busy = True
            del self._sparse[file]
        return chosen

    def living(self, files: Sequence[SpillFile]) -> list[tuple[ObjectKey, Extent]]:
        """What is in them, and not dead."""
        return [item for file in files for item in self.alive_in(file)]

    def moved(
        self, files: Sequence[SpillFile], extents: Mapping[ObjectKey, Extent], kept: Sequence[ObjectKey]
    ) -> None:
        """The copy has ended: these objects are where `extents` says, the others where they were. Nothing is
        kept where it failed."""
        if extents:
            for object_id in kept:
                self._remove(object_id)
            self.written(extents, kept)
        for file in files:
            self._files[file].is_busy = False
            self._look_at(file)

    def leave(self, file: SpillFile) -> None:
        """It cannot be copied: it goes when all in it is dead. Call it while it is busy."""
        self._files[file].is_left = True

    # ---- inside

    def _add(self, object_id: ObjectKey, extent: Extent) -> None:
        content = self._files[extent.file]
        content.live[object_id] = extent
        content.live_bytes += aligned(extent.size_bytes)
        self.dead_bytes -= aligned(extent.size_bytes)
        self._extents[object_id] = extent

    def _remove(self, object_id: ObjectKey) -> None:
        extent = self._extents.pop(object_id)
        content = self._files[extent.file]
        del content.live[object_id]
        content.live_bytes -= aligned(extent.size_bytes)
        self.dead_bytes += aligned(extent.size_bytes)

    def _look_at(self, file: SpillFile) -> None:
        """Something in it died, or it is not busy any more."""
        content = self._files[file]
        if content.is_busy:
            return
        if content.live:
            if self._is_sparse(content):
                self._sparse[file] = None
            return
        self._sparse.pop(file, None)
        del self._files[file]
        self.total_bytes -= content.total_bytes
        self.dead_bytes -= content.total_bytes
        self._dead.append(file)

    def _is_sparse(self, content: _Content) -> bool:
        dead_bytes = content.total_bytes - content.live_bytes
        return not content.is_left and dead_bytes >= content.total_bytes * self._sparse_share

    def check_invariants(self) -> None:
        """Recounts everything. Raises InternalError."""
        extents = {
            object_id: extent for each in self._files.values() for object_id, extent in each.live.items()
        }
        check(extents == self._extents, "objects and what lives in files differ")
        for file, content in self._files.items():
            live_bytes = sum(aligned(extent.size_bytes) for extent in content.live.values())
            check(live_bytes == content.live_bytes, f"{file} has {live_bytes} bytes alive")
            check(bool(content.live) or content.is_busy, f"{file} is dead and still here")
        sparse = [file for file, each in self._files.items() if self._is_sparse(each) and not each.is_busy]
        check(set(sparse) == self._sparse.keys(), "sparse files and their list differ")
        total_bytes = sum(content.total_bytes for content in self._files.values())
        live_bytes = sum(content.live_bytes for content in self._files.values())
        check(total_bytes == self.total_bytes, f"total_bytes is {self.total_bytes}, counted {total_bytes}")
        check(
            self.dead_bytes == total_bytes - live_bytes,
            f"dead_bytes is {self.dead_bytes}, counted {total_bytes - live_bytes}",
        )
