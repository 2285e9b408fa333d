"""The table of a node's objects: who made each, who owns it, who reads it, and where it lies.

A machine without I/O: it hands out offsets and never touches a byte. It does not know of other nodes, of
clients that wait, or of time.

The life of an object is in stored_object.py. The *primary* copy stays until its owner frees it. Other copies
are evicted, least recently used first, when room is needed and no client reads them. So is the memory of
what is on disk as well. Whoever spills (local_object_manager.py) is given primary copies that no client
reads, least recently used first, and says how that ended. A client's connection owns its unsealed objects and
its read pins; `disconnect` ends them all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from ray_mono.common.our_bug import check
from ray_mono.object_manager.allocator import Allocator, aligned
from ray_mono.object_manager.client_holds import ClientHolds, read_bytes
from ray_mono.object_manager.errors import ObjectExists, ObjectUnknown, StoreFull
from ray_mono.object_manager.idle_objects import IdleObjects
from ray_mono.object_manager.keys import TRANSFERS, ClientKey, ObjectKey, WorkerKey
from ray_mono.object_manager.memory_story import describe
from ray_mono.object_manager.spill_files import Extent, SpillFiles
from ray_mono.object_manager.stored_object import (
    FREED_UNDER_WAY,
    KEPT,
    UNSEALED,
    Allocated,
    Allocation,
    Full,
    NeedsBacking,
    ObjectState,
    StoredObject,
)


class Store:
    """The object table over one Allocator, and the files of what is spilled.

    Methods raise StoreError subclasses on a caller's mistake and then have changed nothing.
    """

    def __init__(
        self,
        capacity_bytes: int,
        files: SpillFiles,
        dead_owners_max: int,
        directory: str = "",
    ) -> None:
        """directory: where the store's file lies, for messages."""
        self.allocator = Allocator(capacity_bytes)
        self._files = files
        self._dead_owners_max = dead_owners_max
        self._objects: dict[ObjectKey, StoredObject] = {}
        self._clients: dict[ClientKey, ClientHolds] = {}
        self._owned_by: dict[WorkerKey, dict[ObjectKey, None]] = {}
        # Exactly the objects that are SEALED and not pinned, the least recently used first: those that are
        # not primary or on disk as well, and the others, which can be had only by writing them to disk first.
        self._evictable = IdleObjects()
        self.spillable = IdleObjects()
        self._dead_owners: OrderedDict[WorkerKey, None] = OrderedDict()
        # False while the system has no pages for a longer file: then room is made by eviction, as in a full
        # store.
        self.can_grow = True
        self._directory = directory
        self._why_not_spilled = ""
        # Grows whenever memory comes free or evictable: who waits for room compares it.
        self.releases = 0
        self.num_evicted = 0
        self.spilled_bytes_total = 0
        self.restored_bytes_total = 0
        self.num_pins = 0
        self.num_sealed = 0
        self.connect(TRANSFERS)

    # ---- clients

    def connect(self, client: ClientKey) -> None:
        """A connection that may own things."""
        self._clients.setdefault(client, ClientHolds())

    def is_connected(self, client: ClientKey) -> bool:
        return client in self._clients

    def disconnect(self, client: ClientKey) -> list[ObjectKey]:
        """Ends what the connection owned. Returns the objects that will now not be sealed."""
        record = self._clients.pop(client, None)
        if record is None:
            return []
        for object_id, count in record.pins.items():
            self._unpin(self._objects[object_id], count)
        aborted = list(record.unsealed)
        for object_id in aborted:
            self._remove(self._objects[object_id])
        self.allocator.forget_writer(client)
        return aborted

    # ---- writing

    def create(
        self,
        object_id: ObjectKey,
        size_bytes: int,
        metadata: bytes,
        owner: WorkerKey,
        client: ClientKey,
        is_primary: bool,
    ) -> Allocation:
        """Room for an object that `client` will write; evicts copies for it.

        Raises ObjectExists; StoreFull where it can never fit.
        """
        self.check_new(object_id, owner, is_primary)
        if not self.can_hold(size_bytes):
            raise StoreFull(
                f"wanted {size_bytes} bytes, more than the store can hold: {self.describe_memory()}"
            )
        allocation = self._allocate(size_bytes, client)
        if isinstance(allocation, Allocated):
            entry = StoredObject(
                object_id, allocation.offset, size_bytes, metadata, owner, client, is_primary
            )
            self._add(entry)
            self._clients[client].unsealed[object_id] = None
        return allocation

    def check_new(self, object_id: ObjectKey, owner: WorkerKey, is_primary: bool) -> None:
        """Raises ObjectExists where the object is here. One that was freed, and is here still, is made again
        by that."""
        existing = self._objects.get(object_id)
        if existing is not None:
            if existing.can_be_made_again and owner not in self._dead_owners:
                existing.made_again(is_primary)
            raise ObjectExists(f"object {object_id.hex()} is here already ({existing.state.value})")

    def create_on_disk(self, entry: StoredObject, extent: Extent) -> None:
        """An object that its creator will write to a file of its own."""
        self._add(entry)
        self._files.written({entry.object_id: extent}, [entry.object_id])
        self._clients[entry.creator].unsealed[entry.object_id] = None

    def seal(self, object_id: ObjectKey, client: ClientKey) -> bool:
        """The object is whole.

        False where its owner freed it meanwhile, and it is gone. Raises ObjectUnknown.
        """
        return self._seal(self._unsealed_of(object_id, client))

    def abort(self, object_id: ObjectKey, client: ClientKey) -> None:
        """The creator gives its unsealed object up. Raises ObjectUnknown."""
        self._remove(self._unsealed_of(object_id, client))
        del self._clients[client].unsealed[object_id]
        self.allocator.forget_writer(client)  # where it lay may have been a bad place

    # ---- reading

    def pin(self, object_id: ObjectKey, client: ClientKey) -> StoredObject | None:
        """The object, with one more read pin of this client; None where there is no sealed one.

        One that was freed and is read still is found, too. It goes with its last pin all the same, since
        nobody would free it once more.
        """
        return self._pin(self._objects[object_id], client) if self.is_readable(object_id) else None

    def pin_on_disk(self, object_id: ObjectKey, client: ClientKey) -> StoredObject | None:
        """As `pin`, for who can read it on disk: also where it is not in memory."""
        entry = self._objects.get(object_id)
        if entry is None or entry.state in UNSEALED:
            return None
        return self._pin(entry, client)

    def _pin(self, entry: StoredObject, client: ClientKey) -> StoredObject:
        object_id = entry.object_id
        if not entry.num_pins and entry.state is ObjectState.SEALED:
            self._in_use(entry)
        entry.pinned()
        self.num_pins += 1
        pins = self._clients[client].pins
        pins[object_id] = pins.get(object_id, 0) + 1
        return entry

    def release(self, object_id: ObjectKey, client: ClientKey) -> None:
        """One read pin of this client less. Raises ObjectUnknown where it has none."""
        pins = self._clients[client].pins
        count = pins.get(object_id, 0)
        if not count:
            raise ObjectUnknown(f"object {object_id.hex()} is not pinned by this client")
        if count == 1:
            del pins[object_id]
        else:
            pins[object_id] = count - 1
        self._unpin(self._objects[object_id], 1)

    def drop_copy(self, object_id: ObjectKey, is_wanted: bool = False) -> None:
        """A copy of which its owner does not hear has no reason to stay, unless somebody reads it. is_wanted:
        or waits for it, and it is in memory."""
        entry = self._objects.get(object_id)
        if entry is not None and entry.is_copy_in_file and not entry.num_pins:
            self._remove(entry)
        elif entry is not None and not (is_wanted or entry.is_primary) and object_id in self._evictable:
            self._evict(entry)

    def contains(self, object_id: ObjectKey) -> bool:
        """Whether a sealed copy is here, in memory or on disk, that nobody freed."""
        return self._state(object_id) in KEPT

    def is_spilled(self, object_id: ObjectKey) -> bool:
        """Whether it is here and has to be read from disk (or is, now)."""
        is_on_disk = self._state(object_id) in (ObjectState.SPILLED, ObjectState.RESTORING)
        return is_on_disk and not self.is_readable(object_id)

    def is_readable(self, object_id: ObjectKey) -> bool:
        """Whether `pin` finds it: it is in memory, or a copy that is read in its file."""
        entry = self._objects.get(object_id)
        return entry is not None and (entry.is_in_memory or entry.is_copy_in_file)

    def taken_by(self, object_id: ObjectKey) -> int | None:
        """How much less would be obtainable if it were pinned; None where it is not here."""
        entry = self._objects.get(object_id)
        taken_bytes = aligned(entry.size_bytes) if entry is not None and object_id in self._evictable else 0
        return None if entry is None else taken_bytes

    def is_being_written(self, object_id: ObjectKey) -> bool:
        return self._state(object_id) is ObjectState.CREATED

    def is_made_here(self, object_id: ObjectKey) -> bool:
        """Whether a client is writing it, and it is no copy that arrives."""
        return self.is_being_written(object_id) and self._objects[object_id].is_primary

    def _state(self, object_id: ObjectKey) -> ObjectState | None:
        entry = self._objects.get(object_id)
        return None if entry is None else entry.state

    # ---- the owner's word

    def free(self, object_id: ObjectKey) -> None:
        """Nobody can ask for it any more.

        Its memory stays until the last read pin is gone. Unknown objects are nothing to do.
        """
        entry = self._objects.get(object_id)
        if entry is None:
            return
        if entry.state in FREED_UNDER_WAY:
            entry.move(FREED_UNDER_WAY[entry.state])
        elif entry.state in KEPT:
            if entry.num_pins:
                entry.move(ObjectState.FREED_WITH_READERS if entry.has_memory else ObjectState.FREED_ON_DISK)
            else:
                self._remove(entry)

    def free_owned_by(self, owner: WorkerKey) -> list[ObjectKey]:
        """The owner is dead: frees what it owned here, now and in future. Returns what it freed."""
        self._dead_owners[owner] = None
        if len(self._dead_owners) > self._dead_owners_max:
            self._dead_owners.popitem(last=False)
        owned = list(self._owned_by.get(owner, ()))
        for object_id in owned:
            self.free(object_id)
        return owned

    def owners(self) -> list[WorkerKey]:
        """Every worker that owns something here."""
        return list(self._owned_by)

    # ---- nodes that are drained

    def mark_primary(self, object_id: ObjectKey, is_primary: bool) -> bool:
        """A copy that is here becomes the primary one; or another node has that now. False where it is not
        here."""
        if (entry := self._objects.get(object_id)) is None or entry.state not in KEPT:
            return False
        rests = entry.state is ObjectState.SEALED and not entry.num_pins
        if rests:
            self._in_use(entry)
        entry.marked(is_primary)
        if rests:
            self._rests(entry)
        return True

    # ---- spilling

    def choose_to_spill(self, min_bytes: int, max_objects: int) -> list[StoredObject]:
        """Objects to write to disk, of together at least min_bytes if there is so much. Until `spilled` or
        `not_spilled` their bytes stay where they are."""
        chosen: list[StoredObject] = []
        while self.spillable and min_bytes > 0 and len(chosen) < max_objects:
            entry = self._objects[self.spillable.first()]
            self._in_use(entry)
            entry.move(ObjectState.SPILLING)
            min_bytes -= entry.size_bytes
            chosen.append(entry)
        return chosen

    def spilled(self, extents: Mapping[ObjectKey, Extent]) -> None:
        """They are written: those that nobody freed meanwhile can be evicted."""
        kept = [object_id for object_id in extents if self._objects[object_id].state is ObjectState.SPILLING]
        self._files.written(extents, kept)
        for object_id in kept:
            self._objects[object_id].written_to_disk()
            self.spilled_bytes_total += extents[object_id].size_bytes
        self.not_spilled(extents)

    def not_spilled(self, object_ids: Iterable[ObjectKey]) -> None:
        """They could not be written: they are as before."""
        for object_id in object_ids:
            self._stays(self._objects[object_id])

    def restore(self, object_id: ObjectKey) -> Allocation:
        """Memory for an object that is SPILLED, which is to be read into it."""
        entry = self._objects[object_id]
        if not self.can_hold(entry.size_bytes):
            return Full()
        allocation = self._allocate(entry.size_bytes, TRANSFERS)
        if isinstance(allocation, Allocated):
            entry.move(ObjectState.RESTORING)
            entry.placed(allocation.offset)
        return allocation

    def restored(self, object_id: ObjectKey) -> bool:
        """It is read. False where it was freed meanwhile."""
        entry = self._objects[object_id]
        is_kept = entry.state is ObjectState.RESTORING
        self.restored_bytes_total += entry.size_bytes if is_kept else 0
        self._stays(entry)
        return is_kept

    def _stays(self, entry: StoredObject) -> None:
        """It was being written to disk or read from it, and is in memory: unless it was freed meanwhile."""
        if entry.state in KEPT:
            entry.move(ObjectState.SEALED)
            self._rests(entry)
        elif entry.num_pins:
            entry.move(ObjectState.FREED_WITH_READERS)
        else:
            self._remove(entry)

    def not_restored(self, object_id: ObjectKey) -> None:
        """It cannot be read from disk: it is lost, but for those who have its file mapped."""
        entry = self._objects[object_id]
        if not entry.num_pins:
            self._remove(entry)
            return
        entry.move(ObjectState.FREED_ON_DISK)
        if entry.has_memory:
            self._take_memory(entry)

    def extent_of(self, object_id: ObjectKey) -> Extent:
        """Where it lies on disk."""
        return self._files.where(object_id)

    def size_of(self, object_id: ObjectKey) -> int:
        return self._objects[object_id].size_bytes

    def can_hold(self, size_bytes: int) -> bool:
        """Whether so much can be in memory at all."""
        return aligned(size_bytes) <= self.allocator.capacity_bytes

    def may_move_on_disk(self, object_id: ObjectKey) -> bool:
        """Whether nobody reads its file."""
        entry = self._objects[object_id]
        return not entry.num_pins and entry.state in (ObjectState.SEALED, ObjectState.SPILLED)

    def spilling_stops(self, reason: str) -> None:
        """Why nothing can be written to disk now, for messages; empty where it can."""
        self._why_not_spilled = reason

    # ---- pages

    def backed(self, until_bytes: int) -> None:
        """The file has pages up to here."""
        self.allocator.raise_limit(until_bytes)

    def stop_growing(self) -> None:
        """The system has no pages for a longer file."""
        self.can_grow = False

    def needs_pages(self, size_bytes: int) -> bool:
        """Of an object for which there is no memory: whether a longer file would have it."""
        return self.can_grow and self.allocator.limit_for(size_bytes) <= self.allocator.capacity_bytes

    def grow_again(self) -> None:
        """It may have some by now."""
        self.can_grow = True

    # ---- figures

    @property
    def frontier_bytes(self) -> int:
        """How far objects reach into the memory."""
        return self.allocator.frontier_bytes

    @property
    def used_bytes(self) -> int:
        """Ranges handed out, alignment included."""
        return self.allocator.used_bytes

    @property
    def obtainable_bytes(self) -> int:
        """Free, or free after evictions; perhaps not in one piece."""
        return self.allocator.free_bytes + self._evictable.total_bytes

    @property
    def num_unsealed(self) -> int:
        return len(self._objects) - self.num_sealed

    def describe_memory(self, tells_of_disk: bool = True) -> str:
        """Sizes, for messages of a full store. tells_of_disk: also why nothing can be written to disk."""
        return describe(
            self.allocator,
            self._objects.values(),
            self._evictable.total_bytes,
            self._files.total_bytes,
            "" if self.can_grow else self._directory,
            self._why_not_spilled if tells_of_disk else "",
        )

    def read_bytes(self) -> dict[ClientKey, int]:
        """See client_holds.py."""
        return read_bytes(self._clients, self._objects)

    def objects(self) -> list[StoredObject]:
        """Every row, for people."""
        return list(self._objects.values())

    # ---- inside

    def _allocate(self, size_bytes: int, client: ClientKey) -> Allocation:
        offset = self.allocator.allocate(size_bytes, client)
        if offset is None:
            if self.needs_pages(size_bytes):
                return NeedsBacking(self.allocator.limit_for(size_bytes))
            offset = self._evict_for(size_bytes, client)
        return Full() if offset is None else Allocated(offset)

    def _evict_for(self, size_bytes: int, client: ClientKey) -> int | None:
        if self.obtainable_bytes < aligned(size_bytes):
            return None
        offset = None
        while offset is None and self._evictable:
            self._evict(self._objects[self._evictable.first()])
            offset = self.allocator.allocate(size_bytes, client)
        return offset

    def _evict(self, entry: StoredObject) -> None:
        if not entry.is_on_disk:
            self._remove(entry)
            self.num_evicted += 1
            return
        self._in_use(entry)
        entry.move(ObjectState.SPILLED)
        self._take_memory(entry)

    def _take_memory(self, entry: StoredObject) -> None:
        entry.unplaced()
        self.allocator.free(entry.offset)
        self.releases += 1

    def _unsealed_of(self, object_id: ObjectKey, client: ClientKey) -> StoredObject:
        if object_id not in self._clients[client].unsealed:
            entry = self._objects.get(object_id)
            what = f"is {entry.state.value}, of another client or done" if entry else "does not exist"
            raise ObjectUnknown(f"object {object_id.hex()} {what}: not an unsealed object of this client")
        return self._objects[object_id]

    def _seal(self, entry: StoredObject) -> bool:
        del self._clients[entry.creator].unsealed[entry.object_id]
        if entry.state is ObjectState.FREED_UNSEALED or entry.owner in self._dead_owners:
            self._remove(entry)
            return False
        self.num_sealed += 1
        if entry.has_memory:
            entry.move(ObjectState.SEALED)
            self._rests(entry)
        else:
            entry.move(ObjectState.SPILLED)
        return True

    def _unpin(self, entry: StoredObject, count: int) -> None:
        entry.unpinned(count)
        self.num_pins -= count
        if entry.num_pins:
            return
        if entry.goes_unread:
            self._remove(entry)
        elif entry.state is ObjectState.SEALED:
            self._rests(entry)

    def _rests(self, entry: StoredObject) -> None:
        """It is SEALED, and nobody reads it: its memory may be wanted for others."""
        if entry.num_pins:
            return
        idle = self._idle_like(entry)
        idle.add(entry.object_id, entry.size_bytes)
        if idle is self._evictable:
            self.releases += 1

    def _in_use(self, entry: StoredObject) -> None:
        """It rested."""
        self._idle_like(entry).remove(entry.object_id)

    def _idle_like(self, entry: StoredObject) -> IdleObjects:
        return self.spillable if entry.is_primary and not entry.is_on_disk else self._evictable

    def _add(self, entry: StoredObject) -> None:
        self._objects[entry.object_id] = entry
        self._owned_by.setdefault(entry.owner, {})[entry.object_id] = None

    def _remove(self, entry: StoredObject) -> None:
        del self._objects[entry.object_id]
        owned = self._owned_by[entry.owner]
        del owned[entry.object_id]
        if not owned:
            del self._owned_by[entry.owner]
        if entry.state is ObjectState.SEALED and not entry.num_pins:
            self._in_use(entry)
        if entry.state not in UNSEALED:
            self.num_sealed -= 1
        if entry.has_memory:
            self._take_memory(entry)
        if entry.is_on_disk:
            self._files.drop(entry.object_id)

    def check_invariants(self) -> None:
        """Recounts everything. Raises InternalError."""
        self.allocator.check_invariants()
        rows = self._objects.values()
        ranges = [(row.offset, aligned(row.size_bytes)) for row in rows if row.has_memory]
        for offset, length in ranges:
            check(self.allocator.length_of(offset) == length, f"the range at {offset} has not {length} bytes")
        check(sum(length for _, length in ranges) == self.used_bytes, "a range in use belongs to nobody")
        pins: dict[ObjectKey, int] = {}
        for client in self._clients.values():
            for object_id, count in client.pins.items():
                check(count > 0, f"a pin of object {object_id.hex()} counts {count}")
                pins[object_id] = pins.get(object_id, 0) + count
        pinned = {row.object_id: row.num_pins for row in rows if row.num_pins}
        check(pins == pinned, "pins of clients and objects differ")
        check(sum(pins.values()) == self.num_pins, f"num_pins is {self.num_pins}, not {sum(pins.values())}")
        unsealed = [(row.object_id, row.creator) for row in rows if row.state in UNSEALED]
        owned = [(object_id, key) for key, client in self._clients.items() for object_id in client.unsealed]
        check(sorted(unsealed) == sorted(owned), "unsealed objects and those of clients differ")
        check(self.num_unsealed == len(unsealed), f"num_unsealed is {self.num_unsealed}, not {len(unsealed)}")
        resting = [row for row in rows if row.state is ObjectState.SEALED and not row.num_pins]
        for is_evictable, idle in ((True, self._evictable), (False, self.spillable)):
            found = {
                row.object_id: aligned(row.size_bytes)
                for row in resting
                if (row.is_on_disk or not row.is_primary) is is_evictable
            }
            check(found == idle.sizes(), "objects that nobody reads and their lists differ")
            check(sum(found.values()) == idle.total_bytes, "the bytes of what nobody reads are miscounted")
        self._files.check_invariants()
        on_disk = [row for row in rows if row.is_on_disk]
        check(len(on_disk) == self._files.num_objects, "objects on disk and their files differ")
        for row in on_disk:
            check(self._files.where(row.object_id).size_bytes == row.size_bytes, "an extent has another size")
        for row in rows:
            row.check_invariants()
        by_owner = sorted((owner, object_id) for owner, ids in self._owned_by.items() for object_id in ids)
        owners = sorted((row.owner, row.object_id) for row in rows)
        check(by_owner == owners, "objects and their owners' lists differ")
