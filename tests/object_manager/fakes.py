"""Worlds for a NodeStore without files and sockets: memory in this process, and streams that copy from one
NodeStore to another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from typing import Any

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.world import SystemClock
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import TRANSFERS, NodeKey, ObjectKey
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.puller import Puller
from ray_mono.object_manager.seams import Landing, ObjectHeader, PeerAddress, TransferFailed


class PlainMemory:
    """Implements SharedMemory. `pages_max_bytes` is all that the system has."""

    path = ""

    def __init__(self, capacity_bytes: int, pages_max_bytes: int | None = None) -> None:
        self.backed_bytes = 0
        self.pages_max_bytes = capacity_bytes if pages_max_bytes is None else pages_max_bytes
        self._bytes = memoryview(bytearray(capacity_bytes))

    def extend(self, until_bytes: int) -> bool:
        if until_bytes > self.pages_max_bytes:
            return False
        self.backed_bytes = max(self.backed_bytes, until_bytes)
        return True

    def view(self, offset: int, length: int) -> memoryview:
        assert offset + length <= self.backed_bytes, "memory without pages was granted"
        return self._bytes[offset : offset + length]

    def prepare(self, offset: int, length: int) -> None:
        pass

    def close(self) -> None:
        pass


class DirectStreams:
    """Implements TransferStreams between the NodeStores of one process; breaks off as often as `failure_rate`
    says."""

    def __init__(self, nodes: dict[PeerAddress, NodeStore], rng: random.Random, failure_rate: float) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self._nodes = nodes
        self._rng = rng
        self._failure_rate = failure_rate

    async def fetch(self, peer: PeerAddress, object_id: ObjectKey, max_bytes: int, landing: Landing) -> bool:
        holder = self._nodes[peer]
        await self._pause()
        entry = await holder.read_for_transfer(object_id)
        if entry is None:
            raise TransferFailed("it holds no copy")
        try:
            memory = landing.place(ObjectHeader(entry.size_bytes, entry.metadata, entry.owner))
            if memory is None or (max_bytes and entry.size_bytes > max_bytes):
                return False
            while landing.received_bytes < entry.size_bytes:
                await self._pause()
                start = landing.received_bytes
                part = holder.memory.view(entry.offset, entry.size_bytes)[start : start + 100]
                memory[start : start + len(part)] = part
                landing.received_bytes += len(part)
                self.received_bytes += len(part)
        finally:
            holder.release(object_id, TRANSFERS)
        return True

    async def free(self, peer: PeerAddress, object_ids: Sequence[ObjectKey]) -> None:
        await self._pause()
        self._nodes[peer].free(object_ids)

    def drop(self, peer: PeerAddress) -> None:
        pass

    async def close(self) -> None:
        pass

    async def _pause(self) -> None:
        for _ in range(self._rng.randrange(4)):
            await asyncio.sleep(0)
        if self._rng.random() < self._failure_rate:
            raise TransferFailed("the stream broke")


class FakeCluster:
    """Nodes in one process. Its failures are its background tasks' and come out of close()."""

    def __init__(self, seed: int = 0, failure_rate: float = 0.0) -> None:
        self.nodes: dict[PeerAddress, NodeStore] = {}
        self.streams = DirectStreams(self.nodes, random.Random(seed), failure_rate)
        self._failures: list[BaseException] = []
        self._tasks = BackgroundTasks(lambda error, name: self._failures.append(error))

    def add(self, name: str, config: ObjectManagerConfig, memory: PlainMemory | None = None) -> NodeStore:
        memory = memory or PlainMemory(config.capacity_bytes)
        node = NodeStore(config, NodeKey(name.encode()), memory, SystemClock(), self.spawn)
        self.nodes[PeerAddress(name, 0)] = node
        Puller(node, memory, self.streams, self, self.spawn)
        return node

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[Any]:
        return self._tasks.spawn(coroutine, name)

    async def find(self, node_id: NodeKey, timeout_s: float) -> PeerAddress:
        """Implements AddressBook."""
        await asyncio.sleep(0)
        return PeerAddress(node_id.decode(), 0)

    def check_invariants(self) -> None:
        for node in self.nodes.values():
            node.check_invariants()

    async def settle(self) -> None:
        """Until nothing goes on in the background."""
        while len(self._tasks):
            await asyncio.sleep(0)

    async def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        await self._tasks.close()
        for failure in self._failures:
            raise failure
