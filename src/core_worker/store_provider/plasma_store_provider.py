"""The node's store, as a worker or driver sees it: the mapped file, and what is said about objects in it.
An object for which the store has no room is read in a file of its own or of several (`ObjectFound.file`).

On the node no payload travels through a socket. This process writes into the mapped file between Create and
Seal, and reads from a read-only mapping. An object that is read is pinned in the store for this process until
the last array or memoryview over it is gone. For that a numpy array with a finalizer exports the memory: its
finalizer runs only then. (A weak reference to a memoryview would end before the views made from it.)

A finalizer may run anywhere, so it only appends to a deque. `drain` goes on from there, under the lock, at
the end of a turn. An object that is still referenced here is probably read again, so its pin is kept for
idle_pin_s more. A `get` in that time, or while another value of the object lives, asks nobody (`here`). This
delays an eviction by idle_pin_s at most. An object out of scope is released at once.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ray_mono.common import ids
from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.mapped_file import MappedFile, bytes_of
from ray_mono.common.object_errors import no_room_error
from ray_mono.common.private_files import UntrustedPathError, open_file
from ray_mono.common.threads import start
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.store_provider import bulk_write
from ray_mono.core_worker.values.serialization import Serialized
from ray_mono.protobuf import common_pb2, object_manager_pb2
from ray_mono.protobuf.object_manager_rpc import ObjectStoreServiceStub
from ray_mono.rpc.reactor_channel import ReactorChannel
from ray_mono.rpc.surface import RpcError, StatusCode

Found = object_manager_pb2.ObjectFound
# Who is served first where the node has little room for copies.
GET = object_manager_pb2.GetRequest.GET
WAIT = object_manager_pb2.GetRequest.WAIT
TASK_ARGUMENTS = object_manager_pb2.GetRequest.TASK_ARGUMENTS
Wanted = tuple[bytes, list[bytes], int]
"""An object's id, the nodes that hold it, and its size as far as it is known."""


class LostOnDisk(Exception):
    """The file of an object is gone, or is shorter than it was."""


