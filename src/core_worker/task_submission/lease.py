"""A lease as its holder has it, and the queue of tasks that it serves. Plain data; normal_task_submitter.py moves it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.task_submission.task_manager import PendingTask
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.raylet_rpc import RayletServiceStub

if TYPE_CHECKING:
    from ray_mono.core_worker.call_template import Peer
    from ray_mono.rpc.timers import Timer


class Lease:
    """A worker that this process may push tasks to."""

    __slots__ = (
        "address",
        "gives_back",
        "is_announced",
        "is_ending",
        "is_over",
        "lease_id",
        "linger",
        "looks",
        "num_pushed",
        "num_unanswered",
        "number",
        "peer",
        "queue",
        "raylet",
        "resource_ids",
        "seen_first",
        "tasks",
    )

    def __init__(
        self, lease_id: bytes, queue: SchedulingQueue, raylet: RayletServiceStub, grant: Any, peer: Peer
    ) -> None:
        self.lease_id = lease_id
        self.number: int = grant.number
        self.queue = queue
        self.raylet = raylet
        self.address: common_pb2.Address = grant.worker
        self.resource_ids = grant.resource_ids
        self.peer = peer
        # Pushed and not answered, in order: the worker runs the first.
        self.tasks: deque[PendingTask] = deque()
        self.num_pushed = 0
        # More than `tasks` where some were taken back from a worker that does not answer.
        self.num_unanswered = 0
        self.linger: Timer | None = None
        # Its first task is long: nothing is pushed behind it.
        self.gives_back = False
        # Nothing is pushed any more, and the worker goes back when all is answered: others wait for it, or it does not answer.
        self.is_ending = False
        # The first task at the last look for stalls, and how many looks have found it first.
        self.seen_first: PendingTask | None = None
        self.looks = 0
        self.is_over = False
        # Its worker knows the lease by the first task's message.
        self.is_announced = False


class SchedulingQueue:
    """The tasks and leases of one scheduling key."""

    __slots__ = (
        "idle",
        "leases",
        "num_submitted",
        "number",
        "options",
        "requested",
        "retry",
        "run_us",
        "stall_check",
        "tasks",
    )

    def __init__(self, options: TaskOptions, number: int) -> None:
        self.options = options
        # Of this process: what its raylet tells the queues apart by.
        self.number = number
        self.tasks: deque[PendingTask] = deque()
        self.num_submitted = 0
        self.idle: list[Lease] = []
        self.leases: dict[bytes, Lease] = {}
        # Smoothed duration of its tasks; None before the first.
        self.run_us: float | None = None
        self.stall_check: Timer | None = None
        # Lease ids asked for, with the raylet that was asked.
        self.requested: dict[bytes, RayletServiceStub] = {}
        self.retry: Timer | None = None

    def submit(self, task: PendingTask) -> None:
        self.num_submitted += 1
        task.submission = self.num_submitted
        self.tasks.append(task)

    def take_back(self, task: PendingTask) -> None:
        """A task that was pushed and did not start. It goes before all that were submitted after it."""
        place = task.place = 0
        for other in self.tasks:
            if other.submission > task.submission:
                break
            place += 1
        self.tasks.insert(place, task)
