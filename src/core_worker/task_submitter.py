"""Normal tasks: leases on workers, and tasks pushed onto them. Called under the core worker's lock; never blocks.

Tasks that may share a worker (same shape, strategy and environment) share a queue. While tasks wait, leases are asked for, at most
LEASE_REQUESTS_MAX at a time; a worker that was granted runs one task after another until the queue is empty, lingers LINGER_S for the
next one, and goes back to its raylet.

    lease   REQUESTED ──grant──► BUSY ◄──► IDLE (lingers) ──► returned
                │  └──spillback──► REQUESTED at another raylet, which grants or rejects
                └──rejected──► gone (asked for again while tasks wait)
            BUSY ──worker lost──► disposed; its first task is retried or fails, the others were not started

Short tasks are pushed ahead, so that a worker need not wait for a round trip: as many as it runs in AHEAD_US, by what the queue's
tasks took lately. A task behind another could wait too long, or for ever, if the first waits for it. So a worker that blocks in `get` gives
its unstarted tasks back, and so does one whose first task takes longer than STALL_S (GiveBackTasks); it gets no more before
that one ends. A worker answers each task before it starts the next, so that after a crash only the first can have run.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from ray_mono.common.exceptions import (
    LocalRayletDiedError,
    RuntimeEnvSetupError,
    TaskUnschedulableError,
)
from ray_mono.core_worker.lost_worker import fail_lost
from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.task_manager import DONE, NOT_STARTED, WRONG_WORKER, PendingTask
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.surface import RpcError, StatusCode

if TYPE_CHECKING:
    from ray_mono.core_worker.call_template import Peer
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.rpc.reactor import Timer

LEASE_REQUESTS_MAX = 16
"""Per scheduling key. More would only queue at the raylet, in front of other clients."""
LINGER_S = 0.005
"""How long an idle lease is kept: longer than a caller takes from one answer to its next call, shorter than anybody notices."""
REJECTED_RETRY_S = 0.05
AHEAD_US = 2000.0
"""How much work a worker is given ahead: a few round trips of a busy machine."""
AHEAD_MAX = 64
OVERHEAD_US = 30.0
"""What a task costs its worker besides the function itself."""
STALL_S = 0.01
"""A first task that is still running after it is long."""


class Lease:
    """A worker that this process may push tasks to."""

    __slots__ = (
        "address",
        "gives_back",
        "is_announced",
        "is_over",
        "lease_id",
        "linger",
        "peer",
        "queue",
        "raylet",
        "resource_ids",
        "seen_first",
        "tasks",
    )

    def __init__(self, lease_id: bytes, queue: SchedulingQueue, raylet: RayletServiceStub, grant: Any, peer: Peer) -> None:
        self.lease_id = lease_id
        self.queue = queue
        self.raylet = raylet
        self.address: common_pb2.Address = grant.worker
        self.resource_ids = grant.resource_ids
        self.peer = peer
        # Pushed and not answered, in order: the worker runs the first.
        self.tasks: deque[PendingTask] = deque()
        self.linger: Timer | None = None
        # Its first task is long: nothing is pushed behind it.
        self.gives_back = False
        # The first task at the last look for stalls.
        self.seen_first: PendingTask | None = None
        self.is_over = False
        # Its worker knows the lease by the first task's message.
        self.is_announced = False


class SchedulingQueue:
    """The tasks and leases of one scheduling key."""

    __slots__ = ("idle", "leases", "options", "requested", "retry", "run_us", "stall_check", "tasks")

    def __init__(self, options: TaskOptions) -> None:
        self.options = options
        self.tasks: deque[PendingTask] = deque()
        self.idle: list[Lease] = []
        self.leases: dict[bytes, Lease] = {}
        # Smoothed duration of its tasks; None before the first.
        self.run_us: float | None = None
        self.stall_check: Timer | None = None
        # Lease ids asked for, with the raylet that was asked.
        self.requested: dict[bytes, RayletServiceStub] = {}
        self.retry: Timer | None = None


class TaskSubmitter:
    """The scheduling queues of one process."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        self._queues: dict[Any, SchedulingQueue] = {}

    def queue_for(self, options: TaskOptions) -> SchedulingQueue:
        """The queue of tasks like this one; looked up once per remote function."""
        strategy = options.strategy.SerializeToString(deterministic=True) if options.strategy is not None else b""
        # A worker that ends after its call is no place to push others to.
        key = (options.resources, strategy, options.runtime_env, bool(options.max_calls))
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = SchedulingQueue(options)
        return queue

    def submit(self, queue: SchedulingQueue, task: PendingTask) -> None:
        queue.tasks.append(task)
        if queue.idle or len(queue.requested) < LEASE_REQUESTS_MAX:
            self._pump(queue)

    def _pump(self, queue: SchedulingQueue) -> None:
        while queue.tasks and queue.idle:
            lease = queue.idle.pop()
            if lease.linger is not None:
                lease.linger.cancel()
            self._push(lease, queue.tasks.popleft())
        # Looked at anew each time: a request can fail at once, and the tasks with it.
        while len(queue.requested) < min(len(queue.tasks), LEASE_REQUESTS_MAX):
            self._request(queue, self._core.raylet, False)
        if queue.tasks:
            for lease in list(queue.leases.values()):
                self._push_ahead(lease)

    def _push_ahead(self, lease: Lease) -> None:
        queue = lease.queue
        if queue.run_us is None or lease.gives_back or not lease.tasks or queue.options.max_calls:
            return
        limit = min(AHEAD_MAX, int(AHEAD_US / (queue.run_us + OVERHEAD_US)))
        while queue.tasks and len(lease.tasks) < limit:
            self._push(lease, queue.tasks.popleft())
        if len(lease.tasks) > 1 and queue.stall_check is None:
            queue.stall_check = self._core.reactor.call_later(STALL_S, lambda: self._check_stalls(queue))

    def _check_stalls(self, queue: SchedulingQueue) -> None:
        """Has workers whose first task is still the one of the last look give back what waits behind it."""
        queue.stall_check = None
        for lease in queue.leases.values():
            if len(lease.tasks) < 2:
                continue
            if lease.tasks[0] is lease.seen_first:
                # Also where it gave something back: what was pushed meanwhile came after that, and the first may wait for it.
                lease.gives_back = True
                lease.peer.stub.GiveBackTasks.notify(common_pb2.Empty())
            lease.seen_first = lease.tasks[0]
            if queue.stall_check is None:
                queue.stall_check = self._core.reactor.call_later(STALL_S, lambda: self._check_stalls(queue))

    # ---- leases

    def _request(self, queue: SchedulingQueue, raylet: RayletServiceStub, spilled: bool) -> None:
        lease_id = self._core.new_id()
        queue.requested[lease_id] = raylet
        options = queue.options
        request = raylet_pb2.RequestWorkerLeaseRequest(
            lease_id=lease_id,
            job_id=self._core.job_id,
            resources=options.resources.to_proto(),
            strategy=options.strategy,
            runtime_env=options.runtime_env,
            requester=self._core.address,
            backlog=max(0, len(queue.tasks) - len(queue.requested)),
            grant_or_reject=spilled,
            task_name=queue.tasks[0].name if queue.tasks else options.name,
            outlives_job=self._core.outlives_job,
        )
        raylet.RequestWorkerLease.start(request, lambda reply, error: self._on_lease(queue, lease_id, raylet, reply, error))

    def _on_lease(
        self, queue: SchedulingQueue, lease_id: bytes, raylet: RayletServiceStub, reply: Any, error: RpcError | None
    ) -> None:
        queue.requested.pop(lease_id, None)
        if error is not None:
            if raylet is self._core.raylet and error.code is StatusCode.UNAVAILABLE:
                self._fail_all(queue, LocalRayletDiedError())
            else:
                # The raylet's queue is full, or it was another node that died: its tasks go elsewhere.
                self._retry_later(queue)
            return
        outcome = reply.WhichOneof("outcome")
        if outcome == "grant":
            lease = Lease(lease_id, queue, raylet, reply.grant, self._core.peer(reply.grant.worker))
            queue.leases[lease_id] = lease
            self._next(lease)
        elif outcome == "spillback":
            if queue.tasks:
                target = reply.spillback
                self._request(queue, self._core.raylet_at(f"{target.host}:{target.port}"), True)
        else:
            self._on_rejection(queue, reply.rejection)

    def _on_rejection(self, queue: SchedulingQueue, rejection: Any) -> None:
        kind = rejection.kind
        if kind == raylet_pb2.Rejection.RUNTIME_ENV_FAILED:
            self._fail_all(queue, RuntimeEnvSetupError(rejection.message))
        elif kind == raylet_pb2.Rejection.INFEASIBLE:
            self._fail_all(queue, TaskUnschedulableError(rejection.message))
        elif kind == raylet_pb2.Rejection.JOB_FINISHED:
            self._fail_all(queue, TaskUnschedulableError(rejection.message))
        elif kind == raylet_pb2.Rejection.NOT_HERE:
            self._retry_later(queue)
        elif queue.tasks and kind == raylet_pb2.Rejection.CANCELLED:
            self._pump(queue)

    def _retry_later(self, queue: SchedulingQueue) -> None:
        """After a spillback found the other node busy: asks the local raylet again, a little later."""
        if queue.retry is not None:
            return

        def again() -> None:
            queue.retry = None
            self._pump(queue)

        queue.retry = self._core.reactor.call_later(REJECTED_RETRY_S, again)

    def _fail_all(self, queue: SchedulingQueue, error: BaseException) -> None:
        tasks, queue.tasks = queue.tasks, deque()
        for task in tasks:
            self._core.tasks.fail(task, error)

    def _next(self, lease: Lease) -> None:
        """The lease has nothing to do: the next task, or it lingers."""
        queue = lease.queue
        if queue.tasks:
            self._push(lease, queue.tasks.popleft())
            self._push_ahead(lease)
            return
        queue.idle.append(lease)
        lease.linger = self._core.reactor.call_later(LINGER_S, lambda: self._give_back(lease))
        self._cancel_requests(queue)

    def _cancel_requests(self, queue: SchedulingQueue) -> None:
        """Nothing waits for what was asked for."""
        for lease_id, raylet in list(queue.requested.items()):
            raylet.CancelWorkerLease.start(
                raylet_pb2.CancelWorkerLeaseRequest(lease_id=lease_id), lambda reply, error: None
            )

    def _give_back(self, lease: Lease) -> None:
        if lease in lease.queue.idle:
            lease.queue.idle.remove(lease)
            self._drop(lease)

    def _drop(self, lease: Lease, leaving: bool = False) -> None:
        self._forget(lease)
        lease.raylet.ReturnWorker.notify(raylet_pb2.ReturnWorkerRequest(lease_id=lease.lease_id, leaving=leaving))

    def _forget(self, lease: Lease) -> None:
        lease.is_over = True
        del lease.queue.leases[lease.lease_id]

    # ---- tasks

    def _push(self, lease: Lease, task: PendingTask) -> None:
        lease.tasks.append(task)
        if not lease.is_announced:
            lease.is_announced = True
            task.request.lease_id = lease.lease_id
        if lease.resource_ids:
            task.request.ClearField("resource_ids")
            for name, ids in lease.resource_ids.items():
                task.request.resource_ids[name].CopyFrom(ids)
        lease.peer.push(
            task.template, task.request, lambda reply, error: self._on_reply(lease, task, reply, error)
        )
        task.request.ClearField("lease_id")

    def _on_reply(self, lease: Lease, task: PendingTask, reply: Any, error: RpcError | None) -> None:
        queue = lease.queue
        is_first = bool(lease.tasks) and lease.tasks[0] is task
        if is_first:
            lease.tasks.popleft()
        elif task in lease.tasks:
            lease.tasks.remove(task)
        if error is not None:
            self._on_worker_lost(lease, task)
            return
        if reply.status == DONE:
            queue.run_us = reply.run_us if queue.run_us is None else 0.8 * queue.run_us + 0.2 * reply.run_us
            self._core.tasks.complete(task, reply, lease.address)
        else:
            self._again(queue, task)
        if lease.is_over:
            return
        if reply.worker_exiting or reply.status == WRONG_WORKER:
            # Not told to end: others may need what it owns, and its answer may be on its way still.
            self._drop(lease, leaving=True)
            self._pump(queue)
        elif not lease.tasks:
            lease.gives_back = False
            self._next(lease)
        elif reply.status == NOT_STARTED:
            lease.gives_back = True
            self._pump(queue)
        else:
            if is_first:
                lease.gives_back = False
            self._push_ahead(lease)

    def _on_worker_lost(self, lease: Lease, task: PendingTask) -> None:
        """The worker ran `task`; what it was sent behind that one was not started."""
        if lease.is_over:
            self._again(lease.queue, task)
        else:
            self._forget(lease)
            fail_lost(self._core, lease.raylet, lease.lease_id, lease.address.worker_id, task)
        self._pump(lease.queue)

    def _again(self, queue: SchedulingQueue, task: PendingTask) -> None:
        """A pushed task did not start: it is the next one, unless it was cancelled meanwhile."""
        if task.task_id in self._core.tasks.cancelled:
            self._core.tasks.fail_cancelled(task)
        else:
            queue.tasks.appendleft(task)

    def cancel(self, task: PendingTask, request: Any) -> None:
        """Drops a pending task that waits here; request (CancelTaskRequest) goes to the worker of one that was pushed."""
        for queue in self._queues.values():
            for lease in queue.leases.values():
                if task in lease.tasks:
                    lease.peer.stub.CancelTask.start(request, lambda reply, error: None)
                    return
            with contextlib.suppress(ValueError):
                queue.tasks.remove(task)
                if not queue.tasks:
                    self._cancel_requests(queue)
                break
        self._core.tasks.fail_cancelled(task)

    def describe(self) -> list[dict[str, Any]]:
        """What waits and what is leased, for DumpState."""
        return [
            {
                "resources": str(queue.options.resources),
                "tasks_queued": len(queue.tasks),
                "leases": len(queue.leases),
                "lease_requests": len(queue.requested),
            }
            for queue in self._queues.values()
        ]
