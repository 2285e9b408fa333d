"""Copies between nodes under full stores and deaths: who waits for memory holds none, nobody holds one half
for ever, and one object to many nodes leaves its node twice or three times.

The books of every store are recounted at every instant (SimCluster.check_services): a Get that waits for room
has no pin, and there is no fetch and no memory for it.
"""

from __future__ import annotations

import asyncio
import errno
import random
from typing import Any

import pytest

from ray_mono.object_manager.admission import Priority
from ray_mono.object_manager.create_queue import RoomWanted
from ray_mono.object_manager.errors import StoreFull
from ray_mono.object_manager.get_queue import FoundState, GetQueue, Wanted
from ray_mono.object_manager.keys import NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.node_store import NodeStore
from tests.simulation import stores
from tests.simulation.checkers import Journal
from tests.simulation.cluster import SimCluster
from tests.simulation.loop import SimulationError
from tests.simulation.stores import PART_BYTES, SimStore
from tests.simulation.world import World

SIZE_BYTES = 120_000
"""Two fit in a small store, and three do not."""
NUM_OBJECTS = 8
LIMIT_S = 900.0
HOLDS_S = (0.0, 0.05, 1.0)
RETRY_S = 0.5


def content(object_id: ObjectKey) -> bytes:
    return random.Random(object_id).randbytes(SIZE_BYTES)


class CopyScene:
    """A cluster whose head makes objects, and readers on its nodes. What an owner knows, it knows at once."""

    def __init__(self, seed: int, num_nodes: int) -> None:
        self.world = World(seed)
        self.cluster = SimCluster(self.world, Journal())
        self.rng = random.Random(seed)
        self.num_nodes = num_nodes
        self.holders: dict[ObjectKey, list[NodeKey]] = {}
        self.num_read = 0

    def stores(self) -> list[SimStore]:
        """Those that live, the head's first."""
        return list(self.world.stores.values())

    async def start(self) -> None:
        """The head's store may be large, and those of the others hold two objects each."""
        await self.cluster.start([{}])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stores, "CAPACITY_BYTES", stores.SMALL_CAPACITY_BYTES)
            for number in range(self.num_nodes):
                self.world.network.add_host(f"node{number}")
                await self.cluster.start_node(f"node{number}", {})

    async def put(self, name: str) -> ObjectKey:
        head = self.stores()[0]
        object_id = ObjectKey(name.encode().ljust(28, b"."))
        await head.process.spawn(self._put(head, object_id))
        self.holders[object_id] = [head.node_store.node_id]
        return object_id

    async def _put(self, store: SimStore, object_id: ObjectKey) -> None:
        node = store.node_store
        client = node.connect()
        place = await node.create(RoomWanted(client, SIZE_BYTES, object_id, b"", WorkerKey(b"owner")))
        assert isinstance(place, int)
        node.memory.view(place, SIZE_BYTES)[:] = content(object_id)
        node.seal(object_id, client)

    async def read(self, store: SimStore, names: list[ObjectKey], priority: Priority, holds_s: float) -> None:
        """As a process does it that asks again until it has all."""
        node = store.node_store
        client = node.connect()
        while True:
            wanted = [Wanted(each, tuple(self.holders[each]), SIZE_BYTES) for each in names]
            # Readers hold what they have for a second at most: who finds no room for a minute (StoreFull)
            # waits for somebody who waits for it.
            try:
                found = await node.get(client, wanted, None, priority=priority)
            except StoreFull as error:  # the disk has no room either
                assert store.has_disk and "the simulated disk is full" in str(error)
                await asyncio.sleep(RETRY_S)
                continue
            for each in found:
                if each.pulled and node.node_id not in self.holders[each.object_id]:
                    self.holders[each.object_id].append(node.node_id)
            if all(each.state is FoundState.FOUND for each in found):
                break
            for each in found:
                if each.state is FoundState.FOUND:
                    node.release(each.object_id, client)
                else:
                    self.holders[each.object_id] = self._living(each.object_id)
            await asyncio.sleep(RETRY_S)
        for each in found:
            assert store.read(each) == content(each.object_id)
        await asyncio.sleep(holds_s)
        self.num_read += 1
        node.disconnect(client)

    def _living(self, object_id: ObjectKey) -> list[NodeKey]:
        living = {store.node_store.node_id for store in self.stores()}
        return [node_id for node_id in self.holders[object_id] if node_id in living]

    def run(self, scene: object) -> None:
        with self.world:
            self.world.check(self.cluster.check_services)
            self.world.run(scene, LIMIT_S)  # type: ignore[arg-type]


