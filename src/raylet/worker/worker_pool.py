"""The worker pool: which processes there are, which are free, and when to start or end some. Pure.

**Whom they serve.** Workers start without a job. The first lease binds a worker to its job, its runtime
environment, and whether it has GPUs, and from then on it serves only that: its sys.path, modules and
environment are the job's, and a library that found no GPU looks no second time. `take` prefers the worker
of a binding that was used last, whose caches are warm, then one that is not bound yet. An actor gets a
worker that was never used: its worker ends with it, and objects that earlier tasks had left there would end
too.

**How many.** One is started for each lease that waits for a worker and finds none starting. Beside actors
at least `prestart` are kept. Never more than `startup_concurrency` start at once. Idle workers above
`soft_limit` (and `prestart`) are asked to end after `idle_timeout_s`, the longest idle first. A start that
does not register in time is killed and made again, and starts that keep failing are spaced out. While the
GCS is away none is made.

The pool does not know resources or queues: the lease manager tells it how many leases wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ray_mono.common.backoff import Backoff
from ray_mono.common.our_bug import InternalError, check
from ray_mono.raylet.effects import Effect, EndMode, EndWorker, StartWorker
from ray_mono.raylet.worker.binding import Binding
from ray_mono.raylet.worker.worker_states import Worker, WorkerState

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0
"""Pauses between starts while they fail: doubled from the first to this, so that a broken environment costs
little CPU."""


@dataclass(frozen=True)
class PoolLimits:
    startup_concurrency: int
    prestart: int
    soft_limit: int
    idle_timeout_s: float
    register_timeout_s: float


class WorkerPool:
    """Every worker process of one node."""

    def __init__(self, limits: PoolLimits, new_worker_id: Callable[[], bytes]) -> None:
        self._limits = limits
        self._new_worker_id = new_worker_id
        self._workers: dict[bytes, Worker] = {}
        self._next_token = 1
        # Derived: idle ids by binding, longest idle first; ids that start; how many are actors.
        # `check_invariants` recounts them.
        self._idle: dict[Binding | None, dict[bytes, None]] = {}
        self._starting: dict[bytes, None] = {}
        self.num_actors = 0
        self._backoff = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        self._is_failing = False
        self._next_start_s = 0.0
        self.start_trouble = ""
        """What the last start died of; empty once one succeeds."""

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def get(self, worker_id: bytes) -> Worker | None:
        return self._workers.get(worker_id)

    def started_as(self, startup_token: int) -> Worker | None:
        """The worker that was started with this token; None where it is gone."""
        return next((worker for worker in self if worker.startup_token == startup_token), None)

    @property
    def num_starting(self) -> int:
        return len(self._starting)

    # ---- workers for leases

    def can_serve(self, binding: Binding, for_actor: bool = False) -> bool:
        """Whether `take` would find a worker."""
        return bool(self._candidates(binding, for_actor))

    def take(self, binding: Binding, lease_id: bytes, for_actor: bool, now_s: float) -> Worker:
        """Gives an idle worker to a lease. Raises InternalError where `can_serve` is false."""
        idle = self._candidates(binding, for_actor)
        if not idle:
            raise InternalError(f"no idle worker for {binding}")
        worker = self._workers[next(reversed(idle))]
        self._forget_idle(worker)
        worker.lease(binding, lease_id, for_actor, now_s)
        self.num_actors += for_actor
        return worker

    def _candidates(self, binding: Binding, for_actor: bool) -> dict[bytes, None] | None:
        return (None if for_actor else self._idle.get(binding)) or self._idle.get(None)

    def give_back(self, worker: Worker, now_s: float) -> None:
        """A lease ended and its worker may serve another."""
        worker.give_back(now_s)
        self._remember_idle(worker)

    def leaves(self, worker: Worker, now_s: float) -> None:
        """A lease ended with the last call that its worker takes."""
        self.num_actors -= worker.state is WorkerState.ACTOR
        worker.leave(now_s)

    def end(self, worker: Worker, mode: EndMode, reason: str, now_s: float) -> list[Effect]:
        """Has a worker end; whatever it holds stays held until `died`."""
        if worker.state is WorkerState.IDLE:
            self._forget_idle(worker)
        self._starting.pop(worker.worker_id, None)
        self.num_actors -= worker.state is WorkerState.ACTOR
        worker.tell_to_end(reason, now_s)
        return [EndWorker(worker.worker_id, worker.startup_token, mode, reason)]

    # ---- what happened to processes

    def registered(self, startup_token: int, worker_id: bytes, pid: int, now_s: float) -> str:
        """A worker process announced itself. Returns why it is refused, or "" where it is idle now."""
        worker = self._workers.get(worker_id)
        if startup_token == 0 and worker is None:
            worker = self._workers[worker_id] = Worker(worker_id, 0, since_s=now_s)
            self._starting[worker_id] = None
        if worker is None or worker.startup_token != startup_token:
            return f"no worker {worker_id.hex()} with startup token {startup_token} was started here"
        if worker.state is not WorkerState.STARTING:
            why = worker.end_reason or "it registered before"
            return f"worker {worker_id.hex()} is {worker.state.value} here: {why}"
        del self._starting[worker_id]
        worker.register(pid, now_s)
        self._remember_idle(worker)
        self._backoff.reset()
        self._is_failing = False
        self._next_start_s = 0.0
        self.start_trouble = ""
        return ""

    def died(self, worker_id: bytes, reason: str, now_s: float) -> Worker | None:
        """The process is gone, or its connection. Returns the worker, its lease still named, or None where
        it is not known any more."""
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return None
        if worker.state is WorkerState.IDLE:
            self._forget_idle(worker)
        if worker.state is WorkerState.STARTING:
            self._start_failed(worker, reason, now_s)
        self.num_actors -= worker.state is WorkerState.ACTOR
        worker.die(now_s)
        return worker

    def refused_to_end(self, worker_id: bytes, now_s: float) -> None:
        """A worker that was asked still owns objects: it is idle again, as if just used."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.state is WorkerState.ENDING and worker.lease_id is None:
            worker.refuse_to_end(now_s)
            self._remember_idle(worker)

    # ---- how many there should be

    def drain(self) -> None:
        """The node is to end: no worker is started ahead of need."""
        self._limits = replace(self._limits, prestart=0)

    def replenish(self, num_waiting: int, now_s: float) -> list[Effect]:
        """Starts what `num_waiting` leases and the prestart ask for, within the limits."""
        if now_s < self._next_start_s:
            return []
        beside_actors = len(self._workers) - self.num_actors
        wanted = max(num_waiting - len(self._starting), self._limits.prestart - beside_actors)
        room = self._limits.startup_concurrency - len(self._starting)
        if self._is_failing:
            room = min(room, 1 - len(self._starting))
        effects: list[Effect] = []
        for _ in range(min(wanted, room)):
            worker = Worker(self._new_worker_id(), self._next_token, since_s=now_s)
            self._next_token += 1
            self._workers[worker.worker_id] = worker
            self._starting[worker.worker_id] = None
            effects.append(StartWorker(worker.startup_token, worker.worker_id))
        return effects

    def tick(self, now_s: float) -> list[Effect]:
        """Ends starts that took too long, and workers that were idle for too long."""
        effects: list[Effect] = []
        for worker_id in list(self._starting):
            worker = self._workers[worker_id]
            if now_s - worker.since_s >= self._limits.register_timeout_s:
                reason = f"it did not register within {self._limits.register_timeout_s:g} s of its start"
                self._start_failed(worker, reason, now_s)
                effects += self.end(worker, EndMode.KILL, reason, now_s)
        idle = [self._workers[worker_id] for group in self._idle.values() for worker_id in group]
        beside_actors = sum(
            1
            for worker in self
            if worker.state not in (WorkerState.ACTOR, WorkerState.LEAVING, WorkerState.ENDING)
        )
        surplus = beside_actors - max(self._limits.soft_limit, self._limits.prestart)
        for worker in sorted(idle, key=lambda worker: (worker.since_s, worker.startup_token))[
            : max(surplus, 0)
        ]:
            if now_s - worker.since_s >= self._limits.idle_timeout_s:
                effects += self.end(worker, EndMode.ASK, "it was idle and more were than are kept", now_s)
        return effects

    def job_finished(self, job_id: bytes, now_s: float) -> list[Effect]:
        """Ends the workers without a lease that are bound to a job whose driver is gone."""
        return self._end_bound(job_id, False, now_s)

    def job_over(self, job_id: bytes, now_s: float) -> list[Effect]:
        """Ends those as well that served its detached actors."""
        return self._end_bound(job_id, True, now_s)

    def _end_bound(self, job_id: bytes, outlives_job: bool, now_s: float) -> list[Effect]:
        bound = [
            worker
            for worker in self
            if worker.state in (WorkerState.IDLE, WorkerState.LEAVING)
            and worker.binding is not None
            and worker.binding.job_id == job_id
            and worker.binding.outlives_job == outlives_job
        ]
        return [
            effect for worker in bound for effect in self.end(worker, EndMode.KILL, "its job is over", now_s)
        ]

    def check_invariants(self) -> None:
        """Recounts what is derived. Raises InternalError."""
        idle = {worker_id for group in self._idle.values() for worker_id in group}
        check(idle == self._ids_in(WorkerState.IDLE), "the pool's idle workers are miscounted")
        starting = self._ids_in(WorkerState.STARTING)
        check(set(self._starting) == starting, "the pool's starting workers are miscounted")
        num_actors = len(self._ids_in(WorkerState.ACTOR))
        check(self.num_actors == num_actors, "the pool's actors are miscounted")
        leases = [worker.lease_id for worker in self if worker.lease_id is not None]
        check(len(leases) == len(set(leases)), "a lease has two workers")

    def describe(self, now_s: float) -> dict[str, Any]:
        """For people."""
        workers = [worker.describe(now_s) for worker in self]
        return {"workers": workers, "start_trouble": self.start_trouble}

    # ---- inside

    def _ids_in(self, state: WorkerState) -> set[bytes]:
        return {worker.worker_id for worker in self if worker.state is state}

    def _start_failed(self, worker: Worker, reason: str, now_s: float) -> None:
        self._starting.pop(worker.worker_id, None)
        self._next_start_s = now_s + self._backoff.next_s()
        self._is_failing = True
        self.start_trouble = reason

    def _remember_idle(self, worker: Worker) -> None:
        self._idle.setdefault(worker.binding, {})[worker.worker_id] = None

    def _forget_idle(self, worker: Worker) -> None:
        group = self._idle[worker.binding]
        del group[worker.worker_id]
        if not group:
            del self._idle[worker.binding]
