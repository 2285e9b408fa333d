"""One object to many nodes: its node sends few copies, and the others pass it on as it comes."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.create_queue import RoomWanted
from ray_mono.object_manager.get_queue import Found, FoundState, Wanted
from ray_mono.object_manager.keys import NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.seams import PeerAddress
from tests.object_manager.fakes import FakeCluster
from tests.object_manager.harness import connect, node, noise, run, small_gcs

MIB = 1 << 20
SIZE_BYTES = 20_000
FAR = NodeKey(b"far")
A = ObjectKey(b"a")


async def put(node: NodeStore) -> None:
    client = node.connect()
    offset = await node.create(RoomWanted(client, SIZE_BYTES, A, b"", WorkerKey(b"owner")))
    assert isinstance(offset, int)
    node.memory.view(offset, SIZE_BYTES)[:] = noise(SIZE_BYTES)
    node.seal(A, client)


async def until_found(node: NodeStore) -> Found:
    """Reads A as a process does, which asks again if nobody gave it."""
    client = node.connect()
    while True:
        (found,) = await node.get(client, [Wanted(A, (FAR,))], None)
        if found.state is FoundState.FOUND:
            return found


async def broadcast(cluster: FakeCluster, num_nodes: int) -> int:
    """Has all nodes but the first copy one object of it at once; returns how many copies the first sent."""
    settings = ObjectManagerConfig(1 << 16, sent_on_bytes_min=1000, send_slice_bytes=1000)
    far = cluster.add("far", settings)
    nodes = [cluster.add(f"n{number}", settings) for number in range(num_nodes)]
    await put(far)
    copies = await asyncio.gather(*(until_found(each) for each in nodes))
    for each, found in zip(nodes, copies, strict=True):
        assert bytes(each.memory.view(found.offset, SIZE_BYTES)) == noise(SIZE_BYTES)
    await cluster.settle()
    cluster.check_invariants()
    sent_bytes = sum(cluster.sent_bytes.values())
    assert cluster.failure_rate or sent_bytes == num_nodes * SIZE_BYTES
    assert all(each.store.num_pins == 1 for each in nodes) and far.store.num_pins == 0
    await cluster.close()
    return -(-cluster.sent_bytes[PeerAddress("far", 0)] // SIZE_BYTES)


@pytest.mark.parametrize("num_nodes", [1, 2, 8, 40])
def test_of_an_object_that_many_nodes_want_at_once_its_node_sends_two_copies(num_nodes: int) -> None:
    async def scene() -> None:
        assert await broadcast(FakeCluster(), num_nodes) <= 2

    run(scene())


@pytest.mark.parametrize("seed", range(10))
def test_a_tree_whose_streams_break_all_the_time_brings_the_object_to_all(seed: int) -> None:
    async def scene() -> None:
        assert await broadcast(FakeCluster(seed, failure_rate=0.005), 8) <= 8

    run(scene())


def test_real_nodes_that_want_an_object_at_once_take_it_from_each_other(session_base: Path) -> None:
    data = noise(48 * MIB)
    names = [f"n{number}" for number in range(6)]

    async def scene() -> None:
        async with contextlib.AsyncExitStack() as stack:
            gcs = await stack.enter_async_context(small_gcs(session_base))
            far = await stack.enter_async_context(node(gcs, session_base, "far", 64 * MIB))
            near = [
                await stack.enter_async_context(node(gcs, session_base, name, 64 * MIB)) for name in names
            ]
            writer = await stack.enter_async_context(connect(far))
            readers = [await stack.enter_async_context(connect(each)) for each in near]
            await writer.put("a", data)
            # All have a connection to the holder, so that they ask at once.
            await writer.put("small", b"1")
            await asyncio.gather(*(each.read("small", locations=(far.node_id,)) for each in readers))
            sent_bytes = (await writer.stats()).stream_sent_bytes
            copies = await asyncio.gather(*(each.read("a", locations=(far.node_id,)) for each in readers))
            assert all(copy == data for copy in copies)
            sent_bytes = (await writer.stats()).stream_sent_bytes - sent_bytes
            assert sent_bytes <= 3 * len(data)  # a late one may find a place free again
            stats = [await each.stats() for each in readers]
            assert sum(each.stream_sent_bytes for each in stats) >= 3 * len(data)
            assert sum(each.stream_received_bytes for each in stats) == len(names) * (len(data) + 1)

    run(scene())
