"""The object table under any sequence of requests: its invariants hold, and it agrees with a model that knows
no sizes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ray_mono.object_manager.errors import StoreError
from ray_mono.object_manager.keys import TRANSFERS, ClientKey, ObjectKey, WorkerKey
from ray_mono.object_manager.spill_files import SpillFiles
from ray_mono.object_manager.store import Store
from ray_mono.object_manager.stored_object import Allocated

CLIENTS = [ClientKey(1), ClientKey(2)]
OBJECTS = [ObjectKey(bytes([number])) for number in range(5)]
OWNERS = [WorkerKey(b"o"), WorkerKey(b"p")]

objects = st.sampled_from(OBJECTS)
clients = st.sampled_from(CLIENTS)


@dataclass
class Row:
    creator: ClientKey
    owner: WorkerKey
    is_primary: bool
    is_sealed: bool = False
    is_freed: bool = False
    readers: list[ClientKey] = field(default_factory=list)


class StoreAgainstAModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = Store(1024, SpillFiles(1.0), dead_owners_max=4)
        self.store.allocator.raise_limit(1024)
        self.rows: dict[ObjectKey, Row] = {}
        self.dead: set[WorkerKey] = set()
        for client in CLIENTS:
            self.store.connect(client)

    @rule(
        object_id=objects,
        client=st.sampled_from([*CLIENTS, TRANSFERS]),
        owner=st.sampled_from(OWNERS),
        size=st.integers(0, 700),
    )
    def create(self, object_id: ObjectKey, client: ClientKey, owner: WorkerKey, size: int) -> None:
        is_primary = client != TRANSFERS
        row = self.rows.get(object_id)
        try:
            allocation = self.store.create(object_id, size, b"", owner, client, is_primary)
        except StoreError:
            assert row is not None
            if row.is_freed and row.is_sealed and owner not in self.dead:
                row.is_freed = False
                row.is_primary = is_primary
            return
        assert row is None
        self.forget_evicted()
        if isinstance(allocation, Allocated):
            self.rows[object_id] = Row(client, owner, is_primary)
        else:
            assert not any(
                row.is_sealed and not row.is_primary and not row.readers for row in self.rows.values()
            ) or (self.store.obtainable_bytes < size + 64)

    def forget_evicted(self) -> None:
        here = {entry.object_id for entry in self.store.objects()}
        for object_id in [key for key in self.rows if key not in here]:
            row = self.rows.pop(object_id)
            assert row.is_sealed and not row.is_primary and not row.readers

    @rule(object_id=objects, client=st.sampled_from([*CLIENTS, TRANSFERS]), keep=st.booleans())
    def finish(self, object_id: ObjectKey, client: ClientKey, keep: bool) -> None:
        row = self.rows.get(object_id)
        may = row is not None and not row.is_sealed and row.creator == client
        try:
            if keep:
                kept = self.store.seal(object_id, client)
                assert row is not None and kept == (not row.is_freed and row.owner not in self.dead)
                row.is_sealed = True
            else:
                kept = False
                self.store.abort(object_id, client)
            assert may
            if not kept:
                del self.rows[object_id]
        except StoreError:
            assert not may

    @rule(object_id=objects, client=clients)
    def pin(self, object_id: ObjectKey, client: ClientKey) -> None:
        row = self.rows.get(object_id)
        entry = self.store.pin(object_id, client)
        assert (entry is not None) == (row is not None and row.is_sealed)
        if row is not None and row.is_sealed:
            row.readers.append(client)

    @rule(object_id=objects, client=clients)
    def release(self, object_id: ObjectKey, client: ClientKey) -> None:
        row = self.rows.get(object_id)
        has_pin = row is not None and client in row.readers
        try:
            self.store.release(object_id, client)
            assert row is not None and has_pin
            row.readers.remove(client)
            self.drop_unread(object_id)
        except StoreError:
            assert not has_pin

    def drop_unread(self, object_id: ObjectKey) -> None:
        row = self.rows[object_id]
        if row.is_sealed and row.is_freed and not row.readers:
            del self.rows[object_id]

    @rule(object_id=objects)
    def free(self, object_id: ObjectKey) -> None:
        self.store.free(object_id)
        if object_id in self.rows:
            self.rows[object_id].is_freed = True
            self.drop_unread(object_id)

    @rule(owner=st.sampled_from(OWNERS))
    def owner_dies(self, owner: WorkerKey) -> None:
        freed = self.store.free_owned_by(owner)
        assert sorted(freed) == sorted(key for key, row in self.rows.items() if row.owner == owner)
        self.dead.add(owner)
        for object_id in freed:
            self.rows[object_id].is_freed = True
            self.drop_unread(object_id)

    @rule(client=clients)
    def reconnect(self, client: ClientKey) -> None:
        aborted = self.store.disconnect(client)
        assert sorted(aborted) == sorted(
            key for key, row in self.rows.items() if not row.is_sealed and row.creator == client
        )
        for object_id in aborted:
            del self.rows[object_id]
        for object_id, row in list(self.rows.items()):
            row.readers = [reader for reader in row.readers if reader != client]
            self.drop_unread(object_id)
        self.store.connect(client)

    @invariant()
    def agrees(self) -> None:
        self.store.check_invariants()
        assert {entry.object_id for entry in self.store.objects()} == set(self.rows)
        assert self.store.used_bytes + self.store.allocator.free_bytes == 1024
        for object_id, row in self.rows.items():
            assert self.store.contains(object_id) == (row.is_sealed and not row.is_freed)


StoreAgainstAModel.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestStoreAgainstAModel = StoreAgainstAModel.TestCase