def broadcast(seed: int, num_killed: int) -> int:
    """One object to 8 nodes at once; returns how many bytes of it its node sent."""
    scene = CopyScene(seed, num_nodes=8)
    sent: list[int] = []

    async def play() -> None:
        await scene.start()
        head, *others = scene.stores()
        name = await scene.put("broadcast")
        tasks = [
            each.process.spawn(scene.read(each, [name], Priority.TASK_ARGUMENTS, 0.0)) for each in others
        ]
        for each in others[:num_killed]:
            await asyncio.sleep(scene.rng.uniform(0.01, 0.06))
            each.process.kill("a fault")
        while scene.num_read < 8 - num_killed:
            await asyncio.sleep(0.1)
        assert all(task.done() for task in tasks[num_killed:])
        sent.append(head.sent_bytes)

    scene.run(play())
    return sent[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_broadcast_to_eight_nodes_leaves_its_node_two_or_three_times(seed: int) -> None:
    assert broadcast(seed, num_killed=0) <= 3 * SIZE_BYTES


@pytest.mark.parametrize("seed", range(3))
def test_a_broadcast_in_which_nodes_of_the_tree_die_comes_to_the_others(seed: int) -> None:
    assert broadcast(seed, num_killed=3) <= 6 * SIZE_BYTES


def read_in_turmoil(seed: int) -> None:
    """Gets, waits and arguments on three nodes, of pairs of objects that their stores hold one or two of; one
    node dies in the middle."""
    scene = CopyScene(seed, num_nodes=3)

    async def play() -> None:
        await scene.start()
        _, *others = scene.stores()
        names = [await scene.put(f"object {number}") for number in range(NUM_OBJECTS)]
        tasks = []
        for _ in range(8):
            for each in others:
                chosen = scene.rng.sample(names, scene.rng.randint(1, 2))
                priority = scene.rng.choice(list(Priority))
                holds_s = scene.rng.choice(HOLDS_S)
                tasks.append((each, each.process.spawn(scene.read(each, chosen, priority, holds_s))))
            await asyncio.sleep(scene.rng.uniform(0.0, 0.2))
        others[0].process.kill("a fault")
        while not all(task.done() for each, task in tasks if each.process.is_alive):
            await asyncio.sleep(0.1)

    scene.run(play())


@pytest.mark.parametrize("seed", range(5))
def test_gets_waits_and_arguments_of_pairs_all_end_in_stores_that_hold_two(seed: int) -> None:
    read_in_turmoil(seed)


HOLDERS_FAULTS = ["none", "dies", "is slow", "evicts it", "is cut off"]


def read_from_several(seed: int, fault: str) -> int:
    """One object that the head and three more nodes have, read by a fourth; something happens to one of those
    in the middle. Returns how many bytes they sent for that."""
    scene = CopyScene(seed, num_nodes=4)
    sent: list[int] = []

    async def play() -> None:
        await scene.start()
        head, *others, reader = scene.stores()
        name = await scene.put("shared")
        for each in others:
            await each.process.spawn(scene.read(each, [name], Priority.GET, 0.0))
        assert len(scene.holders[name]) == 4
        before = sum(each.sent_bytes for each in (head, *others))
        task = reader.process.spawn(scene.read(reader, [name], Priority.GET, 0.0))
        await asyncio.sleep(scene.rng.uniform(0.0, 0.1))
        victim = scene.rng.choice(others)
        match fault:
            case "dies":
                victim.process.kill("a fault")
            case "is slow":
                victim.slow_down(20.0)
            case "evicts it":
                victim.node_store.free([name])
            case "is cut off":
                scene.world.network.partition(reader.process.host_name, victim.process.host_name)
        await task
        sent.append(sum(each.sent_bytes for each in (head, *others)) - before)

    scene.run(play())
    return sent[0]


@pytest.mark.parametrize("fault", HOLDERS_FAULTS)
@pytest.mark.parametrize("seed", range(4))
def test_an_object_comes_from_several_holders_whatever_happens_to_one(seed: int, fault: str) -> None:
    sent_bytes = read_from_several(seed, fault)
    assert sent_bytes == SIZE_BYTES or (fault != "none" and sent_bytes <= SIZE_BYTES + 2 * PART_BYTES)


@pytest.mark.parametrize("seed", range(6))
def test_gets_of_more_than_a_store_holds_end_with_a_disk_that_is_slow_or_full(seed: int) -> None:
    """All at once, by readers on each node, of whom some wait for the others."""
    scene = CopyScene(seed, num_nodes=3)

    async def play() -> None:
        await scene.start()
        _, *others = scene.stores()
        names = [await scene.put(f"object {number}") for number in range(NUM_OBJECTS)]
        tasks = []
        for each in others:
            if each.has_disk:
                for priority in (*Priority, Priority.GET):
                    chosen = scene.rng.sample(names, scene.rng.randint(1, NUM_OBJECTS))
                    tasks.append(each.process.spawn(scene.read(each, chosen, priority, 0.1)))
        for task in tasks:
            await task

    scene.run(play())


def test_of_a_holder_that_cannot_read_its_copy_another_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = CopyScene(0, num_nodes=2)
    read = NodeStore.content

    async def play() -> None:
        await scene.start()
        head, holder, reader = scene.stores()

        async def unreadable(store: NodeStore, *where: Any) -> memoryview:
            if store is head.node_store:
                raise OSError(errno.EIO, "it cannot be read")
            return await read(store, *where)

        name = await scene.put("shared")
        await holder.process.spawn(scene.read(holder, [name], Priority.GET, 0.0))
        monkeypatch.setattr(NodeStore, "content", unreadable)
        await reader.process.spawn(scene.read(reader, [name], Priority.GET, 0.0))

    scene.run(play())
    assert scene.num_read == 2


def is_found(message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        for seed in range(5):
            read_in_turmoil(seed)


def test_a_get_that_keeps_its_pins_when_it_gives_way_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GetQueue, "_let_go", lambda queue, get: None)
    is_found("waits for room and holds objects")
