"""Judges that stand outside of what they judge: they see what processes see, in the one order that virtual
time gives.

The Journal is told by simulated drivers and workers what happens to them and raises CheckFailed at the moment
that something is wrong:

- a worker has two leases, or two tasks at once, or runs a task of somebody who has not leased it;
- the leases on a node hold more than the node has; one is sent back twice; tasks are pushed on one that its
  holder was told others wait for;
- a task completes twice, or is run more often than its retries allow; an attempt of it runs twice;
- a task is pushed, or started again, after it was cancelled;
- somebody reads that a task was cancelled which nobody cancelled, or of a task that has nothing to do with
  that;
- somebody reads that a task's worker crashed, and it has retries left;
- somebody reads that what a task returned is lost, and it has retries left.

A lease counts as held from the driver's receipt of the grant until the driver sends the worker back, or the
worker is dead: less than what the raylet sees, so what overlaps here overlapped there. A worker that waits in
`get` gives its CPUs to others and takes them back without asking. Its notices travel on a connection of their
own, so nobody outside knows when, or during which of its leases, the raylet hears of them: the CPUs of
workers that ever waited are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ray_mono.common.exceptions import ObjectLostError, ObjectReconstructionFailedError
from ray_mono.common.ids import PUT_INDEX_BASE, JobID, TaskID
from ray_mono.common.scheduling.bundle_resources import plain
from ray_mono.common.scheduling.resources import CPU, ResourceSet
from tests.simulation.actor_checkers import ActorJournal
from tests.simulation.group_checkers import GroupJournal
from tests.simulation.loop import SimulationError
from tests.simulation.object_checkers import ObjectJournal
from tests.simulation.stream_checkers import StreamJournal

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
    owner: bytes
    """Who leases: a worker id."""


@dataclass
class TaskStory:
    """What became of a task."""

    max_retries: int
    owner: bytes
    """Of the process that submitted it: its worker id."""
    attempts_run: int = 0
    outcome: str = ""
    arguments: tuple[bytes, ...] = ()
    """The tasks that make what it is given by reference."""
    last_pushed: int = -1
    last_attempt: int | None = None
    """Of one that was cancelled: the last that may have been under way then."""
    is_answered: bool = False
    """Its owner has had its value, which may be lost, and made again though it was cancelled meanwhile."""
    begun: set[int] = field(default_factory=set)
    """The attempts that ran."""
    num_twins: int = 0
    """How often another process submitted the same: nothing is counted then."""


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
    objects: ObjectJournal = field(init=False)
    streams: StreamJournal = field(default_factory=StreamJournal)
    groups: GroupJournal = field(default_factory=GroupJournal)
    connections_break: bool = False
    """Whether a process that lives may count as dead to another."""
    is_harmless: bool = False
    """Whether nothing goes wrong that could cost a task an attempt."""
    is_cut_off: Callable[[bytes], bool] = lambda job_id: False
    """Whether the head holds the node of the job's driver to be dead, which may live on behind a cut."""
    num_taken_away: int = 0
    """Workers that were killed for memory, at most, and nodes that were drained. What was cut off may run
    once more for each, whatever its retries."""
    # "host:port", or a path on any host -> worker id.
    _addresses: dict[str, bytes] = field(default_factory=dict)
    # Ordered sets.
    _returned: dict[bytes, None] = field(default_factory=dict)
    _reclaimed: dict[bytes, None] = field(default_factory=dict)
    _dead_workers: dict[bytes, None] = field(default_factory=dict)
    _have_waited: dict[bytes, None] = field(default_factory=dict)
    _gone_jobs: dict[bytes, None] = field(default_factory=dict)
    _ends_read: dict[bytes, None] = field(default_factory=dict)
    # worker id -> who leased it last, and lost it.
    _lost_by: dict[bytes, bytes] = field(default_factory=dict)
    # task or call -> the task that submitted it; what was cancelled -> whether its children were, too.
    _parents: dict[bytes, bytes] = field(default_factory=dict)
    _cancelled: dict[bytes, bool] = field(default_factory=dict)
    # Pushed before whoever submits it has its id.
    _pushed_at_once: dict[bytes, int] = field(default_factory=dict)
    # worker id -> tasks that it submitted.
    _of_owner: dict[bytes, list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.objects = ObjectJournal(self.actors)

    def expects(self, connections_break: bool, hosts_fall_silent: bool, is_harmless: bool) -> None:
        """What goes wrong in this run."""
        self.connections_break = self.objects.connections_break = connections_break
        self.objects.hosts_fall_silent = hosts_fall_silent
        self.actors.connections_break = connections_break
        self.is_harmless = self.objects.is_harmless = is_harmless

    def kills_for_memory(self) -> None:
        """A raylet looks for a worker to kill."""
        self.num_taken_away += 1

    def drains_node(self) -> None:
        """A node is about to be drained. Its actors may start once more."""
        self.num_taken_away += 1
        self.actors.drains_node()

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

    def lease_lost(self, lease_id: bytes) -> None:
        """Its holder holds the worker for lost. That one may live a moment longer, and begin what was on its
        way to it."""
        lease = self.leases.get(lease_id)
        if lease is not None:
            self._lost_by[lease.worker_id] = lease.owner
        self.lease_ended(lease_id)

    def lease_returned(self, lease_id: bytes) -> None:
        if lease_id in self._returned:
            raise CheckFailed(f"lease {_short(lease_id)} is sent back twice")
        self._returned[lease_id] = None
        self.lease_ended(lease_id)

    def lease_reclaimed(self, lease_id: bytes) -> None:
        """Its holder hears that others wait for it."""
        if lease_id in self.leases:
            self._reclaimed[self.leases[lease_id].worker_id + lease_id] = None

    def address_of(self, address: str, worker_id: bytes) -> None:
        """A process is reached there."""
        self._addresses[address] = worker_id

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
        there = [
            (lease.resources, lease.worker_id in self._have_waited)
            for lease in self.leases.values()
            if lease.node_id == node_id
        ]
        self.groups.check_node(node_id, there)
        for resources, has_waited in there:
            resources = plain(resources)
            held = held + (resources - resources.only(CPU) if has_waited else resources)
        total = self.node_totals[node_id]
        if not held.fits_in(total):
            raise CheckFailed(f"node {_short(node_id)} has {total} and its leases hold {held}")

    # ---- tasks

    def task_submitted(
        self, task_id: bytes, parent: bytes, max_retries: int, owner: bytes, arguments: tuple[bytes, ...] = ()
    ) -> None:
        """parent: the task that does it. arguments: by reference; the tasks that make them."""
        story = TaskStory(max_retries, owner, arguments=arguments)
        story.last_pushed = self._pushed_at_once.pop(task_id, -1)
        self._parents[task_id] = parent
        if task_id in self.tasks:
            if not self.connections_break:
                raise CheckFailed(f"task {_short(task_id)} was submitted twice")
            # By the same attempt of one task in two processes, of which the first counts as dead.
            story.num_twins = self.tasks[task_id].num_twins + 1
        self.tasks[task_id] = story
        if task_id[-JobID.SIZE :] in self._gone_jobs:
            story.outcome = DRIVER_DIED
        self._of_owner.setdefault(owner, []).append(task_id)

    def task_pushed(self, task_id: bytes, attempt: int, address: str) -> None:
        """Its owner sends it to the worker at this address."""
        worker_id = self._addresses[address]
        lease_id = self.lease_of_worker.get(worker_id)
        if lease_id is not None and worker_id + lease_id in self._reclaimed:
            raise CheckFailed(
                f"task {_short(task_id)} is pushed on lease {_short(lease_id)}, which others wait for"
            )
        story = self.tasks.get(task_id)
        if story is not None:
            if story.last_attempt is not None and not story.num_twins:
                raise CheckFailed(f"task {_short(task_id)} is pushed, and was cancelled before")
            story.last_pushed = max(story.last_pushed, attempt)
        else:
            self._pushed_at_once[task_id] = attempt

    def task_answered(self, task_id: bytes) -> None:
        """Its owner has its value."""
        story = self.tasks.get(task_id)
        if story is not None:
            story.is_answered = True

    def task_cancelled(self, task_id: bytes, by_force: bool) -> None:
        """Its owner wants it no more. The attempt under way may still begin, and may end in any way. By
        force: so do its children's."""
        story = self.tasks.get(task_id)
        is_pending = story is not None and not story.outcome and not story.is_answered
        if story is not None and story.last_attempt is None and is_pending:
            story.last_attempt = story.last_pushed
        self._cancelled[task_id] = by_force or self._cancelled.get(task_id, False)

    def call_submitted(self, task_id: bytes, parent: bytes) -> None:
        """Of an actor."""
        self._pushed_at_once.pop(task_id, None)
        self._parents[task_id] = parent

    def was_cancelled(self, task_id: bytes) -> bool:
        """By itself, or with the task that submitted it, and so on up."""
        if task_id in self._cancelled:
            return True
        parent = self._parents.get(task_id)
        while parent is not None:
            if self._cancelled.get(parent):
                return True
            parent = self._parents.get(parent)
        return False

    def cancel_read(self, task_id: bytes, cancelled_id: bytes) -> None:
        """Somebody reads of task_id that cancelled_id was cancelled."""
        if not self.was_cancelled(cancelled_id):
            raise CheckFailed(f"task {_short(cancelled_id)} ended as cancelled, and nobody cancelled it")
        story = self.tasks.get(task_id)
        if story is not None and cancelled_id != task_id and not story.arguments:
            both = f"{_short(task_id)} for the cancel of task {_short(cancelled_id)}"
            raise CheckFailed(f"task {both}, and has nothing to do with it")

    def crash_read(self, task_id: bytes, error: BaseException) -> None:
        """Somebody reads of a task that its worker died: its attempts are used up, or those of a task that
        makes an argument."""
        if not self._has_no_retries(task_id):
            story = self.tasks[task_id]
            raise CheckFailed(
                f"task {_short(task_id)} ends with {type(error).__name__}, was pushed as attempt"
                f" {story.last_pushed}, and may be retried {story.max_retries} times"
            )

    def loss_read(self, error: ObjectLostError) -> None:
        """Somebody reads that an object is lost. What a task returned is made again while it has retries."""
        object_id = bytes.fromhex(error.object_ref_hex)
        task_id, index = object_id[: TaskID.SIZE], int.from_bytes(object_id[TaskID.SIZE :], "little")
        if isinstance(error, ObjectReconstructionFailedError):
            reason = str(error.reason).removeprefix("OBJECT_UNRECONSTRUCTABLE_")
            story = self.tasks.get(task_id)
            is_true = {
                "PUT": index > PUT_INDEX_BASE,
                "RETRIES_DISABLED": story is None or story.max_retries == 0,
                "MAX_ATTEMPTS_EXCEEDED": self._has_no_retries(task_id),
                "LINEAGE_EVICTED": True,
                "TASK_CANCELLED": self.was_cancelled(task_id),
            }.get(reason, self.was_cancelled(task_id))
        else:
            is_true = type(error) is not ObjectLostError or self.connections_break
        if not is_true:
            raise CheckFailed(f"an object of task {_short(task_id)} is said to be lost: {error}")

    def _has_no_retries(self, task_id: bytes) -> bool:
        story = self.tasks.get(task_id)
        if story is None or story.num_twins or story.last_pushed >= story.max_retries:
            return True
        return any(self._has_no_retries(argument) for argument in story.arguments)

    def task_begins(self, worker_id: bytes, task_id: bytes, attempt: int) -> None:
        """A worker runs a task."""
        if worker_id in self.running:
            raise CheckFailed(f"worker {_short(worker_id)} runs two tasks at once")
        story = self.tasks[task_id]
        if attempt in story.begun and not self.connections_break:
            raise CheckFailed(f"attempt {attempt} of task {_short(task_id)} runs twice")
        self._check_lease(worker_id, task_id, story)
        story.begun.add(attempt)
        story.attempts_run += 1
        retries_max = story.max_retries + self.num_taken_away
        is_too_often = story.attempts_run > retries_max + 1 and not story.num_twins
        if is_too_often or attempt > retries_max:
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

    def task_over(self, worker_id: bytes) -> None:
        """Its user code is."""
        self.running.pop(worker_id, None)

    def _check_lease(self, worker_id: bytes, task_id: bytes, story: TaskStory) -> None:
        """Somebody has leased the worker, or held it for lost just now, and it is the owner of the task that
        it runs."""
        lease_id = self.lease_of_worker.get(worker_id)
        owner = self._lost_by.get(worker_id) if lease_id is None else self.leases[lease_id].owner
        if owner != story.owner and not (self.connections_break or story.outcome):
            raise CheckFailed(
                f"worker {_short(worker_id)} runs task {_short(task_id)} of who has not leased it"
            )

    def task_ended(self, task_id: bytes, outcome: str) -> None:
        """Its owner has the result ("done"), gave up on it ("crashed"), or has an end to its cancel."""
        story = self.tasks[task_id]
        if story.outcome == DRIVER_DIED:
            return  # this owner lives a moment longer
        if story.outcome and not story.num_twins:
            raise CheckFailed(f"task {_short(task_id)} ended twice: {story.outcome}, then {outcome}")
        if outcome == "done" and not (story.attempts_run or story.num_twins):
            raise CheckFailed(f"task {_short(task_id)} is done and never ran")
        story.outcome = outcome

    def driver_died(self, job_id: bytes) -> None:
        """What it had submitted, and its tasks submit, matters to nobody any more."""
        self._gone_jobs[job_id] = None
        for task_id, story in self.tasks.items():
            if task_id.endswith(job_id) and not story.outcome:
                story.outcome = DRIVER_DIED

    def end_read(self, job_id: bytes) -> None:
        """Somebody reads that this job is over: its driver's node has ended, and soon the driver does. Or it
        is behind a cut, and held to be dead."""
        self._ends_read[job_id] = None

    def check_ended(self, job_id: bytes) -> None:
        """A while later."""
        if job_id in self._gone_jobs:
            return
        if self.is_cut_off(job_id):
            self._ends_read.pop(job_id, None)  # nor is it asked at the end
        else:
            raise CheckFailed(f"job {job_id.hex()} is said to be over, and its driver lives")

    def _owner_died(self, worker_id: bytes) -> None:
        """The same of what a task had submitted, when its worker dies."""
        for task_id in self._of_owner.pop(worker_id, []):
            if not self.tasks[task_id].outcome:
                self.tasks[task_id].outcome = "its owner died"

    # ---- the end

    def check_everything_ended(self) -> None:
        """After the drivers left: no lease held by anybody, nothing running. (That every task ended is said
        by those who wait for them, and by their owners' books.)"""
        if self.leases:
            raise CheckFailed(f"{len(self.leases)} leases were never ended: {_list(list(self.leases))}")
        if self.running:
            raise CheckFailed(f"workers still run tasks: {_list(list(self.running))}")
        for job_id in list(self._ends_read):
            self.check_ended(job_id)
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
            outcome = story.outcome or "unread"
            counts[outcome] = counts.get(outcome, 0) + 1
        return counts


def _short(id_bytes: bytes) -> str:
    return id_bytes.hex()[:12]


def _list(ids: Sequence[bytes]) -> str:
    return ", ".join(_short(id_bytes) for id_bytes in ids[:5]) + (" …" if len(ids) > 5 else "")
