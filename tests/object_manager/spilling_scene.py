"""A NodeStore with a disk, on which a test looks, and which it may hold up or break."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.create_queue import RoomWanted
from ray_mono.object_manager.get_queue import Found, FoundState, Wanted
from ray_mono.object_manager.keys import ClientKey, NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.stored_object import ObjectState
from tests.object_manager.fakes import FakeCluster, PlainDisk

TIMEOUT_S = 30.0
HERE = NodeKey(b"here")
OWNER = WorkerKey(b"owner")
A, B, C, D, E, F = (ObjectKey(bytes([65 + number])) for number in range(6))
SIZE = 256
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def content(object_id: ObjectKey, size_bytes: int) -> bytes:
    return random.Random(object_id).randbytes(size_bytes)


@dataclass
class Scene:
    """Room for four objects of SIZE, two of them in a file."""

    cluster: FakeCluster
    node: NodeStore
    disk: PlainDisk
    client: ClientKey

    async def put(self, *object_ids: ObjectKey, size_bytes: int = SIZE) -> None:
        for object_id in object_ids:
            wanted = RoomWanted(self.client, size_bytes, object_id, b"meta", OWNER)
            offset = await self.node.create(wanted)
            self.node.memory.view(offset, size_bytes)[:] = content(object_id, size_bytes)
            self.node.seal(object_id, self.client)
            self.node.check_invariants()

    def get(self, *object_ids: ObjectKey) -> Coroutine[Any, Any, tuple[Found, ...]]:
        return self.node.get(self.client, [Wanted(each, (HERE,)) for each in object_ids], None)

    def bytes_of(self, found: Found) -> bytes:
        assert found.state is FoundState.FOUND, found.reason
        if found.extent is not None:
            at = found.extent.offset
            return self.disk.files[found.extent.file][at : at + found.size_bytes]
        return bytes(self.node.memory.view(found.offset, found.size_bytes))

    async def read(self, *object_ids: ObjectKey) -> None:
        """Each is right; nothing stays pinned."""
        for object_id in object_ids:
            (found,) = await self.get(object_id)
            assert self.bytes_of(found) == content(object_id, found.size_bytes)
            self.node.release(object_id, self.client)

    def state(self, object_id: ObjectKey) -> ObjectState | None:
        for entry in self.node.store.objects():
            if entry.object_id == object_id:
                return entry.state
        return None

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await asyncio.sleep(0)


@asynccontextmanager
async def scene(disk: PlainDisk | None = None, **changes: Any) -> AsyncIterator[Scene]:
    settings = {
        "capacity_bytes": 4 * SIZE,
        "min_spilling_size_bytes": 2 * SIZE,
        "file_share": 1.0,
        "files_ahead": 0,
        "object_spilling_threshold": 1.0,
        "create_timeout_s": 0.05,
        "spill_retry_s": 0.01,
        **changes,
    }
    cluster = FakeCluster()
    disk = disk or PlainDisk()
    node = cluster.add("here", ObjectManagerConfig(**settings), disk=disk)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield Scene(cluster, node, disk, node.connect())
            await cluster.settle()
            node.check_invariants()
    finally:
        await cluster.close()


def run(play: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await play()

    asyncio.run(bounded())


async def started(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(coroutine)
    for _ in range(5):
        await asyncio.sleep(0)
    return task
