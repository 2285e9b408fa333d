"""Worlds for a NodeStore without files and sockets: memory in this process, and streams that copy from one
NodeStore to another."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Coroutine, Sequence
from typing import Any

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.world import SystemClock
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.outgoing import Asked, Outgoing
from ray_mono.object_manager.puller import Puller
from ray_mono.object_manager.seams import (
    Fetch,
    Landing,
    PeerAddress,
    Prepare,
    TransferFailed,
    UnreadableSource,
)
from ray_mono.object_manager.spill_files import Extent, SpillFile, aligned


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


class PlainDisk:
    """Implements SpillDisk. A test may hold it up (`hold`, `go_on`), and break a directory."""

    def __init__(self, num_directories: int = 1, num_external: int = 0) -> None:
        self.num_directories = num_directories
        self.num_external = num_external
        self.files: dict[SpillFile, bytes | bytearray] = {}
        self.broken: dict[int, OSError] = {}
        self.unreadable: set[SpillFile] = set()
        self.num_under_way = 0
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()

    def hold(self) -> None:
        self._may_go_on.clear()

    def go_on(self) -> None:
        self._may_go_on.set()

    def path(self, file: SpillFile) -> str:
        return f"{file.directory}/{file.number}"

    async def write(self, extents: Sequence[Extent], contents: Sequence[memoryview]) -> None:
        content = bytearray(extents[-1].offset + aligned(extents[-1].size_bytes))
        await self._turn()
        for extent, part in zip(extents, contents, strict=True):
            content[extent.offset : extent.offset + extent.size_bytes] = part
        self._store(extents[0].file, bytes(content))

    def _store(self, file: SpillFile, content: bytes) -> None:
        if file.directory in self.broken:
            raise self.broken[file.directory]
        assert file not in self.files
        self.files[file] = bytearray(content)

    async def read(self, extent: Extent, start: int, target: memoryview, prepare: Prepare) -> None:
        await self.check(extent)
        prepare(0, len(target))
        at = extent.offset + start
        target[:] = self.files[extent.file][at : at + len(target)]

    async def check(self, extent: Extent) -> None:
        await self._turn()
        if extent.file not in self.files:
            raise FileNotFoundError(errno.ENOENT, "it is gone")
        if extent.file in self.unreadable:
            raise OSError(errno.EIO, "it cannot be read")

    async def copy(self, sources: Sequence[Extent], targets: Sequence[Extent]) -> None:
        for each in sources:
            try:
                await self.check(each)
            except OSError as error:
                raise UnreadableSource(each, error) from error
        parts = [
            memoryview(self.files[each.file])[each.offset : each.offset + each.size_bytes] for each in sources
        ]
        await self.write(targets, parts)

    async def make(self, file: SpillFile, size_bytes: int) -> None:
        await self._turn()
        self._store(file, bytes(size_bytes))

    async def made(self, file: SpillFile) -> None:
        pass

    def map(self, file: SpillFile, size_bytes: int) -> memoryview:
        return memoryview(self.files[file])[:size_bytes]

    async def remove(self, file: SpillFile) -> None:
        await asyncio.sleep(0)
        del self.files[file]

    def close(self) -> None:
        self.files.clear()

    async def _turn(self) -> None:
        self.num_under_way += 1
        await asyncio.sleep(0)
        await self._may_go_on.wait()
        self.num_under_way -= 1


class DirectStreams:
    """Implements TransferStreams of one node in a FakeCluster; breaks off as often as its failure_rate
    says."""

    def __init__(self, cluster: FakeCluster, name: str) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self._cluster = cluster
        self._name = name

    async def fetch(self, peer: PeerAddress, fetch: Fetch, landing: Landing) -> bool:
        await self._pause()
        asked = Asked(
            fetch.object_id,
            NodeKey(self._name.encode()),
            landing.at,
            0 if landing.end is None else landing.end - landing.at,
            fetch.max_bytes,
            fetch.avoided,
            fetch.is_sent_on,
            fetch.goes_on,
        )
        parcel = await self._cluster.outgoing[peer].open(asked)
        if parcel is None:
            raise TransferFailed("it holds no copy")
        try:
            memory = landing.place(parcel.header)
            if memory is None or parcel.offset + parcel.length < (landing.end or 0):
                return False
            async for content in parcel.parts():
                for at in range(0, len(content), 100):
                    await self._pause()
                    part = content[at : at + 100]
                    start = landing.at
                    memory[start : start + len(part)] = part
                    landing.arrived(len(part))
                    self.received_bytes += len(part)
                    self._cluster.sent_bytes[peer] = self._cluster.sent_bytes.get(peer, 0) + len(part)
        except OSError as error:
            raise TransferFailed(f"it broke off: {error}") from error
        finally:
            parcel.close()
        return True

    async def free(self, peer: PeerAddress, object_ids: Sequence[ObjectKey]) -> None:
        await self._pause()
        self._cluster.nodes[peer].free(object_ids)

    def drop(self, peer: PeerAddress) -> None:
        pass

    async def close(self) -> None:
        pass

    async def _pause(self) -> None:
        rng = self._cluster.rng
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        if rng.random() < self._cluster.failure_rate:
            raise TransferFailed("the stream broke")


class FakeCluster:
    """Nodes in one process. Its failures are its background tasks' and come out of close()."""

    def __init__(self, seed: int = 0, failure_rate: float = 0.0) -> None:
        self.nodes: dict[PeerAddress, NodeStore] = {}
        self.outgoing: dict[PeerAddress, Outgoing] = {}
        self.sent_bytes: dict[PeerAddress, int] = {}
        self.rng = random.Random(seed)
        self.failure_rate = failure_rate
        self._failures: list[BaseException] = []
        self._tasks = BackgroundTasks(lambda error, name: self._failures.append(error))

    def add(
        self,
        name: str,
        config: ObjectManagerConfig,
        memory: PlainMemory | None = None,
        disk: PlainDisk | None = None,
    ) -> NodeStore:
        memory = memory or PlainMemory(config.capacity_bytes)
        node = NodeStore(config, NodeKey(name.encode()), memory, SystemClock(), self.spawn, disk)
        self.nodes[PeerAddress(name, 0)] = node
        self.outgoing[PeerAddress(name, 0)] = Outgoing(node, config)
        Puller(node, memory, DirectStreams(self, name), self, self.spawn)
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
