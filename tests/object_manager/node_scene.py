"""What scenes with NodeStores share: small ones, objects in them, and a bound."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.create_queue import RoomWanted
from ray_mono.object_manager.keys import ClientKey, ObjectKey, WorkerKey
from ray_mono.object_manager.node_store import NodeStore

TIMEOUT_S = 30.0


def run(scene: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await scene

    asyncio.run(bounded())


def config(capacity_bytes: int = 1024, **changes: Any) -> ObjectManagerConfig:
    return ObjectManagerConfig(
        capacity_bytes=capacity_bytes, **{"backing_ahead_bytes": 128, "backing_step_bytes": 128, **changes}
    )


def room(client: ClientKey, object_id: ObjectKey, size_bytes: int) -> RoomWanted:
    return RoomWanted(client, size_bytes, object_id, b"", WorkerKey(b"owner"))


async def put(node: NodeStore, client: ClientKey, object_id: ObjectKey, size_bytes: int) -> None:
    offset = await node.create(room(client, object_id, size_bytes))
    node.memory.view(offset, size_bytes)[:] = content(object_id, size_bytes)
    node.seal(object_id, client)


def content(object_id: ObjectKey, size_bytes: int) -> bytes:
    return random.Random(object_id).randbytes(size_bytes)
