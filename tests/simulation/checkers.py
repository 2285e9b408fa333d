"""Judges that stand outside of what they judge: they see what processes see, in the one order that virtual
time gives.

The Journal is told by simulated drivers and workers what happens to them and raises CheckFailed at the moment
that something is wrong:

- a worker has two leases, or two tasks at once;
- the leases on a node hold more than the node has;
- a task completes twice, or is run more often than its retries allow;
- a task is started again after it was cancelled.

A lease counts as held from the driver's receipt of the grant until the driver sends the worker back, or the
worker is dead: less than what the raylet sees, so what overlaps here overlapped there. A worker that waits in
`get` gives its CPUs to others and takes them back without asking. Its notices travel on a connection of their
own, so nobody outside knows when, or during which of its leases, the raylet hears of them: the CPUs of
workers that ever waited are not counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ray_mono.common.ids import JobID
from ray_mono.common.scheduling.resources import CPU, ResourceSet
from tests.simulation.actor_checkers import ActorJournal
from tests.simulation.loop import SimulationError
from tests.simulation.object_checkers import ObjectJournal

DRIVER_DIED = "its driver died"


class CheckFailed(SimulationError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class HeldLease:
    """A lease as its driver knows it."""

    lease_id: bytes
    worker_id: bytes
    node_id: bytes
    resources: ResourceSet


@dataclass
class TaskStory:
    """What became of a task."""

    max_retries: int
    owner: bytes
    """Of the process that submitted it: its worker id."""
    attempts_run: int = 0
    outcome: str = ""
    last_attempt: int | None = None
    """Of one that was cancelled: the attempt under way then."""


@dataclass
class Journal:
    """What happened so far, and whether it may."""

    node_totals: dict[bytes, ResourceSet] = field(default_factory=dict)
    tasks: dict[bytes, TaskStory] = field(default_factory=dict)
    leases: dict[bytes, HeldLease] = field(default_factory=dict)
    # worker id -> lease id; task id being run. Invariant: leases and this name each other.
    lease_of_worker: dict[bytes, bytes] = field(default_factory=dict)
    running: dict[bytes, bytes] = field(default_factory=dict)
    grants: int = 0
    actors: ActorJournal = field(default_factory=ActorJournal)
    objects: ObjectJournal = field(default_factory=ObjectJournal)
    # Ordered sets.
    _dead_workers: dict[bytes, None] = field(default_factory=dict)
    _have_waited: dict[bytes, None] = field(default_factory=dict)
    _gone_jobs: dict[bytes, None] = field(default_factory=dict)
    # worker id -> tasks that it submitted.
    _of_owner: dict[bytes, list[bytes]] = field(default_factory=dict)

    # ---- leases

    def lease_granted(self, lease: HeldLease) -> None:
        """A driver received a grant; perhaps of a worker that has died meanwhile, and holds nothing."""
        self.grants += 1
        if lease.worker_id in self._dead_workers:
            return
        other = self.lease_of_worker.get(lease.worker_id)
        if other is not None:
            both = f"{_short(other)} and {_short(lease.lease_id)}"
            raise CheckFailed(f"worker {_short(lease.worker_id)} has two leases: {both}")
        self.leases[lease.lease_id] = lease
        self.lease_of_worker[lease.worker_id] = lease.lease_id
        self._check_node(lease.node_id)

    def lease_ended(self, lease_id: bytes) -> None:
        """A driver sends the worker back, or gives up on it."""
        lease = self.leases.pop(lease_id, None)
        if lease is not None:
            del self.lease_of_worker[lease.worker_id]

    def worker_died(self, worker_id: bytes) -> None:
        self._dead_workers[worker_id] = None
        self.actors.worker_died(worker_id)
        self.running.pop(worker_id, None)
        if worker_id in self.lease_of_worker:
            self.lease_ended(self.lease_of_worker[worker_id])
        self._owner_died(worker_id)

    def worker_waits(self, worker_id: bytes) -> None:
        """Its task waits in `get`: from now on nobody here can say what CPUs it holds."""
        self._have_waited[worker_id] = None

    def _check_node(self, node_id: bytes) -> None:
        held = ResourceSet()
        for lease in self.leases.values():
            if lease.node_id == node_id and lease.worker_id in self._have_waited:
                held = held + (lease.resources - lease.resources.only(CPU))
            elif lease.node_id == node_id:
                held = held + lease.resources
        total = self.node_totals[node_id]
        if not held.fits_in(total):
            raise CheckFailed(f"node {_short(node_id)} has {total} and its leases hold {held}")

    # ---- tasks

    def task_submitted(self, task_id: bytes, max_retries: int, owner: bytes) -> None:
        if task_id in self.tasks:
            raise CheckFailed(f"task {_short(task_id)} was submitted twice")
        story = self.tasks[task_id] = TaskStory(max_retries, owner)
        if task_id[-JobID.SIZE :] in self._gone_jobs:
            story.outcome = DRIVER_DIED
        self._of_owner.setdefault(owner, []).append(task_id)

    def task_cancelled(self, task_id: bytes, attempt: int) -> None:
        """Its owner wants it no more. The attempt under way may still begin, and may end in any way."""
        if self.tasks[task_id].last_attempt is None:
            self.tasks[task_id].last_attempt = attempt

    @contextlib.contextmanager
    def execution(self, worker_id: bytes, task_id: bytes, attempt: int) -> Iterator[None]:
        """A worker runs a task."""
        if worker_id in self.running:
            raise CheckFailed(f"worker {_short(worker_id)} runs two tasks at once")
        story = self.tasks[task_id]
        story.attempts_run += 1
        if story.attempts_run > story.max_retries + 1 or attempt > story.max_retries:
            raise CheckFailed(
                f"task {_short(task_id)} runs for the {story.attempts_run}. time, as attempt {attempt}, "
                f"and may be retried {story.max_retries} times"
            )
        if story.last_attempt is not None and attempt > story.last_attempt:
            raise CheckFailed(
                f"task {_short(task_id)} runs as attempt {attempt},"
                f" and was cancelled in attempt {story.last_attempt}"
            )
        self.running[worker_id] = task_id
        try:
            yield
        finally:
            self.running.pop(worker_id, None)

    def task_ended(self, task_id: bytes, outcome: str) -> None:
        """Its owner has the result ("done"), gave up on it ("crashed"), or has an end to its cancel."""
        story = self.tasks[task_id]
        if story.outcome == DRIVER_DIED:
            return  # this owner lives a moment longer
        if outcome == "cancelled" and story.last_attempt is None:
            raise CheckFailed(f"task {_short(task_id)} ended as cancelled, and nobody cancelled it")
        if story.outcome:
            raise CheckFailed(f"task {_short(task_id)} ended twice: {story.outcome}, then {outcome}")
        if outcome == "done" and not story.attempts_run:
            raise CheckFailed(f"task {_short(task_id)} is done and never ran")
        story.outcome = outcome

    def driver_died(self, job_id: bytes) -> None:
        """What it had submitted, and its tasks submit, matters to nobody any more."""
        self._gone_jobs[job_id] = None
        for task_id, story in self.tasks.items():
            if task_id.endswith(job_id) and not story.outcome:
                story.outcome = DRIVER_DIED

    def _owner_died(self, worker_id: bytes) -> None:
        """The same of what a task had submitted, when its worker dies."""
        for task_id in self._of_owner.pop(worker_id, []):
            if not self.tasks[task_id].outcome:
                self.tasks[task_id].outcome = "its owner died"

    # ---- the end

    def check_everything_ended(self) -> None:
        """After the drivers left: no task without an outcome, no lease held by anybody, nothing running."""
        lost = [task_id for task_id, story in self.tasks.items() if not story.outcome]
        if lost:
            raise CheckFailed(f"{len(lost)} tasks were lost: {_list(lost)}")
        if self.leases:
            raise CheckFailed(f"{len(self.leases)} leases were never ended: {_list(list(self.leases))}")
        if self.running:
            raise CheckFailed(f"workers still run tasks: {_list(list(self.running))}")
        self.actors.check_everything_ended()

    def check_no_retries(self) -> None:
        """In a run without faults every task runs exactly once."""
        again = [
            task_id
            for task_id, story in self.tasks.items()
            if story.attempts_run > 1 or (not story.attempts_run and story.outcome == "done")
        ]
        if again:
            raise CheckFailed(
                f"without faults {len(again)} tasks ran more than once, or never: {_list(again)}"
            )

    def retries(self) -> int:
        """How many attempts ran beyond the first of each task."""
        return sum(max(0, story.attempts_run - 1) for story in self.tasks.values())

    def outcomes(self) -> dict[str, int]:
        """How many tasks ended how."""
        counts: dict[str, int] = {}
        for story in self.tasks.values():
            counts[story.outcome] = counts.get(story.outcome, 0) + 1
        return counts


def _short(id_bytes: bytes) -> str:
    return id_bytes.hex()[:12]


def _list(ids: Sequence[bytes]) -> str:
    return ", ".join(_short(id_bytes) for id_bytes in ids[:5]) + (" …" if len(ids) > 5 else "")
