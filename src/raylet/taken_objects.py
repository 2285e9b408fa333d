"""This node takes primary copies from one that is drained (evacuation.py)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ray_mono.protobuf import common_pb2, core_worker_pb2, raylet_pb2
from ray_mono.protobuf.core_worker_rpc import CoreWorkerServiceAsyncStub
from ray_mono.raylet.store_client import StoreClient
from ray_mono.rpc.surface import RpcError, Transport

TOLD_TIMEOUT_S = 5.0
"""For an owner. One that is slower is asked for again in the next round."""

logger = logging.getLogger(__name__)


class TakenObjects:
    """Of one raylet."""

    def __init__(
        self, node_id: bytes, transport: Transport, connect_timeout_s: float, store: StoreClient
    ) -> None:
        self._node_id = node_id
        self._transport = transport
        self._connect_timeout_s = connect_timeout_s
        self._store = store

    async def take(self, from_node_id: bytes, objects: Sequence[raylet_pb2.ObjectToTake]) -> list[bytes]:
        """Returns the ids of those whose primary copies are here now. Raises RpcError.

        A copy stays pinned until its owner knows of it and it is the primary one: it cannot be evicted
        between.
        """
        copied = dict.fromkeys(await self._store.copy(from_node_id, objects))
        try:
            told = await self._tell_owners([item for item in objects if item.object_id in copied])
            return await self._store.mark_primary(told, is_primary=True)
        finally:
            self._store.release(copied)

    async def _tell_owners(self, objects: Sequence[raylet_pb2.ObjectToTake]) -> list[bytes]:
        """Returns those whose owners know."""
        by_owner: dict[bytes, list[raylet_pb2.ObjectToTake]] = {}
        for item in objects:
            by_owner.setdefault(item.owner.worker_id, []).append(item)
        told: list[bytes] = []
        for owned in by_owner.values():
            try:
                await self._tell(owned[0].owner, [item.object_id for item in owned])
            except RpcError as error:
                logger.info("owner %s was not told of its objects: %s", owned[0].owner.worker_id.hex(), error)
                continue
            told += [item.object_id for item in owned]
        return told

    async def _tell(self, owner: common_pb2.Address, object_ids: Sequence[bytes]) -> None:
        channel = await self._transport.connect(f"{owner.host}:{owner.port}", self._connect_timeout_s)
        try:
            stub = CoreWorkerServiceAsyncStub(channel)
            for object_id in object_ids:
                request = core_worker_pb2.ObjectLocationRequest(object_id=object_id, node_id=self._node_id)
                await stub.AddObjectLocation(request, timeout_s=TOLD_TIMEOUT_S)
        finally:
            channel.close()
