"""`wait`: which of some references are ready; with fetch_local, which of them are on this node. Like `get` it
blocks in the name of user code.

It works in rounds. A round looks at all references under the lock. If too few are ready, it asks the owners
of the others, has this node's store pull what lies in other stores, and sleeps until enough of that has come.
A wait whose time is over asks and pulls as well. So a program that looks again and again, without waiting,
gets there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.objects.future_resolver import FutureResolver
from ray_mono.core_worker.objects.getter import DISCONNECTED
from ray_mono.core_worker.objects.long_waits import LongWaits
from ray_mono.core_worker.objects.store_reads import FOUND, LOST
from ray_mono.core_worker.reference_counting.dropped_references import DroppedReferences
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import Entry, MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import WAIT, PlasmaStoreProvider
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError


class ObjectWait:
    """Waits of one process."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        plasma: PlasmaStoreProvider,
        dropped: DroppedReferences,
        resolver: FutureResolver,
        blocked: BlockedNotice,
        long_waits: LongWaits,
    ) -> None:
        self._env = env
        self._references = references
        self._memory_store = memory_store
        self._plasma = plasma
        self._dropped = dropped
        self._resolver = resolver
        self._blocked = blocked
        self._long_waits = long_waits
        # Copies that are on their way to this node's store because somebody waits, or looked once; and what
        # is called when they are here.
        self._pulls: dict[bytes, list[Callable[[], None]]] = {}

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout_s: float | None, fetch_local: bool
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        env, resolver = self._env, self._resolver
        deadline_s = None if timeout_s is None else env.clock.time_s() + timeout_s
        # With fetch_local: what was brought here meanwhile, and what is on its way.
        fetched: set[bytes] = set()
        pulling: set[bytes] = set()
        waiter = Waiter(env.reactor)
        missing, has_waited = 0, False

        def one_more() -> None:
            # It counts for the present round: a pull may outlast the round that began it.
            nonlocal missing
            missing -= 1
            if missing <= 0:
                waiter.set()

        def pulled(object_id: bytes) -> None:
            fetched.add(object_id)
            one_more()

        while True:
            waiter = Waiter(env.reactor)
            with env.lock:
                self._dropped.drain()
                ready, pending, elsewhere = self._look(refs, num_returns, fetch_local, fetched)
                left_s = None if deadline_s is None else deadline_s - env.clock.time_s()
                if len(ready) >= num_returns or env.reactor.is_closed:
                    break
                awaited, num_enough = pending + elsewhere, num_returns - len(ready)
                if left_s is not None and left_s <= 0:
                    # A program that looks again and again without waiting has to get it in the end.
                    for object_id in pending:
                        resolver.ask_owner(object_id)
                    for object_id in elsewhere:
                        self.pull(object_id, None)
                    if not has_waited:
                        self._long_waits.looked_in_vain(awaited, num_enough)
                    break
                missing = num_enough
                watch = self._memory_store.watch(pending, one_more)
                for object_id in self._references.borrowed_of(pending):
                    # An owner may be gone, which shows as soon as it is asked.
                    resolver.ask_owner(object_id)
                for object_id in elsewhere:
                    if object_id not in pulling:
                        pulling.add(object_id)
                        self.pull(object_id, partial(pulled, object_id))
            has_waited = True
            try:
                wait = partial(self._blocked.wait_for, awaited, waiter, num_enough=num_enough)
                self._long_waits.wait(wait, awaited, left_s, num_enough)
            finally:
                with env.lock:
                    self._memory_store.end_watch(watch)
        env.reactor.raise_if_interrupted()
        if len(ready) < num_returns and env.reactor.is_closed:
            raise RaySystemError(DISCONNECTED)
        if ready == refs[: len(ready)]:
            return ready, refs[len(ready) :]
        chosen = {ref._id for ref in ready}
        return ready, [ref for ref in refs if ref._id not in chosen]

    def _look(
        self, refs: list[ObjectRef[Any]], num_returns: int, fetch_local: bool, fetched: set[bytes]
    ) -> tuple[list[ObjectRef[Any]], list[bytes], list[bytes]]:
        """Returns (the first num_returns that are ready, ids of pending ones, ids of those that lie only in
        other nodes' stores). Lock held."""
        known_of = self._memory_store.plain_or_entry
        node_id = self._env.node_id
        ready: list[ObjectRef[Any]] = []
        pending: list[bytes] = []
        elsewhere: list[bytes] = []
        for ref in refs:
            known = known_of(ref._id)
            if known is None:
                pending.append(ref._id)
                continue
            if type(known) is Entry:
                at = known.locations
                if fetch_local and at and node_id not in at and ref._id not in fetched:
                    elsewhere.append(ref._id)
                    continue
                # If it is an error, nobody has to print it: `wait` tells that it is there, as in Ray.
                self._memory_store.mark_seen(ref._id)
            ready.append(ref)
            if len(ready) == num_returns:
                break
        return ready, pending, elsewhere

    def pull(self, object_id: bytes, then: Callable[[], None] | None) -> None:
        """Brings a copy to this node's store, and calls then() afterwards, also if it cannot be brought: then
        `get` says why. Lock held."""
        is_new = object_id not in self._pulls
        self._pulls.setdefault(object_id, []).extend([then] if then is not None else [])
        if is_new:
            self._start_pull(object_id, self._env.config.fetch_attempts_max)

    def _start_pull(self, object_id: bytes, attempts: int) -> None:
        """attempts: how many are left, with this one."""
        if not self._memory_store.when_ready(object_id, partial(self._start_pull, object_id, attempts)):
            return  # it is lost, and its owner looks for it
        entry = self._memory_store.get(object_id)
        if not attempts or entry is None or not entry.locations:
            self._pulled(object_id)
            return
        locations = list(entry.locations)

        def done(found: list[Any], error: RpcError | None) -> None:
            is_lost = False
            for item in found:
                is_lost = item.state == LOST
                if item.state == FOUND:
                    self._plasma.release(item.object_id)
                    if item.pulled:
                        self._resolver.pulled_here(object_id)
            if is_lost:
                self._resolver.lost(object_id, locations)
                self._start_pull(object_id, attempts - 1)
            else:
                self._pulled(object_id)

        self._plasma.start_get([(object_id, locations, entry.size_bytes)], -1, done, priority=WAIT)

    def _pulled(self, object_id: bytes) -> None:
        for one in self._pulls.pop(object_id):
            one()
