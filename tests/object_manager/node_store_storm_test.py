"""A few NodeStores under thousands of random requests: nothing hangs, nothing leaks, every byte is right."""

from __future__ import annotations

import asyncio
import random

import pytest

from ray_mono.object_manager.admission import Priority
from ray_mono.object_manager.errors import StoreError
from ray_mono.object_manager.get_queue import Found, FoundState, Wanted
from ray_mono.object_manager.keys import ClientKey, NodeKey, ObjectKey
from ray_mono.object_manager.node_store import NodeStore
from tests.object_manager.fakes import FakeCluster
from tests.object_manager.node_scene import config, content, put, room, run


class Storm:
    """Clients on three small nodes do whatever comes to their minds.

    Objects are made once, by the node that their number names.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.cluster = FakeCluster(seed, failure_rate=0.02)
        # Full stores are part of it; nobody waits long.
        small = config(pulls_active_max=2, create_timeout_s=0.005, pull_memory_timeout_s=0.005)
        self.nodes = [self.cluster.add(f"n{number}", small) for number in range(3)]
        self.made: dict[ObjectKey, int] = {}  # the size of what was sealed somewhere and not freed yet
        self.next_number = 0
        self.found = 0

    async def client(self, node: NodeStore) -> None:
        client = node.connect()
        pins: list[Found] = []
        for _ in range(self.rng.randrange(5, 25)):
            act = self.rng.choice([self.make, self.read, self.read, self.let_go, self.free])
            try:
                await act(node, client, pins)
            except StoreError:
                pass
            self.cluster.check_invariants()
            for pin in pins:
                assert bytes(node.memory.view(pin.offset, pin.size_bytes)) == content(
                    pin.object_id, pin.size_bytes
                )
        node.disconnect(client)

    async def make(self, node: NodeStore, client: ClientKey, pins: list[Found]) -> None:
        self.next_number += 1
        object_id, size_bytes = ObjectKey(self.next_number.to_bytes(4, "big")), self.rng.randrange(500)
        if self.rng.random() < 0.1:
            await node.create(room(client, object_id, size_bytes))  # and never sealed
        else:
            await put(node, client, object_id, size_bytes)
            self.made[object_id] = size_bytes

    async def read(self, node: NodeStore, client: ClientKey, pins: list[Found]) -> None:
        if not self.made:
            return
        chosen = self.rng.sample(list(self.made), min(len(self.made), self.rng.randrange(1, 4)))
        everywhere = tuple(other.node_id for other in self.nodes)
        timeout_s = self.rng.choice([0, 0.001, 0.01, None])
        get = asyncio.ensure_future(
            node.get(
                client,
                [self.wanted(object_id, everywhere) for object_id in chosen],
                timeout_s,
                may_go_elsewhere=self.rng.random() < 0.3,
                priority=self.rng.choice(list(Priority)),
            )
        )
        if self.rng.random() < 0.1:
            await asyncio.sleep(0)
            get.cancel()
            await asyncio.wait([get])
            if get.cancelled():
                return
        found = [item for item in await get if item.state is FoundState.FOUND]
        self.found += len(found)
        pins += found

    def wanted(self, object_id: ObjectKey, everywhere: tuple[NodeKey, ...]) -> Wanted:
        """Its owner may not know its size."""
        return Wanted(object_id, everywhere, self.made[object_id] if self.rng.random() < 0.7 else 0)

    async def let_go(self, node: NodeStore, client: ClientKey, pins: list[Found]) -> None:
        while pins:
            node.release(pins.pop().object_id, client)

    async def free(self, node: NodeStore, client: ClientKey, pins: list[Found]) -> None:
        if self.made and self.rng.random() < 0.5:
            object_id = self.rng.choice(list(self.made))
            del self.made[object_id]
            for other in self.nodes:
                other.free([object_id])

    async def run(self) -> None:
        for _ in range(3):
            await asyncio.gather(*(self.client(self.rng.choice(self.nodes)) for _ in range(6)))
        await self.cluster.settle()
        for node in self.nodes:
            node.check_invariants()
            store = node.store
            assert (
                store.num_pins,
                store.num_unsealed,
                len(node.creates),
                len(node.gets),
                len(node.pulls),
            ) == (0, 0, 0, 0, 0)
            node.free([entry.object_id for entry in store.objects()])
            assert store.used_bytes == 0
        await self.cluster.close()


@pytest.mark.parametrize("seed", range(30))
def test_a_storm_of_requests_leaves_nothing(seed: int) -> None:
    async def scene() -> None:
        storm = Storm(seed)
        await storm.run()
        assert storm.found

    run(scene())