class PlasmaStoreProvider:
    """One connection to the node's object manager."""

    def __init__(
        self, env: Environment, channel: ReactorChannel, is_referenced: Callable[[bytes], bool]
    ) -> None:
        """Connects. Raises RpcError.

        is_referenced(object id): whether this process holds references to it.
        """
        self._env = env
        self._is_referenced = is_referenced
        self._stub = ObjectStoreServiceStub(channel)
        self._reactor = env.reactor
        self._channel = channel
        hello = self._stub.ConnectClient(
            object_manager_pb2.ConnectClientRequest(worker_id=env.worker_id, pid=env.pid), timeout_s=30
        )
        self.node_id: bytes = hello.node_id
        self._path: str = hello.store_file
        self._capacity_bytes: int = hello.capacity_bytes
        self._collector: threading.Thread | None = None
        self._stub.WatchPressure.start(common_pb2.Empty(), self._on_pressure, lambda error: None)
        # Objects that this process has written, and that nobody can read yet; and how many calls will say
        # what becomes of each. These are several where a task runs again before its last answer has left.
        self._unsealed: dict[bytes, int] = {}
        # Those for which this process waits until the store has room.
        self._without_room: dict[bytes, None] = {}
        # Those that this process has asked for, and how often; without those that it asked for at once.
        self._fetched: Counter[bytes] = Counter()
        self._write_map: MappedFile | None = None
        self._read_map: memoryview | None = None
        # The ObjectFound of each view that ended. Finalizers append without the lock; `drain` goes through
        # it.
        self._ended: deque[Any] = deque()
        self._released: deque[bytes] = deque()
        self._freed: deque[tuple[bytes, list[bytes]]] = deque()
        self.queues = (self._ended, self._released, self._freed)
        """What `drain` empties."""
        self._views: dict[bytes, tuple[weakref.ref[Any], Any]] = {}
        """By object: the exporter of its memory that was made last, and its ObjectFound."""
        self._idle: dict[bytes, tuple[Any, float]] = {}
        """By object: a pin that no view has any more, as (ObjectFound, when it is released). In the order of
        these times."""

    # ---- writing

    def put(
        self, object_id: bytes, value: Serialized, owner_worker_id: bytes, stored: Callable[[], None]
    ) -> None:
        """As `write`, and seals it. stored() runs under the lock, in one step with that."""
        self.write(object_id, value, owner_worker_id)
        with self._reactor.lock:
            self._seal(object_id)
            stored()

    def write(self, object_id: bytes, value: Serialized, owner_worker_id: bytes) -> None:
        """Writes a value as the primary copy. It goes with this process until `seal`, and is kept from then
        on until its owner frees it. Waits while the store is full. Raises ObjectStoreFullError or
        OutOfDiskError, which name sizes, and RaySystemError.

        If anything is raised, also while this waits for room, the room is given back. A copy that is there
        already, since a task runs again, is left as it is.
        """
        with self._reactor.lock:
            if object_id in self._unsealed:
                self._unsealed[object_id] += 1
                return
        request = object_manager_pb2.CreateRequest(
            object_id=object_id,
            size_bytes=value.size_bytes,
            metadata=value.metadata,
            owner_worker_id=owner_worker_id,
        )
        try:
            place = self._create(request)
            if place.file:
                self._write_file(place.file, value)
            else:
                target = self._writable()
                for start, part in value.parts:
                    bulk_write.write(target, place.offset + start, part)
            with self._reactor.lock:
                self._unsealed[object_id] = 1
        except RpcError as error:
            if error.code is StatusCode.ALREADY_EXISTS:
                return
            if error.code is StatusCode.RESOURCE_EXHAUSTED:
                raise no_room_error(error.message) from None
            raise RaySystemError(
                f"the object store did not take an object of {value.size_bytes} bytes: {error}"
            ) from None
        except BaseException:
            with self._reactor.lock:
                self._unsealed.pop(object_id, None)
            self._abort(object_id)
            raise

    def _create(self, request: Any) -> Any:
        self._without_room[request.object_id] = None
        try:
            return self._stub.Create(request)
        finally:
            self._without_room.pop(request.object_id, None)

    def without_room_of(self, task_id: bytes) -> list[bytes]:
        """The objects of a task that wait for room in the store. Lock held."""
        return [each for each in list(self._without_room) if each[: -ids.INDEX_BYTES] == task_id]

    def _write_file(self, path: str, value: Serialized) -> None:
        """Of an object that is larger than the store: in a file of its own."""
        fd = self._open(path, os.O_RDWR)
        try:
            target = MappedFile(fd, value.size_bytes)
        finally:
            os.close(fd)
        try:
            for start, part in value.parts:
                bulk_write.write(target, start, part)
        finally:
            target.close()

    def seal(self, object_ids: Sequence[bytes], is_owner_told: bool) -> None:
        """Another process, their owner, is told next that they are here. If it cannot be told, they are given
        up. Those that were there already are left as they are. Lock held."""
        if not is_owner_told:
            self.give_up(object_ids)
            return
        for object_id in object_ids:
            self._seal(object_id)
        # At once: this process may be killed when the owner has been told, and before the store is.
        self._channel.flush()

    def _seal(self, object_id: bytes) -> None:
        if self._unsealed.pop(object_id, 0):
            self._stub.Seal.notify(object_manager_pb2.SealRequest(object_id=object_id))

    def give_up(self, object_ids: Iterable[bytes]) -> None:
        """Their owner will not be told that they are here: those that are not sealed give their room back.
        Lock held."""
        for object_id in object_ids:
            calls = self._unsealed.pop(object_id, 0)
            if calls > 1:
                self._unsealed[object_id] = calls - 1
            elif calls:
                self._abort(object_id)

    def _abort(self, object_id: bytes) -> None:
        self._stub.Abort.notify(object_manager_pb2.AbortRequest(object_id=object_id))

    def _writable(self) -> MappedFile:
        if self._write_map is None:
            fd = self._open(self._path, os.O_RDWR)
            try:
                self._write_map = MappedFile(fd, self._capacity_bytes)
            finally:
                os.close(fd)
        return self._write_map

    def _open(self, path: str, flags: int, is_spilled: bool = False) -> int:
        try:
            return open_file(path, flags)
        except (
            OSError,
            UntrustedPathError,
        ) as error:  # the node is going, no descriptor is left, or the file is not ours
            if is_spilled and isinstance(error, FileNotFoundError):
                raise LostOnDisk(path) from None
            raise RaySystemError(
                f"the memory of this node's object store cannot be opened: {error}"
            ) from None

    def _on_pressure(self, pressure: Any) -> None:
        """The store is full. References in cycles of garbage here may be what fills it, so this collects
        garbage: on a thread of its own, since finalizers run user code. Where there can be none the store
        waits for others. What people are told is not for it."""
        if pressure.message:
            return
        if self._collector is None or not self._collector.is_alive():
            self._collector = threading.Thread(target=gc.collect, name="ray_mono-gc", daemon=True)
            with contextlib.suppress(OSError):
                start(self._collector)

    # ---- reading

    def start_get(
        self,
        wanted: list[Wanted],
        timeout_ms: int,
        on_done: Callable[[list[Any], RpcError | None], None],
        may_go_elsewhere: bool = False,
        priority: Any = GET,
    ) -> None:
        """Asks for objects. Calls on_done(list of ObjectFound, None) under the
        lock when each of them is here or lost, or the time is over; on_done([], error) if the call failed.

        may_go_elsewhere: the objects need not wait long for room here.

        Each object that is found is pinned. on_done has `view` take the pin over, or has `release` end it.
        """
        request = object_manager_pb2.GetRequest(
            timeout_ms=timeout_ms,
            may_go_elsewhere=may_go_elsewhere,
            priority=priority,
            objects=[
                object_manager_pb2.ObjectWanted(
                    object_id=object_id, location_node_ids=locations, size_bytes=size_bytes
                )
                for object_id, locations, size_bytes in wanted
            ],
        )
        object_ids = [object_id for object_id, _, _ in wanted] if timeout_ms else []
        self._fetched.update(object_ids)

        def done(reply: Any, error: RpcError | None) -> None:
            for object_id in object_ids:
                self._fetched[object_id] -= 1
                if not self._fetched[object_id]:
                    del self._fetched[object_id]
            on_done(list(reply.objects) if reply is not None else [], error)

        self._stub.Get.start(request, done)

    def is_fetched(self, object_id: bytes) -> bool:
        """Whether this process has asked for an object, and waits for it. Lock held."""
        return object_id in self._fetched

    def view(self, found: Any) -> memoryview:
        """The bytes, read-only, of an object that was found. Its pin lasts as long as anything refers to
        them. Raises RaySystemError, LostOnDisk."""
        if not found.size_bytes:
            self.release(found.object_id)
            return memoryview(b"")
        if found.file:
            start = found.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            offset = found.offset - start
            memory = self._map(found.file, offset + found.size_bytes, start, is_spilled=True)
        else:
            if self._read_map is None:
                self._read_map = self._map(self._path, self._capacity_bytes, 0)
            memory, offset = self._read_map, found.offset
        array = np.frombuffer(memory, np.uint8, found.size_bytes, offset)
        weakref.finalize(array, self._view_ended, found).atexit = False
        self._views[found.object_id] = (weakref.ref(array), found)
        return memoryview(array)  # type: ignore[arg-type]

    def _map(self, path: str, length: int, offset: int, is_spilled: bool = False) -> memoryview:
        fd = self._open(path, os.O_RDONLY, is_spilled)
        try:
            if is_spilled and os.fstat(fd).st_size < offset + length:
                raise LostOnDisk(path)
            return bytes_of(fd, length, offset)
        except OSError as error:
            raise RaySystemError(f"an object cannot be mapped from {path}: {error}") from None
        finally:
            os.close(fd)

    def give_up_lost(self, object_id: bytes) -> None:
        """The copy of this node, which was found and pinned, cannot be read: it goes. Lock held."""
        self.release(object_id)
        self.free(object_id, [self.node_id])

    def here(self, object_id: bytes) -> tuple[Any, memoryview] | None:
        """(ObjectFound, its bytes as `view` gives them) of an object that this process has pinned already;
        None for another. Lock held."""
        self._settle_ended()
        reference, found = self._views.get(object_id, (None, None))
        array = reference() if reference is not None else None
        if array is not None:
            return found, memoryview(array)
        found, _ = self._idle.pop(object_id, (None, 0.0))
        try:
            return None if found is None else (found, self.view(found))
        except LostOnDisk:
            self.give_up_lost(object_id)
            return None

    def out_of_scope(self, object_id: bytes) -> None:
        """This process's last reference to the object is gone. Lock held."""
        found, _ = self._idle.pop(object_id, (None, 0.0))
        if found is not None:
            self.release(object_id)

    def _view_ended(self, found: Any) -> None:
        self._ended.append(found)
        self._reactor.wake()

    def release(self, object_id: bytes) -> None:
        self._released.append(object_id)
        self._reactor.wake()

    def drain(self) -> None:
        """Sends the releases and frees that finalizers and others left. Lock held."""
        if self._ended:
            self._settle_ended()
        if self._released:
            ids = []
            while self._released:
                ids.append(self._released.popleft())
            if not self._channel.is_closed:
                self._stub.Release.notify(object_manager_pb2.ReleaseRequest(object_ids=ids))
        if self._freed:
            self._send_freed()

    def _settle_ended(self) -> None:
        while self._ended:
            found = self._ended.popleft()
            object_id = found.object_id
            known = self._views.get(object_id)
            if known is not None and known[1] is found:
                del self._views[object_id]
            if object_id in self._idle or not self._is_referenced(object_id):
                self._released.append(object_id)
                continue
            if not self._idle:
                self._reactor.call_later(self._env.config.idle_pin_s, self._release_idle)
            self._idle[object_id] = (found, self._env.clock.time_s() + self._env.config.idle_pin_s)

    def _release_idle(self) -> None:
        """Releases idle pins whose time is over. Sets the timer again while there are others."""
        now_s = self._env.clock.time_s()
        while self._idle:
            object_id, (_, until_s) = next(iter(self._idle.items()))
            if until_s > now_s:
                self._reactor.call_later(until_s - now_s, self._release_idle)
                return
            del self._idle[object_id]
            self._released.append(object_id)

    # ---- the owner's side

    def free(self, object_id: bytes, node_ids: list[bytes]) -> None:
        """Nobody can ask for the object any more. Frees it on these nodes as the turn ends. Lock held."""
        self._freed.append((object_id, node_ids))
        self._reactor.wake()

    def _send_freed(self) -> None:
        objects = [
            object_manager_pb2.ObjectFree(object_id=object_id, location_node_ids=node_ids)
            for object_id, node_ids in self._freed
        ]
        self._freed.clear()
        self._stub.Free.notify(object_manager_pb2.FreeRequest(objects=objects))

    def stats(self) -> Any:
        """The StoreStats of this node's store."""
        return self._stub.GetStats(common_pb2.Empty(), timeout_s=30)
