"""Reads from the node's store. The store copies what is on other nodes; the owner is told of each copy.

A task that has not begun can go to the node where its arguments lie. So it does not wait long for room in
this node's store, but gets NoRoomHere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.object_errors import no_room_error
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.future_resolver import FutureResolver
from ray_mono.core_worker.store_provider.plasma_store_provider import Found as ObjectFound
from ray_mono.core_worker.store_provider.plasma_store_provider import (
    LostOnDisk,
    PlasmaStoreProvider,
    Wanted,
)
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError, StatusCode

FOUND = 0
NOT_HERE = 1
LOST = 2
# (ObjectFound, the bytes of the object if it was found)
Found = tuple[Any, memoryview | None]


class NoRoomHere(Exception):
    """This node has no room for an object that lies on another one."""


class StoreReads:
    """The reads of one process."""

    def __init__(self, env: Environment, plasma: PlasmaStoreProvider, resolver: FutureResolver) -> None:
        self._env = env
        self._plasma = plasma
        self._resolver = resolver

    def fetch(
        self,
        wanted: list[Wanted],
        timeout_ms: int,
        wait: Callable[[Waiter, None], bool],
        may_go_elsewhere: bool,
        priority: Any,
    ) -> list[Found]:
        """Asks for objects and waits. Where there is no room for a copy, raises NoRoomHere if
        may_go_elsewhere, else ObjectStoreFullError. Raises RaySystemError."""
        plasma = self._plasma
        waiter = Waiter(self._env.reactor)
        answer: list[Found] = []
        failure: list[RpcError | RaySystemError] = []

        def done(found: list[Any], error: RpcError | RaySystemError | None) -> None:
            try:
                # Each view owns its pin from the first moment, so that pins end also if nobody waits any
                # more.
                answer.extend(map(self._read, found))
            except RaySystemError as not_opened:
                error = not_opened
                for item in found[len(answer) :]:
                    if item.state == FOUND:
                        plasma.release(item.object_id)
            for item in found:
                if item.state == FOUND and item.pulled:
                    self._resolver.pulled_here(item.object_id)
            if error is not None:
                failure.append(error)
            waiter.set()

        plasma.start_get(wanted, timeout_ms, done, may_go_elsewhere, priority)
        wait(waiter, None)
        if not waiter.done:
            raise RaySystemError("this process was disconnected from its cluster while it waited for objects")
        error = failure.pop() if failure else None
        if isinstance(error, RaySystemError):
            try:
                raise error
            finally:
                error = None  # as in take_answer
        if error is not None:
            if error.code is StatusCode.RESOURCE_EXHAUSTED:
                raise NoRoomHere(error.message) if may_go_elsewhere else no_room_error(error.message)
            raise RaySystemError(f"the object store failed: {error}")
        return answer

    def _read(self, item: Any) -> Found:
        """An object that was found, with its bytes. One whose file is gone is lost here, as its owner will
        hear: it can be made again."""
        if item.state != FOUND:
            return item, None
        try:
            return item, self._plasma.view(item)
        except LostOnDisk as gone:
            self._plasma.give_up_lost(item.object_id)
            reason = f"it was spilled, and its file {gone} is lost"
            return ObjectFound(object_id=item.object_id, state=ObjectFound.LOST, reason=reason), None
