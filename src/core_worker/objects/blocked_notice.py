"""Waits of user code: a worker tells its raylet that the CPUs of its task are free meanwhile.

    running ──the task's first wait begins──────────────────────► BLOCKED   (NotifyBlocked)
    BLOCKED ──its last wait is over, or the next task begins──► running   (NotifyUnblocked)

Several threads of a task may wait at once. The first one to wait tells the raylet, and the last one takes it
back. If everything that is missing belongs to other processes, it may be there already. So the owners get a
moment to say so before the raylet is told. A driver tells nobody.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ray_mono.common.explanation import WaitCode
from ray_mono.common.our_bug import InternalError
from ray_mono.common.wait_messages import THE_HEAD
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.rpc.reactor import Waiter


@dataclass(frozen=True)
class OtherWait:
    """A wait of a task that is for no value."""

    task_id: bytes
    code: WaitCode
    what: str
    subject: common_pb2.WaitSubject | None
    """Whom it waits for, where that says more."""
    unblock: str = ""


class _Wait(NamedTuple):
    """Of a task, for the values of objects."""

    task_id: bytes
    object_ids: Collection[bytes]
    num_enough: int | None = None
    """So many are; None: all are needed."""
    is_timed: bool = False
    """It ends when a time is over."""
    thread: int = 0
    """That waits."""


class BlockedNotice:
    """The waits of one process."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        plasma: PlasmaStoreProvider,
    ) -> None:
        self._env = env
        self._context = context
        self._references = references
        self._memory_store = memory_store
        self._plasma = plasma
        self._tells_raylet = not env.is_driver
        self.num_blocked = 0
        """Waits of the task that runs, and those that earlier ones left behind."""
        # How many tasks began while threads of earlier ones still waited. Waits of earlier epochs do not
        # count.
        self._epoch = 0
        # The lease under which this worker runs what it runs.
        self._lease_id = b""
        self._before: Callable[[], None] | None = None
        # A worker's.
        self._waits: dict[object, _Wait] = {}
        self._other_waits: dict[object, OtherWait] = {}

    @property
    def lease_id(self) -> bytes:
        return self._lease_id

    def before_each(self, callback: Callable[[], None]) -> None:
        """callback() runs before each wait, on the thread that is about to wait, without the lock."""
        self._before = callback

    def under_lease(self, lease_id: bytes) -> None:
        """The tasks pushed from now on run under this lease. Lock held."""
        self._lease_id = lease_id

    def task_begins(self) -> None:
        """A worker starts a normal task. Threads that earlier tasks left behind may still wait; their waits
        are not this task's."""
        if not self.num_blocked:
            return
        with self._env.lock:
            self.num_blocked = 0
            self._epoch += 1
            self._env.raylet.NotifyUnblocked.notify(self._notice())

    def block(self) -> int:
        """The task's CPUs are free from now on. Returns the epoch, which `unblock` takes. Lock held."""
        self.num_blocked += 1
        if self.num_blocked == 1:
            self._env.raylet.NotifyBlocked.notify(self._notice())
        return self._epoch

    def unblock(self, epoch: int) -> None:
        """The task's CPUs are in use again, unless something else still waits. Lock held."""
        if epoch == self._epoch:
            self.num_blocked -= 1
            if self.num_blocked == 0:
                self._env.raylet.NotifyUnblocked.notify(self._notice())

    def _notice(self) -> raylet_pb2.NotifyBlockedRequest:
        return raylet_pb2.NotifyBlockedRequest(worker_id=self._env.worker_id, lease_id=self._lease_id)

    # ---- waits

    def wait(self, waiter: Waiter, timeout_s: float | None) -> bool:
        """Waits at most timeout_s seconds; None: as long as it takes. False at the timeout. The lock must not
        be held."""
        if waiter.done:
            return True
        env = self._env
        if env.lock._is_owned():
            raise InternalError("a thread would wait under the core worker's lock")
        if self._before is not None:
            self._before()
        if not self._tells_raylet:
            return env.reactor.wait(waiter, timeout_s)
        epoch = -1
        try:
            with env.lock:
                epoch = self.block()
            return env.reactor.wait(waiter, timeout_s)
        finally:
            if epoch >= 0:
                with env.lock:
                    self.unblock(epoch)

    def wait_for(
        self,
        object_ids: Collection[bytes],
        waiter: Waiter,
        timeout_s: float | None,
        num_enough: int | None = None,
    ) -> bool:
        """As `wait`, for the values of these objects: their owners get owners_answer_s before the raylet is
        told. num_enough: so many of them are; None: all are needed."""
        if not self._tells_raylet or waiter.done:
            return self.wait(waiter, timeout_s)
        this = object()
        task_id = self._context.get().task_id
        self._waits[this] = _Wait(
            task_id, object_ids, num_enough, timeout_s is not None, threading.get_ident()
        )
        try:
            return self._wait_for(object_ids, waiter, timeout_s)
        finally:
            del self._waits[this]

    @contextlib.contextmanager
    def fetches(self, object_ids: Collection[bytes], task_id: bytes | None = None) -> Iterator[None]:
        """Around a wait for values that are in stores. task_id: of the task that needs them, if it has not
        begun."""
        this = object()
        self._waits[this] = _Wait(task_id or self._context.get().task_id, object_ids)
        try:
            yield
        finally:
            del self._waits[this]

    def waited_for_by(self, task_id: bytes) -> list[bytes]:
        """The objects that a task of this worker waits for in get or wait, or as arguments, and that are not
        there, or not here. Lock held."""
        return [each for wait in self._waits_of(task_id) for each in wait.object_ids if self.is_missing(each)]

    def enough_for(self, task_id: bytes) -> int | None:
        """How many of `waited_for_by` are enough for the task to go on; None where it needs all, or waits
        several times. Lock held."""
        waits = self._waits_of(task_id)
        if len(waits) != 1 or waits[0].num_enough is None:
            return None
        num_there = sum(not self.is_missing(each) for each in waits[0].object_ids)
        return max(0, waits[0].num_enough - num_there)

    def is_timed(self, task_id: bytes) -> bool:
        """Whether a wait of the task ends when a time is over. Lock held."""
        return any(wait.is_timed for wait in self._waits_of(task_id))

    def who_blocks(self, thread: int) -> bytes | None:
        """The task that waits for values on this thread."""
        waits = (wait.task_id for wait in list(self._waits.values()) if wait.thread == thread)
        return next(waits, None)

    def _waits_of(self, task_id: bytes) -> list[_Wait]:
        return [wait for wait in list(self._waits.values()) if wait.task_id == task_id]

    def is_missing(self, object_id: bytes) -> bool:
        """It is not there, or it is wanted here and not here. Lock held."""
        return self._memory_store.is_pending(object_id) or self._plasma.is_fetched(object_id)

    @contextlib.contextmanager
    def noted(
        self,
        code: WaitCode,
        what: str,
        subject: common_pb2.WaitSubject | None,
        task_id: bytes | None = None,
        unblock: str = "",
    ) -> Iterator[None]:
        """Around a wait of a task that is for no value: so `explain` knows of it. task_id: None is the one of
        this thread."""
        this = object()
        self._other_waits[this] = OtherWait(task_id or self._context.task_id(), code, what, subject, unblock)
        try:
            yield
        finally:
            del self._other_waits[this]

    def asks_head(self, wanted: str) -> contextlib.AbstractContextManager[None]:
        """Around a call of the head for which a task waits. wanted: for people."""
        return self.noted(WaitCode.HEAD, f"the head, which it asked for {wanted}", THE_HEAD)

    def other_wait_of(self, task_id: bytes) -> OtherWait | None:
        """For what else than values a task of this process waits."""
        waits = (wait for wait in list(self._other_waits.values()) if wait.task_id == task_id)
        return next(waits, None)

    def _wait_for(self, object_ids: Collection[bytes], waiter: Waiter, timeout_s: float | None) -> bool:
        if self._asks_owners_only(object_ids):
            moment_s = self._env.config.owners_answer_s
            if timeout_s is not None and timeout_s <= moment_s:
                return self._env.reactor.wait(waiter, timeout_s)
            if self._env.reactor.wait(waiter, moment_s):
                return True
            if timeout_s is not None:
                timeout_s -= moment_s
        return self.wait(waiter, timeout_s)

    def _asks_owners_only(self, object_ids: Collection[bytes]) -> bool:
        with self._env.lock:
            for object_id in object_ids:
                if self._memory_store.is_pending(object_id):
                    row = self._references.get(object_id)
                    if row is None or row.owner is None:
                        return False
        return True
