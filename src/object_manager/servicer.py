"""ObjectStoreService: translates messages into calls of the NodeStore, and its errors into statuses.

Wire types stop here. A connection becomes a client with its first request; what it owns ends with it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

from ray_mono.common.ids import ObjectID
from ray_mono.object_manager.admission import Priority
from ray_mono.object_manager.create_queue import RoomWanted
from ray_mono.object_manager.errors import ObjectExists, ObjectUnknown, StoreError, StoreFull
from ray_mono.object_manager.free_forwarder import FreeForwarder
from ray_mono.object_manager.get_queue import Found, FoundState, Wanted
from ray_mono.object_manager.keys import ClientKey, NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.pressure_notices import PressureNotices
from ray_mono.object_manager.seams import SharedMemory
from ray_mono.object_manager.wait_reasons import WaitReasons
from ray_mono.protobuf import common_pb2, object_manager_pb2
from ray_mono.protobuf.object_manager_rpc import ObjectStoreServiceServicer
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode

_STATES = {
    FoundState.FOUND: object_manager_pb2.ObjectFound.FOUND,
    FoundState.NOT_HERE: object_manager_pb2.ObjectFound.NOT_HERE,
    FoundState.LOST: object_manager_pb2.ObjectFound.LOST,
}
_PRIORITIES = {
    object_manager_pb2.GetRequest.GET: Priority.GET,
    object_manager_pb2.GetRequest.WAIT: Priority.WAIT,
    object_manager_pb2.GetRequest.TASK_ARGUMENTS: Priority.TASK_ARGUMENTS,
}
_EMPTY = common_pb2.Empty()
_CLIENT = "object_store_client"


class StoreServicer(ObjectStoreServiceServicer):
    """Answers the clients of one node."""

    def __init__(
        self,
        node_store: NodeStore,
        memory: SharedMemory,
        pressure: PressureNotices,
        forwarder: FreeForwarder | None,
        stats: Callable[[], object_manager_pb2.StoreStats],
        dump: Callable[[], dict[str, Any]],
        reasons: WaitReasons,
        on_raylet_gone: Callable[[str], None],
        follow_head: Callable[[str], None],
    ) -> None:
        """forwarder None: a store alone. on_raylet_gone(reason): the node's raylet ended its connection.
        follow_head(address): the GCS is there."""
        self._node_store = node_store
        self._memory = memory
        self._pressure = pressure
        self._forwarder = forwarder
        self._stats = stats
        self._dump = dump
        self._reasons = reasons
        self._on_raylet_gone = on_raylet_gone
        self._follow_head = follow_head

    async def ConnectClient(
        self, request: object_manager_pb2.ConnectClientRequest, context: CallContext
    ) -> object_manager_pb2.ConnectClientReply:
        client = self._client(context)
        if request.worker_id:
            self._reasons.joined(client, WorkerKey(request.worker_id))
            context.connection.on_close(lambda _: self._reasons.left(client))
        if request.is_raylet:
            context.connection.on_close(
                lambda reason: self._on_raylet_gone(f"the raylet (pid {request.pid}) is gone: {reason}")
            )
        return object_manager_pb2.ConnectClientReply(
            store_file=self._memory.path,
            capacity_bytes=self._node_store.config.capacity_bytes,
            node_id=self._node_store.node_id,
        )

    async def Create(
        self, request: object_manager_pb2.CreateRequest, context: CallContext
    ) -> object_manager_pb2.CreateReply:
        wanted = RoomWanted(
            client=self._client(context),
            size_bytes=request.size_bytes,
            object_id=_object_id(request.object_id),
            metadata=request.metadata,
            owner=WorkerKey(request.owner_worker_id),
        )
        try:
            place = await self._node_store.create(wanted)
        except StoreError as error:
            _refuse(error)
        if isinstance(place, int):
            return object_manager_pb2.CreateReply(offset=place)
        return object_manager_pb2.CreateReply(offset=place.offset, file=self._node_store.path(place))

    async def Seal(self, request: object_manager_pb2.SealRequest, context: CallContext) -> common_pb2.Empty:
        try:
            self._node_store.seal(_object_id(request.object_id), self._client(context))
        except StoreError as error:
            _refuse(error)
        return _EMPTY

    async def Abort(self, request: object_manager_pb2.AbortRequest, context: CallContext) -> common_pb2.Empty:
        try:
            self._node_store.abort(_object_id(request.object_id), self._client(context))
        except StoreError as error:
            _refuse(error)
        return _EMPTY

    async def Get(
        self, request: object_manager_pb2.GetRequest, context: CallContext
    ) -> object_manager_pb2.GetReply:
        wanted = [
            Wanted(
                _object_id(item.object_id),
                tuple(NodeKey(node) for node in item.location_node_ids),
                item.size_bytes,
            )
            for item in request.objects
        ]
        timeout_s = None if request.timeout_ms < 0 else request.timeout_ms / 1000
        try:
            found = await self._node_store.get(
                self._client(context),
                wanted,
                timeout_s,
                request.may_go_elsewhere,
                _PRIORITIES.get(request.priority, Priority.TASK_ARGUMENTS),
            )
        except StoreError as error:
            _refuse(error)
        return object_manager_pb2.GetReply(
            objects=[
                _found_message(item, self._node_store.path(item.extent) if item.extent else "")
                for item in found
            ]
        )

    async def Release(
        self, request: object_manager_pb2.ReleaseRequest, context: CallContext
    ) -> common_pb2.Empty:
        client = self._client(context)
        refusal: StoreError | None = None
        for object_id in request.object_ids:
            try:
                self._node_store.release(_object_id(object_id), client)
            except StoreError as error:
                refusal = error  # the others are released all the same
        if refusal is not None:
            _refuse(refusal)
        return _EMPTY

    async def Free(self, request: object_manager_pb2.FreeRequest, context: CallContext) -> common_pb2.Empty:
        object_ids = [_object_id(item.object_id) for item in request.objects]
        self._node_store.free(object_ids)
        if self._forwarder is not None:
            for object_id, item in zip(object_ids, request.objects, strict=True):
                for node_id in item.location_node_ids:
                    if node_id != self._node_store.node_id:
                        self._forwarder.free(NodeKey(node_id), object_id)
        return _EMPTY

    async def FreeOwnedBy(
        self, request: object_manager_pb2.FreeOwnedByRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._node_store.free_owned_by(WorkerKey(request.worker_id))
        return _EMPTY

    async def WatchPressure(
        self, request: common_pb2.Empty, context: CallContext
    ) -> AsyncIterator[object_manager_pb2.StorePressure]:
        messages: asyncio.Queue[object_manager_pb2.StorePressure] = asyncio.Queue()

        def listener(text: str, what: str, everywhere: bool) -> None:
            messages.put_nowait(
                object_manager_pb2.StorePressure(message=text, type=what, everywhere=everywhere)
            )

        self._pressure.watch(listener)
        try:
            while True:
                yield await messages.get()
        finally:
            self._pressure.unwatch(listener)

    async def CollectGarbage(self, request: common_pb2.Empty, context: CallContext) -> common_pb2.Empty:
        self._pressure.collect_garbage()
        return _EMPTY

    async def FollowHead(self, request: common_pb2.HeadPlace, context: CallContext) -> common_pb2.Empty:
        self._follow_head(request.address)
        return _EMPTY

    async def ListPrimaries(
        self, request: object_manager_pb2.ListPrimariesRequest, context: CallContext
    ) -> object_manager_pb2.ListPrimariesReply:
        except_owners = {WorkerKey(owner) for owner in request.except_owner_worker_ids}
        return object_manager_pb2.ListPrimariesReply(
            objects=[
                object_manager_pb2.PrimaryCopy(
                    object_id=row.object_id, owner_worker_id=row.owner, size_bytes=row.size_bytes
                )
                for row in self._node_store.primaries(except_owners, request.most)
            ],
            num_unsealed=self._stats().num_unsealed,
        )

    async def MarkPrimary(
        self, request: object_manager_pb2.MarkPrimaryRequest, context: CallContext
    ) -> object_manager_pb2.MarkPrimaryReply:
        object_ids = [_object_id(object_id) for object_id in request.object_ids]
        here = self._node_store.mark_primary(object_ids, request.is_primary)
        return object_manager_pb2.MarkPrimaryReply(object_ids=here)

    async def GetStats(
        self, request: common_pb2.Empty, context: CallContext
    ) -> object_manager_pb2.StoreStats:
        return self._stats()

    async def Explain(
        self, request: common_pb2.ExplainRequest, context: CallContext
    ) -> common_pb2.WaitReason:
        return self._reasons.of(_object_id(request.subject.id))

    async def DumpState(self, request: common_pb2.Empty, context: CallContext) -> common_pb2.DumpStateReply:
        return common_pb2.DumpStateReply(json=json.dumps(self._dump()))

    def _client(self, context: CallContext) -> ClientKey:
        """The connection's key; made, and tied to its end, at the first request."""
        state = context.connection.state
        client: ClientKey | None = state.get(_CLIENT)
        if client is None:
            client = state[_CLIENT] = self._node_store.connect()
            key = client
            context.connection.on_close(lambda _: self._node_store.disconnect(key))
        return client


def _object_id(id_bytes: bytes) -> ObjectKey:
    if len(id_bytes) != ObjectID.SIZE:
        raise RpcError(
            StatusCode.INVALID_ARGUMENT,
            f"an object id has {ObjectID.SIZE} bytes, got {len(id_bytes)}: {id_bytes.hex()}",
        )
    return ObjectKey(id_bytes)


def _found_message(found: Found, file: str) -> object_manager_pb2.ObjectFound:
    return object_manager_pb2.ObjectFound(
        file=file,
        object_id=found.object_id,
        state=_STATES[found.state],
        offset=found.offset,
        size_bytes=found.size_bytes,
        metadata=found.metadata,
        pulled=found.pulled,
        reason=found.reason,
    )


def _refuse(error: StoreError) -> NoReturn:
    """The status of a refusal."""
    if isinstance(error, ObjectExists):
        code = StatusCode.ALREADY_EXISTS
    elif isinstance(error, ObjectUnknown):
        code = StatusCode.NOT_FOUND
    elif isinstance(error, StoreFull):
        code = StatusCode.RESOURCE_EXHAUSTED
    else:
        code = StatusCode.INVALID_ARGUMENT
    raise RpcError(code, str(error)) from None
