"""The raylet's connection to the object manager of its node: one life, so when it ends the raylet ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence

from ray_mono.common.scheduling.resources import OBJECT_STORE_MEMORY, SCALE, ResourceSet
from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2, object_manager_pb2, object_manager_rpc, raylet_pb2
from ray_mono.raylet.effects import CollectGarbage, Effect, WarnJob
from ray_mono.rpc.surface import AsyncChannel, RpcError, StatusCode, Transport

logger = logging.getLogger(__name__)

RETRY_PERIOD_S = 0.05
"""Both start at the same time, and the object manager takes some tenths of a second until it listens."""
TELL_AFTER_S = 1.0
STATS_TIMEOUT_S = 5.0
COPY_TIMEOUT_MS = 60_000
EXPLAIN_TIMEOUT_S = 1.0
"""Less than whoever asks this raylet waits for its answer."""


class StoreClient:
    """Tells the store what it cannot see itself. A raylet may be without one: then nothing is told."""

    def __init__(
        self, socket_path: str, pid: int, transport: Transport, clock: Clock, connect_timeout_s: float
    ) -> None:
        """socket_path: the object manager's; empty for a raylet without a store."""
        self._socket_path = socket_path
        self._pid = pid
        self._transport = transport
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._channel: AsyncChannel | None = None
        self._store: object_manager_rpc.ObjectStoreServiceAsyncStub | None = None

    async def connect(self, on_end: Callable[[str], None]) -> None:
        """Waits for the object manager, at most connect_timeout_s; then raises RpcError UNAVAILABLE.

        on_end(reason): the connection ended.
        """
        if not self._socket_path:
            return
        self._channel = channel = await self._reach()
        self._store = object_manager_rpc.ObjectStoreServiceAsyncStub(channel)
        request = object_manager_pb2.ConnectClientRequest(pid=self._pid, is_raylet=True)
        await self._store.ConnectClient(request, timeout_s=self._connect_timeout_s)
        channel.on_close(lambda reason: on_end(f"the object manager at {self._address} is gone: {reason}"))

    async def _reach(self) -> AsyncChannel:
        timeout_s = self._connect_timeout_s
        start_s = self._clock.time_s()
        told = False
        while True:
            try:
                return await self._transport.connect(self._address, timeout_s)
            except RpcError as error:
                waited_s = self._clock.time_s() - start_s
                if error.code != StatusCode.UNAVAILABLE or waited_s >= timeout_s:
                    message = f"no object manager at {self._address}: {error.message}"
                    raise RpcError(error.code, message) from error
                if waited_s >= TELL_AFTER_S and not told:
                    told = True
                    address = self._address
                    logger.info("waiting for the object manager at %s (at most %g s)", address, timeout_s)
                await asyncio.sleep(RETRY_PERIOD_S)

    @property
    def _address(self) -> str:
        return f"unix:{self._socket_path}"

    async def watch_pressure(self, host: str, apply: Callable[[list[Effect]], None]) -> None:
        """While the connection lasts: what is to be done when the store has been full for a while."""
        if self._store is None:
            return
        with contextlib.suppress(RpcError):
            async for pressure in self._store.WatchPressure(common_pb2.Empty()):
                if pressure.message:
                    apply([WarnJob(b"", pressure.type, f"{host}: {pressure.message}")])
                elif pressure.everywhere:
                    apply([CollectGarbage()])

    async def explain(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        """See ObjectStoreService. Raises RpcError."""
        if self._store is None:
            raise RpcError(StatusCode.UNAVAILABLE, "this node has no object store")
        return await self._store.Explain(
            common_pb2.ExplainRequest(subject=subject), timeout_s=EXPLAIN_TIMEOUT_S
        )

    def collect_garbage(self) -> None:
        """Has every process of this node collect its own."""
        if self._store is not None:
            self._store.CollectGarbage.notify(common_pb2.Empty())

    async def without_used(self, available: ResourceSet) -> ResourceSet:
        """What is available of a node, less the memory that the store's objects take."""
        if self._store is None:
            return available
        try:
            stats = await self._store.GetStats(common_pb2.Empty(), timeout_s=STATS_TIMEOUT_S)
        except RpcError:
            return available
        free = max(0, available.get(OBJECT_STORE_MEMORY) - stats.used_bytes * SCALE)
        return ResourceSet({**dict(available.items()), OBJECT_STORE_MEMORY: free})

    # ---- nodes that are drained. All of these raise RpcError.

    async def primaries(
        self, except_owners: Sequence[bytes], most: int
    ) -> object_manager_pb2.ListPrimariesReply:
        if self._store is None:
            return object_manager_pb2.ListPrimariesReply()
        request = object_manager_pb2.ListPrimariesRequest(except_owner_worker_ids=except_owners, most=most)
        return await self._store.ListPrimaries(request, timeout_s=STATS_TIMEOUT_S)

    async def mark_primary(self, object_ids: Sequence[bytes], is_primary: bool) -> list[bytes]:
        """Returns those that are here."""
        if self._store is None:
            return []
        request = object_manager_pb2.MarkPrimaryRequest(object_ids=object_ids, is_primary=is_primary)
        return list((await self._store.MarkPrimary(request, timeout_s=STATS_TIMEOUT_S)).object_ids)

    async def copy(self, from_node_id: bytes, objects: Iterable[raylet_pb2.ObjectToTake]) -> list[bytes]:
        """Copies objects here. Returns those that are here now, pinned until `release`."""
        if self._store is None:
            return []
        request = object_manager_pb2.GetRequest(
            objects=[
                object_manager_pb2.ObjectWanted(
                    object_id=item.object_id,
                    location_node_ids=[from_node_id],
                    owner_worker_id=item.owner.worker_id,
                    size_bytes=item.size_bytes,
                )
                for item in objects
            ],
            timeout_ms=COPY_TIMEOUT_MS,
            may_go_elsewhere=True,
            priority=object_manager_pb2.GetRequest.WAIT,
        )
        # Not cancelled with its caller: an answer that comes then has pins, too.
        answer = asyncio.ensure_future(self._store.Get(request))
        try:
            return _found_in(await asyncio.shield(answer))
        except asyncio.CancelledError:
            answer.add_done_callback(self._not_waited_for)
            raise

    def _not_waited_for(self, answer: asyncio.Future[object_manager_pb2.GetReply]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self.release(_found_in(answer.result()))

    def release(self, object_ids: Iterable[bytes]) -> None:
        if self._store is not None:
            self._store.Release.notify(object_manager_pb2.ReleaseRequest(object_ids=object_ids))

    def free_owned_by(self, worker_id: bytes) -> None:
        """A worker or driver of this node ended: nobody can ask for what it owned. Of others' the store hears
        from the GCS."""
        if self._store is not None:
            request = object_manager_pb2.FreeOwnedByRequest(worker_id=worker_id)
            self._store.FreeOwnedBy.notify(request)

    def follow_head(self, head: common_pb2.HeadPlace) -> None:
        """This node is registered at a head, perhaps at another one than before."""
        if self._store is not None:
            self._store.FollowHead.notify(head)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()


def _found_in(reply: object_manager_pb2.GetReply) -> list[bytes]:
    return [item.object_id for item in reply.objects if item.state == object_manager_pb2.ObjectFound.FOUND]
