"""The table of a node's objects: who made each, who owns it, who reads it, and where it lies.

A machine without I/O: it hands out offsets and never touches a byte. It does not know of other nodes, of
clients that wait, or of time.

The life of an object is in stored_object.py. The *primary* copy stays until its owner frees it. Other copies
are evicted, least recently used first, when room is needed and no client reads them. A client's connection
owns its unsealed objects and its read pins; `disconnect` ends them all.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from ray_mono.common.our_bug import check
from ray_mono.common.store_messages import FILE_SYSTEM_FULL
from ray_mono.object_manager.allocator import Allocator, aligned
from ray_mono.object_manager.errors import ObjectExists, ObjectUnknown, StoreFull
from ray_mono.object_manager.keys import TRANSFERS, ClientKey, ObjectKey, WorkerKey
from ray_mono.object_manager.stored_object import (
    Allocated,
    Allocation,
    Full,
    NeedsBacking,
    ObjectState,
    StoredObject,
)


@dataclass(slots=True)
class _Client:
    """What ends with a connection. Dicts as ordered sets."""

    unsealed: dict[ObjectKey, None] = field(default_factory=dict)
    pins: dict[ObjectKey, int] = field(default_factory=dict)


class Store:
    """The object table over one Allocator.

    Methods raise StoreError subclasses on a caller's mistake and then have changed nothing.
    """

    def __init__(self, capacity_bytes: int, dead_owners_max: int, directory: str = "") -> None:
        """directory: where the store's file lies, for messages."""
        self.allocator = Allocator(capacity_bytes)
        self._dead_owners_max = dead_owners_max
        self._objects: dict[ObjectKey, StoredObject] = {}
        self._clients: dict[ClientKey, _Client] = {}
        self._owned_by: dict[WorkerKey, dict[ObjectKey, None]] = {}
        # Exactly the objects that are SEALED, not primary and not pinned; the least recently used first.
        self._evictable: OrderedDict[ObjectKey, None] = OrderedDict()
        self._evictable_bytes = 0
        self._dead_owners: OrderedDict[WorkerKey, None] = OrderedDict()
        # False while the system has no pages for a longer file: then room is made by eviction, as in a full
        # store.
        self.can_grow = True
        self._directory = directory
        # Grows whenever memory comes free or evictable: who waits for room compares it.
        self.releases = 0
        self.num_evicted = 0
        self.num_pins = 0
        self.num_sealed = 0
        self.connect(TRANSFERS)

    # ---- clients

    def connect(self, client: ClientKey) -> None:
        """A connection that may own things."""
        self._clients.setdefault(client, _Client())

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
        existing = self._objects.get(object_id)
        if existing is not None:
            if existing.state is ObjectState.FREED_WITH_READERS and owner not in self._dead_owners:
                existing.made_again(is_primary)
            raise ObjectExists(f"object {object_id.hex()} is here already ({existing.state.value})")
        allocation = self._allocate(size_bytes, client)
        if isinstance(allocation, Allocated):
            entry = StoredObject(
                object_id, allocation.offset, size_bytes, metadata, owner, client, is_primary
            )
            self._add(entry)
            self._clients[client].unsealed[object_id] = None
        return allocation

    def seal(self, object_id: ObjectKey, client: ClientKey) -> bool:
        """The object is whole.

        False where its owner freed it meanwhile, and it is gone. Raises ObjectUnknown.
        """
        entry = self._unsealed_of(object_id, client)
        return self._seal(entry)

    def abort(self, object_id: ObjectKey, client: ClientKey) -> None:
        """The creator gives its unsealed object up. Raises ObjectUnknown."""
        entry = self._unsealed_of(object_id, client)
        del self._clients[client].unsealed[object_id]
        self._remove(entry)

    # ---- reading

    def pin(self, object_id: ObjectKey, client: ClientKey) -> StoredObject | None:
        """The object, with one more read pin of this client; None where there is no sealed one.

        One that was freed and is read still is found, too. It goes with its last pin all the same, since
        nobody would free it once more.
        """
        entry = self._objects.get(object_id)
        if entry is None or entry.state in (ObjectState.CREATED, ObjectState.FREED_UNSEALED):
            return None
        if not entry.num_pins and not entry.is_primary:
            self._drop_evictable(entry)
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

    def contains(self, object_id: ObjectKey) -> bool:
        """Whether a sealed copy is here that nobody freed."""
        entry = self._objects.get(object_id)
        return entry is not None and entry.state is ObjectState.SEALED

    def is_being_written(self, object_id: ObjectKey) -> bool:
        entry = self._objects.get(object_id)
        return entry is not None and entry.state is ObjectState.CREATED

    def is_made_here(self, object_id: ObjectKey) -> bool:
        """Whether a client is writing it, and it is no copy that arrives."""
        entry = self._objects.get(object_id)
        return entry is not None and entry.state is ObjectState.CREATED and entry.is_primary

    # ---- the owner's word

    def free(self, object_id: ObjectKey) -> None:
        """Nobody can ask for it any more.

        Its memory stays until the last read pin is gone. Unknown objects are nothing to do.
        """
        entry = self._objects.get(object_id)
        if entry is None:
            return
        if entry.state is ObjectState.CREATED:
            entry.move(ObjectState.FREED_UNSEALED)
        elif entry.state is ObjectState.SEALED:
            if entry.num_pins:
                entry.move(ObjectState.FREED_WITH_READERS)
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

    # ---- pages

    def backed(self, until_bytes: int) -> None:
        """The file has pages up to here."""
        self.allocator.raise_limit(until_bytes)

    def stop_growing(self) -> None:
        """The system has no pages for a longer file."""
        self.can_grow = False

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
        return self.allocator.free_bytes + self._evictable_bytes

    @property
    def num_unsealed(self) -> int:
        return len(self._objects) - self.num_sealed

    def describe_memory(self) -> str:
        """Sizes, for messages of a full store."""
        pinned = sum(entry.size_bytes for entry in self._objects.values() if entry.num_pins)
        primary = sum(entry.size_bytes for entry in self._objects.values() if entry.is_primary)
        refused = (
            ""
            if self.can_grow
            else (
                f"; {FILE_SYSTEM_FULL}: other files in {self._directory} leave room for"
                f" {self.allocator.limit_bytes} bytes of the store"
            )
        )
        return (
            f"capacity {self.allocator.capacity_bytes} bytes, used {self.used_bytes}"
            f" (primary copies {primary}, pinned by readers {pinned},"
            f" can be evicted {self._evictable_bytes}){refused}"
        )

    def objects(self) -> list[StoredObject]:
        """Every row, for people."""
        return list(self._objects.values())

    # ---- inside

    def _allocate(self, size_bytes: int, client: ClientKey) -> Allocation:
        if aligned(size_bytes) > self.allocator.capacity_bytes:
            raise StoreFull(
                f"wanted {size_bytes} bytes, more than the store can hold: {self.describe_memory()}"
            )
        offset = self.allocator.allocate(size_bytes, client)
        if offset is None:
            until_bytes = self.allocator.limit_for(size_bytes)
            if until_bytes <= self.allocator.capacity_bytes and self.can_grow:
                return NeedsBacking(until_bytes)
            offset = self._evict_for(size_bytes, client)
        return Full() if offset is None else Allocated(offset)

    def _evict_for(self, size_bytes: int, client: ClientKey) -> int | None:
        if self.obtainable_bytes < aligned(size_bytes):
            return None
        offset = None
        while offset is None and self._evictable:
            self._remove(self._objects[next(iter(self._evictable))])
            self.num_evicted += 1
            offset = self.allocator.allocate(size_bytes, client)
        return offset

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
        entry.move(ObjectState.SEALED)
        self.num_sealed += 1
        if not entry.is_primary:
            self._make_evictable(entry)
        return True

    def _unpin(self, entry: StoredObject, count: int) -> None:
        entry.unpinned(count)
        self.num_pins -= count
        if entry.num_pins:
            return
        if entry.state is ObjectState.FREED_WITH_READERS:
            self._remove(entry)
        elif not entry.is_primary:
            self._make_evictable(entry)

    def _make_evictable(self, entry: StoredObject) -> None:
        self._evictable[entry.object_id] = None
        self._evictable_bytes += aligned(entry.size_bytes)
        self.releases += 1

    def _drop_evictable(self, entry: StoredObject) -> None:
        del self._evictable[entry.object_id]
        self._evictable_bytes -= aligned(entry.size_bytes)

    def _add(self, entry: StoredObject) -> None:
        self._objects[entry.object_id] = entry
        self._owned_by.setdefault(entry.owner, {})[entry.object_id] = None

    def _remove(self, entry: StoredObject) -> None:
        del self._objects[entry.object_id]
        owned = self._owned_by[entry.owner]
        del owned[entry.object_id]
        if not owned:
            del self._owned_by[entry.owner]
        if entry.object_id in self._evictable:
            self._drop_evictable(entry)
        if entry.state in (ObjectState.SEALED, ObjectState.FREED_WITH_READERS):
            self.num_sealed -= 1
        self.allocator.free(entry.offset)
        self.releases += 1

    def check_invariants(self) -> None:
        """Recounts everything. Raises InternalError."""
        self.allocator.check_invariants()
        rows = self._objects.values()
        ranges = [(row.offset, aligned(row.size_bytes)) for row in rows]
        for offset, length in ranges:
            check(self.allocator.length_of(offset) == length, f"the range at {offset} has not {length} bytes")
        check(sum(length for _, length in ranges) == self.used_bytes, "a range in use belongs to nobody")
        pins: dict[ObjectKey, int] = {}
        for client in self._clients.values():
            for object_id, count in client.pins.items():
                check(count > 0, f"a pin of object {object_id.hex()} counts {count}")
                pins[object_id] = pins.get(object_id, 0) + count
        check(
            pins == {row.object_id: row.num_pins for row in rows if row.num_pins},
            "pins of clients and objects differ",
        )
        check(
            sum(pins.values()) == self.num_pins, f"num_pins is {self.num_pins}, counted {sum(pins.values())}"
        )
        written = {ObjectState.CREATED, ObjectState.FREED_UNSEALED}
        unsealed = [(row.object_id, row.creator) for row in rows if row.state in written]
        owned = [(object_id, key) for key, client in self._clients.items() for object_id in client.unsealed]
        check(sorted(unsealed) == sorted(owned), "unsealed objects and those of clients differ")
        check(
            self.num_unsealed == len(unsealed),
            f"num_unsealed is {self.num_unsealed}, counted {len(unsealed)}",
        )
        evictable = {
            row.object_id: aligned(row.size_bytes)
            for row in rows
            if row.state is ObjectState.SEALED and not row.is_primary and not row.num_pins
        }
        check(evictable.keys() == self._evictable.keys(), "evictable objects and their list differ")
        check(
            sum(evictable.values()) == self._evictable_bytes, "the bytes of evictable objects are miscounted"
        )
        for row in rows:
            check(
                row.state is not ObjectState.FREED_WITH_READERS or row.num_pins > 0,
                f"freed object {row.object_id.hex()} has no reader and is still here",
            )
        by_owner = sorted((owner, object_id) for owner, ids in self._owned_by.items() for object_id in ids)
        check(
            by_owner == sorted((row.owner, row.object_id) for row in rows),
            "objects and their owners' lists differ",
        )
