"""The store seen from a worker or driver: the mapped file, and the conversation about what lies where.

Payloads never travel through a socket on the node: this process writes into the mapped file between Create and Seal,
and reads from a read-only mapping. What is read is pinned in the store for this process until the last array or
memoryview over it is gone: the exporter of the memory is a numpy array with a finalizer, which fires only then (a
weak reference to a memoryview does not: derived views outlive it).

The finalizer may run anywhere, so it only appends to a deque; `drain` (under the lock, at the end of a turn) sends the releases.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from ray_mono.common.exceptions import ObjectStoreFullError, RaySystemError
from ray_mono.core_worker.serialization import Serialized
from ray_mono.protobuf import object_manager_pb2
from ray_mono.protobuf.object_manager_rpc import ObjectStoreServiceStub
from ray_mono.rpc.reactor_channel import ReactorChannel
from ray_mono.rpc.surface import RpcError, StatusCode

Found = object_manager_pb2.ObjectFound


class PlasmaClient:
    """One connection to the node's object manager."""

    def __init__(self, channel: ReactorChannel, worker_id: bytes) -> None:
        """Connects; raises RpcError."""
        self._stub = ObjectStoreServiceStub(channel)
        self._reactor = channel.reactor
        self._channel = channel
        self._worker_id = worker_id
        hello = self._stub.ConnectClient(
            object_manager_pb2.ConnectClientRequest(worker_id=worker_id, pid=os.getpid()), timeout_s=30
        )
        self.node_id: bytes = hello.node_id
        self._path: str = hello.store_file
        self._capacity_bytes: int = hello.capacity_bytes
        self._write_map: memoryview | None = None
        self._read_map: mmap.mmap | None = None
        self._released: deque[bytes] = deque()

    # ---- writing

    def put(self, object_id: bytes, value: Serialized, owner_worker_id: bytes) -> None:
        """Stores a value as the primary copy, kept until its owner frees it. Waits while the store is full.

        Raises ObjectStoreFullError naming sizes. A copy that is there already is left as it is: a task that runs again.
        """
        request = object_manager_pb2.CreateRequest(
            object_id=object_id, size_bytes=value.size_bytes, metadata=value.metadata, owner_worker_id=owner_worker_id
        )
        try:
            offset = self._stub.Create(request).offset
        except RpcError as error:
            if error.code is StatusCode.ALREADY_EXISTS:
                return
            if error.code is StatusCode.RESOURCE_EXHAUSTED:
                raise ObjectStoreFullError(error.message) from None
            raise RaySystemError(f"the object store did not take an object of {value.size_bytes} bytes: {error}") from None
        try:
            value.write_to(self._writable()[offset : offset + value.size_bytes])
        except BaseException:
            self._stub.Abort.notify(object_manager_pb2.AbortRequest(object_id=object_id))
            raise
        self._stub.Seal.notify(
            object_manager_pb2.SealRequest(
                object_id=object_id, size_bytes=value.size_bytes, metadata=value.metadata, owner_worker_id=owner_worker_id
            )
        )

    def _writable(self) -> memoryview:
        if self._write_map is None:
            self._write_map = memoryview(self._map(mmap.PROT_READ | mmap.PROT_WRITE))
        return self._write_map

    def _map(self, protection: int) -> mmap.mmap:
        fd = os.open(self._path, os.O_RDWR if protection & mmap.PROT_WRITE else os.O_RDONLY)
        try:
            return mmap.mmap(fd, self._capacity_bytes, flags=mmap.MAP_SHARED, prot=protection)
        finally:
            os.close(fd)

    # ---- reading

    def start_get(
        self,
        wanted: list[tuple[bytes, list[bytes]]],
        timeout_ms: int,
        on_done: Callable[[list[Any], RpcError | None], None],
    ) -> None:
        """Asks for objects as (id, nodes that hold it); on_done(ObjectFound list, None) when all are here, lost, or the time is over.

        Each one found is pinned: `view` takes the pin over, or `release` ends it.
        """
        request = object_manager_pb2.GetRequest(
            timeout_ms=timeout_ms,
            objects=[
                object_manager_pb2.ObjectWanted(object_id=object_id, location_node_ids=locations)
                for object_id, locations in wanted
            ],
        )
        self._stub.Get.start(request, lambda reply, error: on_done(list(reply.objects) if reply is not None else [], error))

    def view(self, found: Any) -> memoryview:
        """Read-only bytes of an object that was found; the pin lasts as long as anything refers to them."""
        if self._read_map is None:
            self._read_map = self._map(mmap.PROT_READ)
        if not found.size_bytes:
            self._released.append(found.object_id)
            return memoryview(b"")
        array = np.frombuffer(self._read_map, np.uint8, found.size_bytes, found.offset)
        weakref.finalize(array, self._release_later, found.object_id).atexit = False
        return memoryview(array)  # type: ignore[arg-type]

    def _release_later(self, object_id: bytes) -> None:
        self._released.append(object_id)
        self._reactor.wake()

    def release(self, object_id: bytes) -> None:
        self._released.append(object_id)

    def drain(self) -> None:
        """Sends the releases that finalizers left. Lock held."""
        if self._released:
            ids = []
            while self._released:
                ids.append(self._released.popleft())
            if not self._channel.is_closed:
                self._stub.Release.notify(object_manager_pb2.ReleaseRequest(object_ids=ids))

    # ---- the owner's side

    def free(self, objects: list[tuple[bytes, list[bytes]]]) -> None:
        """Nobody can ask for these any more: frees them on the nodes named. One-way."""
        self._stub.Free.notify(
            object_manager_pb2.FreeRequest(
                objects=[
                    object_manager_pb2.ObjectFree(object_id=object_id, location_node_ids=locations)
                    for object_id, locations in objects
                ]
            )
        )

    def stats(self) -> Any:
        """StoreStats of the node."""
        from ray_mono.protobuf import common_pb2

        return self._stub.GetStats(common_pb2.Empty(), timeout_s=30)
