"""A lease as its holder has it, and the queue of tasks that it serves.

    (granted) ──► IDLE ◄──► BUSY ◄──► STALLED
                   │         │           │
                   └─────────┴───────────┴──others wait for it, or its worker does not answer──► ENDING

    IDLE       lingers for the next task
    STALLED    its first task is long, and nothing is pushed behind it
    RETURNED   went back to its raylet: from any of these
    LOST       its worker is gone: from any of these. Of an idle one that is seen when it gets a task

A lease moves itself, when normal_task_submitter.py or stalls.py tell it what happened. Lock held.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import Any

from ray_mono.common.our_bug import InternalError
from ray_mono.common.scheduling import bundle_resources
from ray_mono.common.scheduling.resources import CPU
from ray_mono.core_worker.call_template import Pace
from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.peers import Peer
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.raylet_rpc import RayletServiceStub


def mean_us(pace: Pace) -> float:
    """Of a function that has run."""
    return sum(pace) / len(pace)


class LeaseState(enum.Enum):
    IDLE = "lingers without a task"
    BUSY = "runs tasks"
    STALLED = "runs a long task"
    ENDING = "goes back when all is answered"
    RETURNED = "was returned"
    LOST = "was lost with its worker"

    # Enum's own is Python code, which every step of every life would pay.
    __hash__ = object.__hash__


IDLE, BUSY, STALLED = LeaseState.IDLE, LeaseState.BUSY, LeaseState.STALLED
ENDING, RETURNED, LOST = LeaseState.ENDING, LeaseState.RETURNED, LeaseState.LOST

MOVES = frozenset(
    {
        (IDLE, BUSY),
        (BUSY, IDLE),
        (BUSY, STALLED),
        (STALLED, BUSY),
        *((state, ENDING) for state in (IDLE, BUSY, STALLED)),
        *((state, RETURNED) for state in (IDLE, BUSY, STALLED, ENDING)),
        *((state, LOST) for state in (IDLE, BUSY, STALLED, ENDING)),
    }
)


class Lease:
    """A worker that this process may push tasks to."""

    __slots__ = (
        "address",
        "is_watched_for_idleness",
        "lease_id",
        "long_until",
        "looks",
        "num_pushed",
        "num_rests",
        "num_unanswered",
        "number",
        "peer",
        "queue",
        "raylet",
        "resource_ids",
        "seen_alone",
        "seen_first",
        "state",
        "tasks",
    )

    def __init__(
        self, lease_id: bytes, queue: SchedulingQueue, raylet: RayletServiceStub, grant: Any, peer: Peer
    ) -> None:
        self.state = IDLE
        self.lease_id = lease_id
        self.number: int = grant.number
        self.queue = queue
        self.raylet = raylet
        self.address: common_pb2.Address = grant.worker
        self.resource_ids = grant.resource_ids
        self.peer = peer
        # Pushed and not answered, in order: the worker runs the first.
        self.tasks: deque[PendingTask] = deque()
        # Its worker knows the lease by the first task's message.
        self.num_pushed = 0
        # More than `tasks` where some were taken back from a worker that does not answer.
        self.num_unanswered = 0
        # How often it had nothing to do, and whether a timer looks whether it still has.
        self.num_rests = 0
        self.is_watched_for_idleness = False
        # The first task at the last look for stalls, and how many looks have found it first.
        self.seen_first: PendingTask | None = None
        self.looks = 0
        # The one that was long, with nothing behind it.
        self.seen_alone: PendingTask | None = None
        # The place of the latest task that ran long.
        self.long_until = -1

    # ---- its life

    def _move(self, state: LeaseState) -> None:
        if (self.state, state) not in MOVES:
            raise InternalError(f"{self.story} and cannot be one that {state.value}")
        self.state = state

    @property
    def story(self) -> str:
        """For people."""
        return (
            f"lease {self.lease_id.hex()} on worker {self.address.worker_id.hex()[:8]} {self.state.value}, "
            f"{len(self.tasks)} tasks there, {self.num_unanswered} not answered"
        )

    @property
    def takes_more(self) -> bool:
        """Whether tasks may be pushed behind the one that runs."""
        return self.state is BUSY

    @property
    def is_reachable(self) -> bool:
        """Whether its worker may take a task."""
        return not self.peer.is_closed

    @property
    def is_ending(self) -> bool:
        return self.state is ENDING

    @property
    def is_over(self) -> bool:
        return self.state is RETURNED or self.state is LOST

    def push(self, task: PendingTask) -> None:
        """The next task is on its way to the worker."""
        if self.state is IDLE:
            self.state = BUSY  # the usual move, which the table has
        elif self.state is not BUSY:
            raise InternalError(f"a task is pushed where no more go: {self.story}")
        self.tasks.append(task)
        self.num_unanswered += 1
        self.num_pushed += 1
        task.pushed(self.num_pushed)

    def push_all(self, tasks: Sequence[PendingTask]) -> None:
        """As push, of tasks that travel together."""
        if self.state is not BUSY:
            raise InternalError(f"tasks are pushed where no more go: {self.story}")
        for place, task in enumerate(tasks, self.num_pushed + 1):
            task.pushed(place)
        self.num_pushed += len(tasks)
        self.num_unanswered += len(tasks)
        self.tasks.extend(tasks)

    def rest(self) -> None:
        """Everything is answered, and nothing waits."""
        if self.state is BUSY:
            self.state = IDLE  # the usual move, which the table has
        elif self.state is not IDLE:
            self._move(IDLE)
        self.num_rests += 1

    def watch_idleness(self, watched: bool) -> int:
        """watched: whether a timer will look if it has rested all the time. Returns how often it began to
        rest. If that has grown, it did not rest all the time."""
        self.is_watched_for_idleness = watched
        return self.num_rests

    def stall(self) -> None:
        """Its first task is long. Of a lease that is stalled or ending already this is no news."""
        if self.state is BUSY:
            self._move(STALLED)

    def go_on(self) -> None:
        """Its first task was answered. That ends a stall, and nothing else."""
        if self.state is STALLED:
            self._move(BUSY)

    def end(self) -> None:
        """Others wait for it, or its worker does not answer: nothing is pushed any more."""
        if self.state is not ENDING:
            self._move(ENDING)

    def returned(self) -> None:
        self._move(RETURNED)

    def lost(self) -> None:
        self._move(LOST)

    # ---- its tasks

    def answered(self, task: PendingTask) -> bool:
        """Whether the answer was still waited for. It is not if the task was taken back."""
        self.num_unanswered -= 1
        tasks = self.tasks
        if tasks and tasks[0] is task:
            tasks.popleft()
            return True
        if task in tasks:
            tasks.remove(task)
            return True
        return False

    def answered_all(self, tasks: Sequence[PendingTask]) -> None:
        """As answered, of several. They are its first in most cases; an answer that waits for an owner is
        overtaken by those behind it."""
        self.num_unanswered -= len(tasks)
        mine = self.tasks
        for task in tasks:
            if mine and mine[0] is task:
                mine.popleft()
            elif task in mine:
                mine.remove(task)

    def take_unbegun(self, num_begun: int) -> list[PendingTask]:
        """So many of those that were pushed have begun, or were answered unstarted. Takes the others back,
        and returns them."""
        taken = [task for task in self.tasks if task.place > num_begun]
        for task in taken:
            self.tasks.remove(task)
        return taken

    def ran_long(self, first: PendingTask, last: PendingTask) -> bool:
        """These ran one after another, and were not very short. Whether that is true of the one before, too:
        once may be chance."""
        again = self.long_until == first.place - 1 or first is not last
        self.long_until = last.place
        return again

    def is_alone(self) -> bool:
        """Whether its first task is seen for the first time with nothing behind it."""
        is_new = self.seen_alone is not self.tasks[0]
        self.seen_alone = self.tasks[0]
        return is_new

    @property
    def is_long(self) -> bool:
        """Whether several looks have found the task first that is first now."""
        return bool(self.looks and self.tasks) and self.seen_first is self.tasks[0]

    def look(self) -> int:
        """How many looks in a row have found the same task first; 0: this one is the first."""
        first = self.tasks[0]
        if self.seen_first is first:
            self.looks += 1
        else:
            self.seen_first, self.looks = first, 0
        return self.looks


class SchedulingQueue:
    """The tasks and leases of one scheduling key."""

    __slots__ = (
        "_config",
        "_each_us",
        "_filled_with",
        "_may_push_ahead",
        "fill",
        "filled",
        "group_id",
        "idle",
        "is_looked_at",
        "is_order_looked_at",
        "is_retried",
        "is_spread",
        "leases",
        "number",
        "options",
        "pushes_ahead",
        "refill_at",
        "requested",
        "tasks",
    )

    def __init__(self, options: TaskOptions, number: int, config: CoreWorkerConfig) -> None:
        self.options = options
        self._config = config
        # Each goes to the next node in turn, one after another too.
        self.is_spread = options.strategy is not None and options.strategy.HasField("spread")
        # The placement group that its tasks run in; empty for none.
        self.group_id = options.group_id
        # Not tasks that are spread, or after which a worker ends. Nor those that hold other resources than
        # CPUs: only CPUs can be lent, should tasks that began too early wait for those that did not
        # (overtaking.py).
        resources = bundle_resources.plain(options.resources)
        only_cpus = resources == resources.only(CPU)
        self.pushes_ahead = self._may_push_ahead = only_cpus and not options.max_calls and not self.is_spread
        # By this number the raylet tells the queues of this process apart.
        self.number = number
        self.tasks: deque[PendingTask] = deque()
        self.idle: list[Lease] = []
        # The worker that was woken last: it gets the next tasks, too, until it has `fill`.
        self.filled: Lease | None = None
        self.fill = 0
        # The function of these tasks, and what each takes with its way.
        self._filled_with: Pace | None = None
        self._each_us = 0.0
        self.leases: dict[bytes, Lease] = {}
        # Once a worker has so few, more are pushed ahead.
        self.refill_at = 0
        # A timer looks for stalls; one for tasks that were overtaken; another asks for leases again.
        self.is_looked_at = False
        self.is_order_looked_at = False
        self.is_retried = False
        # Lease ids asked for, with the raylet that was asked.
        self.requested: dict[bytes, RayletServiceStub] = {}

    def take_back(self, task: PendingTask) -> None:
        """A task that was pushed and did not start. It goes before all that were submitted after it."""
        place = 0
        for other in self.tasks:
            if other.number > task.number:
                break
            place += 1
        self.tasks.insert(place, task)

    def num_overtaken(self, number: int) -> int:
        """How many wait that came back unstarted, and were submitted before the task of this number. They are
        the first here."""
        count = 0
        for task in self.tasks:
            if not task.came_back or task.number > number:
                break
            count += 1
        return count

    def take_all(self) -> deque[PendingTask]:
        tasks, self.tasks = self.tasks, deque()
        return tasks

    def wake(self, pace: Pace) -> Lease:
        """An idle worker gets the next task, which has this pace, and others of its function behind it before
        another worker is woken, where they are very short. Not so where the options say how tasks are placed.
        """
        if not pace or not self.pushes_ahead or self.options.strategy is not None:
            self.fill, self._filled_with = 1, None
        else:
            self._each_us = mean_us(pace) + self._config.task_overhead_us
            self.fill, self._filled_with = int(self._config.wake_us / self._each_us) + 1, pace
        self.filled = lease = self.idle.pop()
        return lease

    def keeps_up(self, pace: Pace) -> bool:
        """Whether the workers that are held will soon have run what waits: tasks of this pace, which are very
        short. If one is long after all, the next look for stalls asks for more workers (stalls.py). So it is
        no where nobody looks: each is known to run a long task."""
        if self.fill <= 2 or self._filled_with is not pace or not self.is_looked_at:
            return False
        return len(self.tasks) * self._each_us < self._config.keep_up_us * len(self.leases)

    def share_of(self, lease: Lease, pace: Pace) -> int:
        """How many tasks it may have if the next has this pace: as many as it runs in ahead_us, and no more
        than its share where few wait. Nothing is pushed behind a task, or ahead, whose function has not run
        yet: the one may wait for the other."""
        config, first = self._config, lease.tasks[0].template.pace
        if not pace or not first:
            return 0
        run_us = max(mean_us(pace), mean_us(first))
        most = min(config.ahead_max, int(config.ahead_us / (run_us + config.task_overhead_us)))
        share = len(lease.tasks) + 1 + len(self.tasks) // len(self.leases)
        limit = min(most, share)
        self.aim_at(limit)
        return limit

    def aim_at(self, num_ahead: int) -> None:
        """Each worker has at most so many at a time. It gets more when half of them are answered, so that
        tasks travel together."""
        self.refill_at = num_ahead // 2

    @property
    def is_unused(self) -> bool:
        """Nothing waits in it, runs or is asked for."""
        return not (self.tasks or self.leases or self.requested)

    def note_looks(self, looks: bool) -> None:
        """Whether a timer looks after a while."""
        self.is_looked_at = looks

    def note_order_looks(self, looks: bool) -> None:
        """Whether a timer looks for tasks that were overtaken."""
        self.is_order_looked_at = looks

    def note_retry(self, retries: bool) -> None:
        """Whether a timer asks for leases again after a while."""
        self.is_retried = retries

    def keep_order(self) -> None:
        """Its tasks wait for each other. None is pushed ahead any more, as long as it has workers."""
        self.pushes_ahead = False

    def forget(self, lease: Lease) -> None:
        del self.leases[lease.lease_id]
        if not self.leases:
            self.pushes_ahead = self._may_push_ahead
        if lease in self.idle:
            self.idle.remove(lease)
        if lease is self.filled:
            self.filled = None

    def describe(self) -> dict[str, Any]:
        """For people."""
        return {
            "resources": str(self.options.resources),
            "tasks_queued": len(self.tasks),
            "leases": len(self.leases),
            "lease_states": [lease.story for lease in self.leases.values()],
            "lease_requests": len(self.requested),
        }
