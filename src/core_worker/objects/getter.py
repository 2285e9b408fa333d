"""Reading objects: `get`, and what blocking means. Blocks in user code's name, with the lock released.

A get has two steps: wait until the memory store knows each value or its whereabouts, or that one of them is an error,
which is raised at once (of several the first in the order that was asked for, as in Ray); then fetch from the node's
stores those that live in stores, all in one request. What is in this node's store already, or is there and only its
owner knows it, is no reason to say that this task waits. Unpickling runs user code and happens outside of the lock.
References that come out of a value are registered with their owners while the value itself is held (ARCHITECTURE,
rule 3); those that come with a task's arguments wait for its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ray_mono.common.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RaySystemError,
    RayTaskError,
)
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.objects.store_reads import FOUND, NOT_HERE, Found, StoreReads
from ray_mono.core_worker.reference_counting.unpickled_references import UnpickledReferences
from ray_mono.core_worker.task_errors import unreadable
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import raylet_pb2
from ray_mono.rpc.reactor import Waiter

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker

FETCH_ATTEMPTS_MAX = 5
"""How often owners are asked anew where an object is, before it counts as lost."""
OWNERS_ANSWER_S = 0.01
"""How long owners may take to say that a value is there, without the task counting as one that waits."""
WATCHED_MAX = 10_000
"""How many missing values one `get` has itself told of at a time."""
CALLS_TOLD_MAX = 3
"""How many calls an error names."""


class _Wanted:
    """What one `get` waits for, to be asked when an error comes."""

    __slots__ = ("_ids", "_set", "waiter")

    def __init__(self, object_ids: list[bytes], waiter: Waiter) -> None:
        self._ids = object_ids
        self._set: set[bytes] | None = None
        self.waiter = waiter

    def __contains__(self, object_id: bytes) -> bool:
        if self._set is None:
            self._set = set(self._ids)
        return object_id in self._set


class Getter:
    """Reads objects for one process."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        self.arrivals = UnpickledReferences(core)
        self.stores = StoreReads(core)
        # Worker: set while a task of a lease runs, so that waiting can be told to the raylet.
        self.tells_raylet = False
        self._num_blocked = 0
        # Tasks that found threads of earlier ones waiting still: what those end is not counted any more.
        self._blocked_epoch = 0
        # Worker: the lease under which the present task runs.
        self.lease_id = b""
        # Worker: what else to do before a task's wait.
        self.before_blocking: Callable[[], None] | None = None
        # The gets that wait for several values: an error of one ends each.
        self._ended_by_errors: list[_Wanted] = []
        core.memory_store.on_error = self._error_came

    # ---- waiting in user code's name

    def blocking_wait(self, waiter: Waiter, timeout_s: float | None) -> bool:
        """Waits; a worker tells its raylet that its task's CPUs are free meanwhile."""
        if waiter.done:
            return True
        core = self._core
        if core.lock._is_owned():  # type: ignore[attr-defined]
            raise RaySystemError("this would wait under the core worker's lock; this is a bug of ray_mono")
        tells = self.tells_raylet
        if self.before_blocking is not None:
            self.before_blocking()
        epoch = -1
        try:
            if tells:
                with core.lock:
                    epoch = self.block()
            return core.reactor.wait(waiter, timeout_s)
        finally:
            if epoch >= 0:
                with core.lock:
                    self.unblock(epoch)

    def block(self) -> int:
        """The task's CPUs are free from now on. Returns what `unblock` takes. Lock held."""
        self._num_blocked += 1
        if self._num_blocked == 1:
            self._core.raylet.NotifyBlocked.notify(self._notice())
        return self._blocked_epoch

    def unblock(self, epoch: int) -> None:
        """They are in use again, if nothing else waits still. Lock held."""
        if epoch == self._blocked_epoch:
            self._num_blocked -= 1
            if self._num_blocked == 0:
                self._core.raylet.NotifyUnblocked.notify(self._notice())

    def wait_for(self, object_ids: Iterable[bytes], waiter: Waiter, timeout_s: float | None) -> bool:
        """blocking_wait for values. Where all that is missing belongs to others, it may be there already: their owners are given the time
        to say so before the task's CPUs are told to be free."""
        if self.tells_raylet and not waiter.done and self._asks_owners_only(object_ids):
            if timeout_s is not None and timeout_s <= OWNERS_ANSWER_S:
                return self._core.reactor.wait(waiter, timeout_s)
            if self._core.reactor.wait(waiter, OWNERS_ANSWER_S):
                return True
            if timeout_s is not None:
                timeout_s -= OWNERS_ANSWER_S
        return self.blocking_wait(waiter, timeout_s)

    def _asks_owners_only(self, object_ids: Iterable[bytes]) -> bool:
        core = self._core
        with core.lock:
            for object_id in object_ids:
                if not core.memory_store.is_ready(object_id):
                    row = core.references.get(object_id)
                    if row is None or row.owner is None:
                        return False
        return True

    def task_begins(self) -> None:
        """A worker starts a normal task: waits of threads that earlier tasks left behind are not this one's."""
        if not self._num_blocked:
            return
        core = self._core
        with core.lock:
            self._num_blocked = 0
            self._blocked_epoch += 1
            core.raylet.NotifyUnblocked.notify(self._notice())

    def _notice(self) -> raylet_pb2.NotifyBlockedRequest:
        return raylet_pb2.NotifyBlockedRequest(worker_id=self._core.worker_id, lease_id=self.lease_id)

    # ---- get

    def get(self, refs: list[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        """See CoreWorker.get. `refs` keeps the objects alive meanwhile."""
        if len(refs) == 1:
            # The usual case, kept short: a small value that is here. Its parts are set before it is ready, and do not change then.
            entry = self._core.memory_store.get(refs[0]._id)
            if entry is not None and entry.ready and entry.data is not None:
                return [self.read(refs[0]._id, entry.metadata, entry.data)]
        return self.get_ids([ref._id for ref in refs], timeout_s)

    def get_ids(
        self, object_ids: list[bytes], timeout_s: float | None, may_go_elsewhere: bool = False
    ) -> list[Any]:
        """Like get, for objects that the caller holds otherwise. Raises NoRoomHere if may_go_elsewhere."""
        core = self._core
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        values: dict[bytes, Any] = {}
        wanted = list(dict.fromkeys(object_ids))
        for attempt in range(FETCH_ATTEMPTS_MAX):
            failed = self._await_ready(wanted, deadline_s, timeout_s)
            # Raises the error, if there is one.
            ready = wanted if failed is None else [failed]
            missing = self._read_ready(ready, values, deadline_s, timeout_s, may_go_elsewhere)
            if not missing:
                break
            self._ask_again(missing, attempt)
            wanted = missing
        result = []
        copies: set[bytes] = set()
        for object_id in object_ids:
            # Two gets of a mutable value give independent objects, also within one call.
            if object_id in copies:
                again: dict[bytes, Any] = {}
                self._read_ready([object_id], again, deadline_s, timeout_s)
                values.update(again)
            copies.add(object_id)
            result.append(values[object_id])
        if core.reactor.interrupted:
            core.reactor.raise_if_interrupted()
        return result

    def await_ready(self, object_ids: list[bytes], timeout_s: float | None) -> None:
        """Until the memory store knows each. Raises GetTimeoutError, and RaySystemError where this process has left."""
        self._await_ready(object_ids, None if timeout_s is None else time.monotonic() + timeout_s, timeout_s)

    def _await_ready(
        self, object_ids: list[bytes], deadline_s: float | None, timeout_s: float | None
    ) -> bytes | None:
        """Until all are there, or one that is an error: its id."""
        core = self._core
        with core.lock:
            core.drain()
            core.check_connected()
            for object_id in object_ids:
                core.ownership.ask_owner(object_id)
        # In turn: all must come anyway, and a watched value costs two objects, which a million of them would feel.
        for begin in range(0, len(object_ids), WATCHED_MAX):
            if not self._await_some(object_ids[begin : begin + WATCHED_MAX], object_ids, deadline_s):
                with core.lock:
                    failed = core.memory_store.first_error(object_ids)
                    missing = [
                        object_id for object_id in object_ids if not core.memory_store.is_ready(object_id)
                    ]
                if failed is None:
                    raise self._timeout(missing, len(object_ids), timeout_s)
                return failed
        return None

    def _await_some(self, object_ids: list[bytes], wanted: list[bytes], deadline_s: float | None) -> bool:
        """False where the time was up first, or one of all that are wanted is an error."""
        core = self._core
        waiter = Waiter(core.reactor)
        ends = _Wanted(wanted, waiter)
        missing = 0

        def one_ready() -> None:
            nonlocal missing
            missing -= 1
            if missing == 0:
                waiter.set()

        try:
            with core.lock:
                for object_id in object_ids:
                    if not core.memory_store.when_ready(object_id, one_ready):
                        missing += 1
                if missing == 0:
                    return True
                if len(wanted) > 1:
                    if core.memory_store.first_error(wanted) is not None:
                        return False
                    self._ended_by_errors.append(ends)
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            self.wait_for(object_ids, waiter, left_s)
        finally:
            with core.lock:
                if ends in self._ended_by_errors:
                    self._ended_by_errors.remove(ends)
                if missing > 0:
                    for object_id in object_ids:
                        core.memory_store.forget_waiter(object_id, one_ready)
        if not waiter.done and core.reactor.is_closed:
            raise RaySystemError("this process was disconnected from its cluster while it waited for objects")
        return missing == 0

    def _error_came(self, object_id: bytes) -> None:
        for wanted in self._ended_by_errors:
            if object_id in wanted:
                wanted.waiter.set()

    def _timeout(self, missing: list[bytes], num_wanted: int, timeout_s: float | None) -> GetTimeoutError:
        with self._core.lock:
            calls = self._core.tasks.stories_of(missing, CALLS_TOLD_MAX)
        told = f"; not over: {', '.join(calls)}" if calls else ""
        return GetTimeoutError(
            f"{len(missing)} of {num_wanted} objects were not there after {timeout_s:g} s{told}"
        )

    def _read_ready(
        self,
        object_ids: list[bytes],
        values: dict[bytes, Any],
        deadline_s: float | None,
        timeout_s: float | None,
        may_go_elsewhere: bool = False,
    ) -> list[bytes]:
        """Puts the values of ready objects into `values`. Returns those that no store had. Raises error values."""
        core = self._core
        in_stores: list[tuple[bytes, list[bytes]]] = []
        here: list[tuple[bytes, bytes, Any]] = []
        with core.lock:
            for object_id in object_ids:
                entry = core.memory_store.get(object_id)
                if entry is None:
                    raise RaySystemError(
                        f"object {object_id.hex()} went away during get: {core.references.story(object_id)}"
                    )
                if entry.data is not None:
                    here.append((object_id, entry.metadata, entry.data))
                elif (pinned := core.store.here(object_id)) is not None:
                    here.append((object_id, pinned[0].metadata, pinned[1]))
                else:
                    in_stores.append((object_id, list(entry.locations or ())))
        for object_id, metadata, data in here:
            values[object_id] = self.read(object_id, metadata, data)
        if not in_stores:
            return []
        found = self._fetch_all(in_stores, deadline_s, may_go_elsewhere)
        return self._read_found(found, values, len(object_ids), timeout_s)

    def _read_found(
        self,
        found: list[Found],
        values: dict[bytes, Any],
        num_wanted: int,
        timeout_s: float | None,
    ) -> list[bytes]:
        lost = []
        not_here: list[bytes] = []
        for item, _ in found:
            if item.state == NOT_HERE:
                not_here.append(item.object_id)
            elif item.state != FOUND:
                lost.append(item.object_id)
        if not_here:
            raise self._timeout(not_here, num_wanted, timeout_s)
        for item, view in found:
            if view is not None:
                values[item.object_id] = self.read(item.object_id, item.metadata, view)
        return lost

    def read(self, object_id: bytes, metadata: bytes, data: Any) -> Any:
        """Unpickles a value. Raises it if it is an error, and RaySystemError, as in Ray, where its code does not let it be unpickled."""
        outer = self.arrivals.begin(object_id)
        try:
            value = serialization.deserialize(metadata, data)
        except Exception as error:  # whatever the user's unpickling raises
            raise unreadable(error) from None  # it tells of that error, which may not let itself be shown
        finally:
            self.arrivals.end(outer)
        if metadata == serialization.ERROR:
            self._core.memory_store.mark_seen(object_id)
            try:
                raise value.as_instanceof_cause() if isinstance(value, RayTaskError) else value
            finally:
                # Its traceback holds this frame: with the error in it, all that the frames above hold would wait for the collector.
                del value
        return value

    def _fetch_all(
        self, wanted: list[tuple[bytes, list[bytes]]], deadline_s: float | None, may_go_elsewhere: bool
    ) -> list[Found]:
        """From the node's store, which pulls from other nodes."""
        node_id = self._core.node_id
        if all(node_id in locations for _, locations in wanted):
            found = self.stores.fetch(wanted, 0, self._core.reactor.wait, may_go_elsewhere)
            if all(view is not None for _, view in found):
                return found
        timeout_ms = -1 if deadline_s is None else max(0, round((deadline_s - time.monotonic()) * 1000))
        return self.stores.fetch(wanted, timeout_ms, self.blocking_wait, may_go_elsewhere)

    def _ask_again(self, lost: list[bytes], attempt: int) -> None:
        core = self._core
        with core.lock:
            for object_id in lost:
                row = core.references.get(object_id)
                if row is None or row.owner is None or attempt + 1 >= FETCH_ATTEMPTS_MAX:
                    raise ObjectLostError(object_id.hex())
                core.ownership.ask_again(object_id)
