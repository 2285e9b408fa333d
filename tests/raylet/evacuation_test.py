"""Which objects leave a node together, and for where."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, object_manager_pb2, raylet_pb2
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.evacuation import BATCH_BYTES_MAX, BATCH_OBJECTS_MAX, Evacuation, batches, by_room
from tests.simulation.world import World


def take(size_bytes: int) -> raylet_pb2.ObjectToTake:
    return raylet_pb2.ObjectToTake(size_bytes=size_bytes)


def node(name: bytes, free_bytes: int) -> NodeSnapshot:
    free = ResourceSet.from_units({"object_store_memory": free_bytes})
    return NodeSnapshot(name, "host", 1, free, free)


def sizes(objects: list[raylet_pb2.ObjectToTake]) -> list[list[int]]:
    return [[item.size_bytes for item in batch] for batch in batches(objects)]


def test_small_objects_leave_together_and_large_ones_alone() -> None:
    half, large = BATCH_BYTES_MAX // 2, BATCH_BYTES_MAX * 3
    assert sizes([take(1), take(2)]) == [[1, 2]]
    assert sizes([take(half), take(half), take(half)]) == [[half, half], [half]]
    assert sizes([take(1), take(large), take(1)]) == [[1], [large], [1]]
    assert [len(batch) for batch in batches([take(0)] * (BATCH_OBJECTS_MAX + 1))] == [BATCH_OBJECTS_MAX, 1]
    assert batches([]) == []


def test_nodes_with_room_come_first_and_then_those_with_most_of_it() -> None:
    nodes = [node(b"a", 1), node(b"b", 100), node(b"c", 3)]
    assert [one.node_id for one in by_room(nodes, 50, b"key")] == [b"b", b"c", b"a"]


class Emptied:
    """A node with one value, of an owner that the head knows, or does not."""

    def __init__(self, world: World, is_known: bool) -> None:
        self.num_asked = 0
        self._world = world
        self._is_known = is_known
        world.network.add_host("here")
        transport = world.transport(world.network.start_process("here", "raylet"))
        store: Any = SimpleNamespace(primaries=self._primaries)
        cluster: Any = SimpleNamespace(nodes=list)
        self._evacuation = Evacuation(
            b"n" * 28, world.clock, transport, 1.0, Clients(), cluster, store, self._workers
        )

    async def _primaries(self, except_owners: Any, most: int) -> object_manager_pb2.ListPrimariesReply:
        row = object_manager_pb2.PrimaryCopy(object_id=b"o" * 28, owner_worker_id=b"owner", size_bytes=1)
        return object_manager_pb2.ListPrimariesReply(objects=[row])

    async def _workers(self) -> list[common_pb2.WorkerInfo]:
        self.num_asked += 1
        return [common_pb2.WorkerInfo(worker_id=b"owner", is_alive=True)] if self._is_known else []

    async def rounds(self, seconds: float) -> None:
        end_s = self._world.clock.time_s() + seconds
        while self._world.clock.time_s() < end_s:
            assert await self._evacuation.round() == 1
            await asyncio.sleep(0.2)


@pytest.mark.parametrize(("is_known", "most_asked"), [(True, 1), (False, 12)])
def test_the_head_is_asked_for_an_owner_once_and_ever_less_often_for_one_that_it_does_not_know(
    is_known: bool, most_asked: int
) -> None:
    with World(seed=1) as world:
        node = Emptied(world, is_known)
        world.run(node.rounds(60.0), 600.0)
    assert 1 <= node.num_asked <= most_asked


def test_batches_take_turns_among_nodes_with_room() -> None:
    nodes = [node(b"a", 100), node(b"b", 100)]
    first = {by_room(nodes, 50, bytes([number]) * 8)[0].node_id for number in range(20)}
    assert first == {b"a", b"b"}
