"""Reading from the node's store, which copies from other nodes what is not here, and tells of copies that came so.

Who can go where the objects are, a task that has not begun, need not wait long for room in this node's store: NoRoomHere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_mono.common.exceptions import ObjectStoreFullError, RaySystemError
from ray_mono.protobuf import core_worker_pb2
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError, StatusCode

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker

FOUND = 0
NOT_HERE = 1
# (ObjectFound, its bytes where it was found)
Found = tuple[Any, memoryview | None]


class NoRoomHere(Exception):
    """An object that lies on another node has no room on this one."""


class StoreReads:
    """Reads of one process."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core

    def fetch(
        self,
        wanted: list[tuple[bytes, list[bytes]]],
        timeout_ms: int,
        wait: Callable[[Waiter, None], bool],
        may_go_elsewhere: bool,
    ) -> list[Found]:
        """Asks for objects as (id, nodes that hold it) and waits. Raises NoRoomHere if may_go_elsewhere, else ObjectStoreFullError."""
        core = self._core
        waiter = Waiter(core.reactor)
        answer: list[Found] = []
        failure: list[RpcError | RaySystemError] = []

        def done(found: list[Any], error: RpcError | RaySystemError | None) -> None:
            try:
                # A view is its pin's owner from the first moment, also if nobody waits any more.
                answer.extend(
                    (item, core.store.view(item) if item.state == FOUND else None) for item in found
                )
            except RaySystemError as not_opened:
                error = not_opened
                for item in found[len(answer) :]:
                    if item.state == FOUND:
                        core.store.release(item.object_id)
            for item in found:
                if item.state == FOUND and item.pulled:
                    self.tell_location(item.object_id)
            if error is not None:
                failure.append(error)
            waiter.set()

        core.store.start_get(wanted, timeout_ms, done, may_go_elsewhere)
        wait(waiter, None)
        if not waiter.done:
            raise RaySystemError("this process was disconnected from its cluster while it waited for objects")
        for error in failure:
            if isinstance(error, RaySystemError):
                raise error
            if error.code is StatusCode.RESOURCE_EXHAUSTED:
                raise NoRoomHere(error.message) if may_go_elsewhere else ObjectStoreFullError(error.message)
            raise RaySystemError(f"the object store failed: {error}")
        return answer

    def tell_location(self, object_id: bytes) -> None:
        """This node's store has a copy now: the owner has to know, to free it. Lock held."""
        core = self._core
        row = core.references.get(object_id)
        if row is None:
            core.free_in_stores(object_id, [core.node_id])
            return
        entry = core.memory_store.get(object_id)
        if entry is not None and entry.locations is not None and core.node_id not in entry.locations:
            entry.locations.append(core.node_id)
        if row.owner is not None:
            owner = core.stub_for(core.ownership.parse_owner(row.owner))
            owner.AddObjectLocation.notify(
                core_worker_pb2.ObjectLocationRequest(object_id=object_id, node_id=core.node_id)
            )
