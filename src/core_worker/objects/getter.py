"""Reading objects: `get`. It blocks in the name of user code, with the lock released.

A get has two steps:

    1. It waits until the memory store knows each value, or where it lies. If one of them is an error, that is
       raised at once; of several errors the first in the order that was asked for, as in Ray.
    2. It has this node's store bring those that lie in stores, all in one request, and reads them there. Of
       those that no store gives their owner is told, and both steps are made once more for them.

A worker that waits in one of them tells its raylet (blocked_notice.py). It does not if the values lie in this
node's store already, or if their owners say at once that they are there.

Unpickling runs user code and happens outside of the lock. References that come out of a value are registered
with their owners while the value itself is held (ARCHITECTURE, rule 3). Those that come with a task's
arguments wait for its end.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from itertools import filterfalse
from typing import Any

from ray_mono.common.exceptions import GetTimeoutError, ObjectLostError, RaySystemError, RayTaskError
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef, ReferenceHome, disconnected, require_home
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.objects.future_resolver import FutureResolver
from ray_mono.core_worker.objects.long_waits import LongWaits
from ray_mono.core_worker.objects.store_reads import FOUND, NOT_HERE, Found, StoreReads
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.reference_counting.unpickled_references import UnpickledReferences
from ray_mono.core_worker.store_provider.memory_store import Entry, MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import (
    GET,
    PlasmaStoreProvider,
    Wanted,
)
from ray_mono.core_worker.task_errors import unreadable
from ray_mono.core_worker.values import serialization
from ray_mono.rpc.reactor import Waiter

CALLS_TOLD_MAX = 3
"""How many calls an error names."""

_ATOMS = frozenset({type(None), bool, int, str, bytes})
"""Nobody can tell whether two values of these types are one object."""

NOT_GIVEN = (
    "no node that is said to have a copy gave it, though it was asked several times, and its owner says that"
    " it can be had."
)
DISCONNECTED = "this process was disconnected from its cluster while it waited for objects"


class Getter:
    """Reads objects for one process."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        plasma: PlasmaStoreProvider,
        resolver: FutureResolver,
        unpickled: UnpickledReferences,
        blocked: BlockedNotice,
        long_waits: LongWaits,
        stories_of: Callable[[Sequence[bytes], int], list[str]],
        home: ReferenceHome,
    ) -> None:
        """stories_of(object ids, how many): for people, the calls that make these values. Lock not held."""
        self._env = env
        self._references = references
        self._memory_store = memory_store
        self._plasma = plasma
        self._resolver = resolver
        self._unpickled = unpickled
        self._blocked = blocked
        self._long_waits = long_waits
        self._first_s = long_waits.first_s
        self._stories_of = stories_of
        self._home = home
        self._lock = env.lock
        self._known = memory_store.plain_or_entry
        self._stores = StoreReads(env, plasma, resolver)

    # ---- get

    def get(self, refs: list[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        """See CoreInterface.get. The caller's `refs` keep the objects alive meanwhile."""
        home = self._home
        for ref in refs:
            if ref._home is not home:
                require_home(ref, home)
        if len(refs) == 1:
            # The usual case, kept short: one small value.
            object_id = refs[0]._id
            value = self._known(object_id)
            if value is None and timeout_s is None:
                value = self._await_one(object_id)
            if type(value) is bytes:
                try:
                    return [pickle.loads(value)]
                except Exception as error:
                    raise unreadable(error) from None
        return self.get_ids([ref._id for ref in refs], timeout_s)

    def get_ids(
        self,
        object_ids: list[bytes],
        timeout_s: float | None,
        priority: Any = GET,
        may_go_elsewhere: bool = False,
    ) -> list[Any]:
        """Like get, for objects that the caller holds in another way. priority: GET or TASK_ARGUMENTS.
        may_go_elsewhere: raise NoRoomHere instead of waiting long for room in this node's store."""
        deadline_s = self._deadline_s(timeout_s)
        values: dict[bytes, Any] = {}
        wanted = object_ids
        is_first = True
        # How often an object was asked for in vain at the same nodes.
        tries: dict[tuple[bytes, ...], int] = {}
        while True:
            failed = self._await_ready(wanted, deadline_s, timeout_s)
            if is_first:
                is_first = False
                known = list(map(self._known, object_ids))
                if failed is None and set(map(type, known)) == {bytes}:
                    return self._read_plain(known)
                wanted = list(dict.fromkeys(object_ids))
            # Raises the error, if there is one.
            ready = wanted if failed is None else [failed]
            missing = self._read_ready(ready, values, deadline_s, timeout_s, priority, may_go_elsewhere)
            if not missing:
                break
            self._tell_lost(missing, tries)
            wanted = list(missing)
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
        self._env.reactor.raise_if_interrupted()
        return result

    def _read_plain(self, known: list[Any]) -> list[Any]:
        """Small values without references inside, as most are. Often all are alike: None."""
        try:
            first = pickle.loads(known[0])
            if (
                type(first) in _ATOMS
                and known.count(known[0]) == len(known)
                and serialization.plain_pickle(first) == known[0]  # no code of the user's made it
            ):
                result = [first] * len(known)
            else:
                result = [first, *map(pickle.loads, known[1:])]
        except Exception as error:
            raise unreadable(error) from None
        self._env.reactor.raise_if_interrupted()
        return result

    def _deadline_s(self, timeout_s: float | None) -> float | None:
        return None if timeout_s is None else self._env.clock.time_s() + timeout_s

    def await_ready(self, object_ids: Sequence[bytes], timeout_s: float | None) -> None:
        """Waits until the memory store knows each. Raises GetTimeoutError, and RaySystemError if this process
        has left."""
        self._await_ready(object_ids, self._deadline_s(timeout_s), timeout_s)

    def _await_one(self, object_id: bytes) -> bytes | Entry | None:
        """Waits until the memory store knows it, and returns what it knows."""
        reactor, store = self._env.reactor, self._memory_store
        waiter = Waiter(reactor)
        with self._lock:
            if reactor.is_closed:
                raise disconnected()
            row = self._references.get(object_id)
            if row is not None and row.owner is not None:
                self._resolver.ask_owner(object_id)
            if store.when_ready(object_id, waiter.set):
                return self._known(object_id)
        try:
            is_driver, is_over = self._env.is_driver, False
            if is_driver:
                # The usual wait, kept short.
                try:
                    is_over = reactor.wait(waiter, self._first_s) or reactor.is_closed
                except KeyboardInterrupt:
                    self._long_waits.interrupted((object_id,))
                    raise
            if not is_over:
                self._wait_for((object_id,), waiter, None, self._first_s if is_driver else 0.0)
        finally:
            if not waiter.done:
                with self._lock:
                    store.forget_waiter(object_id, waiter.set)
        if not waiter.done:
            raise RaySystemError(DISCONNECTED)
        return self._known(object_id)

    def _wait_for(
        self, object_ids: Sequence[bytes], waiter: Waiter, timeout_s: float | None, waited_s: float = 0.0
    ) -> None:
        wait = partial(self._blocked.wait_for, object_ids, waiter)
        self._long_waits.wait(wait, object_ids, timeout_s, waited_s=waited_s)

    def _await_ready(
        self, object_ids: Sequence[bytes], deadline_s: float | None, timeout_s: float | None
    ) -> bytes | None:
        """Waits until the memory store knows all of them, or one is an error. Returns the id of that one,
        else None."""
        env, store = self._env, self._memory_store
        waiter = Waiter(env.reactor)
        with self._lock:
            if env.reactor.is_closed:
                raise disconnected()
            missing = list(filterfalse(store.is_known, object_ids))
            if not missing:
                return None
            for object_id in self._references.borrowed_of(missing):
                self._resolver.ask_owner(object_id)
            failed = store.first_error(object_ids)
            if failed is not None:
                return failed
            wait = store.start_wait(missing, object_ids, waiter.set)
        if wait is None:
            return None
        try:
            left_s = None if deadline_s is None else max(0.0, deadline_s - env.clock.time_s())
            self._wait_for(object_ids, waiter, left_s)
        finally:
            with self._lock:
                is_over = wait.is_over
                wait.close()
        if not waiter.done and env.reactor.is_closed:
            raise RaySystemError(DISCONNECTED)
        if is_over:
            return None
        with self._lock:
            failed = store.first_error(object_ids)
            wanted = dict.fromkeys(object_ids)
            missing = [each for each in wanted if store.is_pending(each)]
        if failed is None:
            raise self._timeout(missing, len(wanted), timeout_s)
        return failed

    def _timeout(self, missing: Sequence[bytes], num_wanted: int, timeout_s: float | None) -> GetTimeoutError:
        calls = self._stories_of(missing, CALLS_TOLD_MAX)
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
        priority: Any = GET,
        may_go_elsewhere: bool = False,
    ) -> dict[bytes, list[bytes]]:
        """Puts the values of ready objects into `values`, and returns the others: those that no store had,
        each with the nodes that were asked; and without nodes those that somebody else has found to be lost
        meanwhile. Raises the errors among the values."""
        in_stores: list[Wanted] = []
        here: list[tuple[bytes, bytes, Any]] = []
        missing: dict[bytes, list[bytes]] = {}
        with self._env.lock:
            for object_id in object_ids:
                entry = self._memory_store.get(object_id)
                if entry is None and self._memory_store.is_pending(object_id):
                    missing[object_id] = []
                    continue
                if entry is None:
                    raise RaySystemError(
                        f"object {object_id.hex()} went away during get: {self._references.story(object_id)}"
                    )
                if entry.data is not None:
                    here.append((object_id, entry.metadata, entry.data))
                elif (pinned := self._plasma.here(object_id)) is not None:
                    here.append((object_id, pinned[0].metadata, pinned[1]))
                else:
                    in_stores.append((object_id, list(entry.locations or ()), entry.size_bytes))
        for object_id, metadata, data in here:
            values[object_id] = self.read(object_id, metadata, data)
        if not in_stores:
            return missing
        found = self._fetch_all(in_stores, deadline_s, priority, may_go_elsewhere)
        asked = {object_id: locations for object_id, locations, _ in in_stores}
        for object_id in self._read_found(found, values, len(object_ids), timeout_s):
            missing[object_id] = asked[object_id]
        return missing

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
        """Unpickles a value. Raises it if it is an error. Raises RaySystemError, as in Ray, if it cannot be
        unpickled."""
        outer = self._unpickled.begin(object_id)
        try:
            value = serialization.deserialize(metadata, data)
        except Exception as error:  # whatever unpickling raises, which runs the user's code
            raise unreadable(error) from None  # that text is all: the error itself may fail when it is shown
        finally:
            self._unpickled.end(outer)
        if metadata == serialization.ERROR:
            self._memory_store.mark_seen(object_id)
            try:
                raise value.as_instanceof_cause() if isinstance(value, RayTaskError) else value
            finally:
                # The error's traceback holds this frame. If the frame held the error, what the frames above
                # hold would wait for the collector.
                del value
        return value

    def _fetch_all(
        self, wanted: list[Wanted], deadline_s: float | None, priority: Any, may_go_elsewhere: bool
    ) -> list[Found]:
        """Reads them from the node's store, which pulls from other nodes."""
        node_id = self._env.node_id
        if all(node_id in locations for _, locations, _ in wanted):
            found = self._stores.fetch(wanted, 0, self._env.reactor.wait, may_go_elsewhere, priority)
            if all(view is not None for _, view in found):
                return found
        left_s = None if deadline_s is None else max(0.0, deadline_s - self._env.clock.time_s())
        timeout_ms = -1 if left_s is None else round(left_s * 1000)
        object_ids = [object_id for object_id, _, _ in wanted]

        def wait(waiter: Waiter, timeout_s: float | None) -> bool:
            return self._long_waits.wait(partial(self._blocked.wait, waiter), object_ids, timeout_s)

        with self._blocked.fetches(object_ids):
            return self._stores.fetch(wanted, timeout_ms, wait, may_go_elsewhere, priority)

    def _tell_lost(self, missing: dict[bytes, list[bytes]], tries: dict[tuple[bytes, ...], int]) -> None:
        for object_id, node_ids in missing.items():
            if not node_ids:
                continue
            with self._env.lock:
                place = (object_id, *node_ids)
                tries[place] = tries.get(place, 0) + 1
                times_max = self._env.config.fetch_attempts_max
                if tries[place] >= 2 * times_max:
                    raise ObjectLostError(object_id.hex(), detail=NOT_GIVEN)
                gives_up = tries[place] == times_max
                error = self._resolver.lost(object_id, node_ids, gives_up)
            if error is not None:
                self.read(object_id, *error)
