"""A copy that came to this node's store: who hears of it, and what becomes of one that nobody wants any more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray_mono.core_worker.objects.store_reads import StoreReads
from tests.core_worker.fake_core import FakeCore

OBJECT = b"o" * 28
ELSEWHERE = b"e" * 28


def test_a_copy_that_came_when_nobody_wants_it_any_more_leaves_the_store() -> None:
    core = FakeCore()
    StoreReads(core).tell_location(OBJECT)  # type: ignore[arg-type]
    assert core.freed == [(OBJECT, [core.node_id])]


def test_the_owner_of_what_came_hears_where_it_is_and_frees_it_there_as_well() -> None:
    core: Any = FakeCore()
    told: list[Any] = []
    owner = SimpleNamespace(AddObjectLocation=SimpleNamespace(notify=told.append))
    core.ownership.parse_owner = lambda owner: owner
    core.stub_for = {b"another": owner}.__getitem__
    core.references.borrow(OBJECT, b"another")
    core.references.add_submitted([OBJECT])
    core.memory_store.put_in_store(OBJECT, [ELSEWHERE], 10**6)
    for _ in range(2):
        StoreReads(core).tell_location(OBJECT)
    assert core.memory_store.get(OBJECT).locations == [ELSEWHERE, core.node_id] and core.freed == []
    assert {(request.object_id, request.node_id) for request in told} == {(OBJECT, core.node_id)}
