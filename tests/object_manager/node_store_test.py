"""A NodeStore in scenes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from ray_mono.object_manager import pressure
from ray_mono.object_manager.admission import Priority
from ray_mono.object_manager.errors import ObjectExists, StoreFull
from ray_mono.object_manager.get_queue import FoundState, Wanted
from ray_mono.object_manager.keys import TRANSFERS, NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.seams import ObjectHeader
from tests.object_manager.fakes import FakeCluster, PlainMemory
from tests.object_manager.node_scene import config, content, put, room, run

FAR = NodeKey(b"far")
A, B = ObjectKey(b"a"), ObjectKey(b"b")


async def started(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    return task


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_another_nodes_fetch_waits_for_the_seal_of_what_is_being_written() -> None:
    """Its caller may hear of an object sooner than its store does that it is whole."""

    async def scene() -> None:
        cluster = FakeCluster()
        node = cluster.add("here", config())
        client = node.connect()
        await node.create(room(client, A, 100))
        fetch = await started(node.read_for_transfer(A))
        assert not fetch.done()
        node.seal(A, client)
        entry = await fetch
        assert entry is not None and entry.num_pins == 1
        node.release(A, TRANSFERS)
        node.free([A])
        assert node.store.used_bytes == 0

    run(scene())


@pytest.mark.parametrize("end", ["given up", "freed", "never sealed"])
def test_a_fetch_of_what_is_not_sealed_in_the_end_finds_no_copy(end: str) -> None:
    async def scene() -> None:
        cluster = FakeCluster()
        node = cluster.add("here", config(seal_timeout_s=0.05))
        client = node.connect()
        await node.create(room(client, A, 100))
        fetch = await started(node.read_for_transfer(A))
        if end == "given up":
            node.abort(A, client)
        elif end == "freed":
            node.free([A])
        assert await fetch is None

    run(scene())


@pytest.mark.parametrize("end", ["sealed", "given up", "connection ended", "never sealed"])
def test_who_makes_an_object_that_another_client_writes_waits_for_its_end(end: str) -> None:
    """A task that runs again may reach the store before the end of the worker that ran it does."""

    async def scene() -> None:
        cluster = FakeCluster()
        node = cluster.add("here", config(seal_timeout_s=0.05))
        first, second = node.connect(), node.connect()
        await node.create(room(first, A, 100))
        again = await started(node.create(room(second, A, 100)))
        assert not again.done()
        if end == "sealed":
            node.seal(A, first)
        elif end == "given up":
            node.abort(A, first)
        elif end == "connection ended":
            node.disconnect(first)
        if end in ("sealed", "never sealed"):
            with pytest.raises(ObjectExists):
                await again
            assert node.store.contains(A) == (end == "sealed")
        else:
            await again
            node.seal(A, second)
            assert node.store.contains(A)

    run(scene())


def test_a_fetch_of_a_copy_that_only_arrives_finds_none_at_once() -> None:
    """Otherwise two nodes that copy from each other would wait for each other."""

    async def scene() -> None:
        cluster = FakeCluster()
        node = cluster.add("here", config())
        await put(node, node.connect(), B, 100)
        node.free([B])
        assert node.place_copy(A, ObjectHeader(100, b"", WorkerKey(b"owner"))) is not None
        assert await node.read_for_transfer(A) is None

    run(scene())


def test_a_cancelled_create_leaves_the_queue_and_lets_the_next_one_pass() -> None:
    async def scene() -> None:
        cluster = FakeCluster()
        node = cluster.add("here", config())
        client = node.connect()
        await put(node, client, A, 1000)
        large = await started(node.create(room(client, B, 1000)))
        small = await started(node.create(room(client, ObjectKey(b"c"), 10)))
        await asyncio.sleep(0)
        assert not small.done()
        await cancel(large)
        node.free([A])
        await small
        assert node.store.num_unsealed == 1
        await cluster.close()

    run(scene())


def test_a_create_that_waits_has_the_store_ask_for_help_and_say_who_waits_for_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pressure, "COLLECT_AFTER_S", 0.0)
    monkeypatch.setattr(pressure, "TELL_AFTER_S", 0.01)

    async def scene() -> None:
        cluster = FakeCluster()
        node = cluster.add("here", config(create_timeout_s=20))
        client = node.connect()
        heard: asyncio.Queue[tuple[str, str, bool]] = asyncio.Queue()
        node.pressure.watch(lambda *told: heard.put_nowait(told))
        await put(node, client, A, 1000)
        waiting = [await started(node.create(room(client, ObjectKey(name), 100))) for name in (b"b", b"c")]
        assert await heard.get() == ("", "", True)
        told, what, _ = await heard.get()
        assert what == "object_store_full"
        assert (
            "2 objects of together 200 bytes have waited for room" in told and "primary copies 1000" in told
        )
        assert "within 20 s fails" in told
        node.free([A])
        await asyncio.gather(*waiting)

    run(scene())


def test_what_was_granted_in_the_turn_of_a_cancellation_is_given_back() -> None:
    async def scene() -> None:
        cluster = FakeCluster()
        node = cluster.add("here", config())
        client = node.connect()
        await put(node, client, A, 1000)
        create = await started(node.create(room(client, B, 1000)))
        get = await started(node.get(client, [Wanted(ObjectKey(b"c"))], None))
        node.free([A])
        await cancel(create)
        await put(node, client, ObjectKey(b"c"), 10)
        await cancel(get)
        node.check_invariants()
        assert (node.store.num_unsealed, node.store.num_pins) == (0, 0)
        await cluster.close()

    run(scene())


def test_creates_that_wait_have_memory_before_pulls() -> None:
    async def scene() -> None:
        cluster = FakeCluster()
        node, far = cluster.add("here", config()), cluster.add("far", config())
        client, writer = node.connect(), far.connect()
        await put(far, writer, B, 600)
        await put(node, client, A, 1000)
        create = await started(node.create(room(client, ObjectKey(b"c"), 600)))
        get = await started(node.get(client, [Wanted(B, (FAR,))], None))
        await asyncio.sleep(0)
        node.free([A])
        await create
        assert not get.done()
        node.abort(ObjectKey(b"c"), client)
        (found,) = await get
        assert found.pulled and bytes(node.memory.view(found.offset, 600)) == content(B, 600)
        await cluster.close()

    run(scene())


def holds_something(node: NodeStore) -> bool:
    return bool(node.store.num_pins or node.store.num_unsealed)


def test_two_tasks_whose_arguments_fit_only_one_after_the_other_do_not_hold_one_half_each() -> None:
    async def scene() -> None:
        cluster = FakeCluster()
        node, far = cluster.add("here", config()), cluster.add("far", config(4096))
        writer, first, second = far.connect(), node.connect(), node.connect()
        names = [ObjectKey(name) for name in (b"a1", b"b1", b"b2", b"a2")]
        for name in names:
            await put(far, writer, name, 400)
        a1, b1, b2, a2 = (Wanted(name, (FAR,), 400) for name in names)
        one = await started(node.get(first, [a1, a2], None, priority=Priority.TASK_ARGUMENTS))
        other = await started(node.get(second, [b1, b2], None, priority=Priority.TASK_ARGUMENTS))
        assert {found.object_id for found in await one} == {a1.object_id, a2.object_id}
        assert not other.done() and node.store.num_pins == 2 and not node.store.num_unsealed
        node.disconnect(first)
        assert len(await other) == 2
        await cluster.close()

    run(scene())


@pytest.mark.parametrize("lower", [Priority.WAIT, Priority.TASK_ARGUMENTS])
def test_a_get_that_has_no_room_makes_what_is_less_urgent_give_way(lower: Priority) -> None:
    async def scene() -> None:
        cluster = FakeCluster()
        node, far = cluster.add("here", config()), cluster.add("far", config(4096))
        client, other, writer = node.connect(), node.connect(), far.connect()
        await put(far, writer, A, 900)
        await put(far, writer, B, 900)
        low = await started(node.get(client, [Wanted(A, (FAR,), 900)], None, priority=lower))
        while not node.store.num_unsealed:
            await asyncio.sleep(0)
        get = await started(node.get(other, [Wanted(B, (FAR,), 900)], None))
        (found,) = await get
        assert found.pulled and not low.done() and not node.store.num_unsealed
        node.release(B, other)
        (found,) = await low
        assert bytes(node.memory.view(found.offset, 900)) == content(A, 900)
        await cluster.close()

    run(scene())


def test_what_was_overtaken_for_long_has_its_turn_before_gets_that_came_later() -> None:
    async def scene() -> None:
        cluster = FakeCluster()
        node = cluster.add("here", config(overtaken_max_s=0))
        far = cluster.add("far", config(4096))
        client, other, writer = node.connect(), node.connect(), far.connect()
        await put(node, client, ObjectKey(b"own"), 900)
        for object_id in (A, B):
            await put(far, writer, object_id, 900)
        arguments = await started(
            node.get(client, [Wanted(A, (FAR,), 900)], None, priority=Priority.TASK_ARGUMENTS)
        )
        get = await started(node.get(other, [Wanted(B, (FAR,), 900)], None))
        node.free([ObjectKey(b"own")])
        await arguments
        assert not get.done()
        node.release(A, client)
        await get
        await cluster.close()

    run(scene())


def test_what_waits_for_room_holds_none_of_what_it_waits_with() -> None:
    async def scene() -> None:
        cluster = FakeCluster()
        node, far = cluster.add("here", config()), cluster.add("far", config(4096))
        client, other, writer = node.connect(), node.connect(), far.connect()
        for object_id in (A, B):
            await put(far, writer, object_id, 600)
        await node.get(client, [Wanted(A, (FAR,))], None)
        node.release(A, client)
        # A is here. With B it does not fit, and neither holder told how large B is.
        get = await started(node.get(client, [Wanted(A, (FAR,)), Wanted(B, (FAR,))], None))
        while node.pulls.num_active or not node.store.num_evicted and holds_something(node):
            await asyncio.sleep(0)
        assert not holds_something(node) and not get.done()
        # So whoever comes later than this get, and needs no copy, has all the memory.
        await node.create(room(other, ObjectKey(b"c"), 1000))
        await cancel(get)
        await cluster.close()

    run(scene())


def test_where_the_system_has_no_pages_copies_are_evicted_instead() -> None:
    async def scene() -> None:
        cluster = FakeCluster()
        node = cluster.add("here", config(create_timeout_s=0), PlainMemory(1024, pages_max_bytes=512))
        far = cluster.add("far", config())
        client, writer = node.connect(), far.connect()
        await put(far, writer, B, 500)
        await node.get(client, [Wanted(B, (FAR,))], None)
        with pytest.raises(StoreFull, match="wanted 400 bytes"):
            await node.create(room(client, A, 400))
        node.release(B, client)
        await put(node, client, A, 400)
        assert node.store.num_evicted == 1
        await cluster.close()

    run(scene())


def test_an_object_without_a_byte_waits_for_room_as_well_from_however_many_holders() -> None:
    async def scene() -> None:
        cluster = FakeCluster()
        for name in (b"far", b"farther"):
            holder = cluster.add(name.decode(), config())
            await put(holder, holder.connect(), A, 0)
        node = cluster.add("here", config())
        client = node.connect()
        await node.create(room(client, B, 1024))
        get = await started(node.get(client, [Wanted(A, (FAR, NodeKey(b"farther")), 0)], None))
        await cluster.settle()
        assert not get.done()
        node.abort(B, client)
        (found,) = await get
        assert (found.state, found.size_bytes) == (FoundState.FOUND, 0)
        await cluster.close()

    run(scene())


def test_freeing_an_object_stops_its_pull_and_gives_its_memory_back() -> None:
    async def scene() -> None:
        cluster = FakeCluster()
        node, far = cluster.add("here", config()), cluster.add("far", config())
        client, writer = node.connect(), far.connect()
        await put(far, writer, A, 1000)
        get = await started(node.get(client, [Wanted(A, (FAR,))], None))
        while not node.store.num_unsealed:
            await asyncio.sleep(0)
        node.free([A])
        (found,) = await get
        assert found.state is FoundState.LOST
        await cluster.settle()
        cluster.check_invariants()
        assert node.store.used_bytes == 0 and far.store.num_pins == 0
        await cluster.close()

    run(scene())


def test_primary_copies_are_listed_but_for_those_of_some_owners() -> None:
    async def scene() -> None:
        node = FakeCluster().add("here", config())
        client = node.connect()
        await put(node, client, A, 100)
        await put(node, client, B, 100)
        assert [row.object_id for row in node.primaries(set(), 10)] == [A, B]
        assert [row.object_id for row in node.primaries(set(), 1)] == [A]
        assert not node.primaries({WorkerKey(b"owner")}, 10)
        assert node.mark_primary([A, ObjectKey(b"not here")], is_primary=False) == [A]
        assert [row.object_id for row in node.primaries(set(), 10)] == [B]

    run(scene())
