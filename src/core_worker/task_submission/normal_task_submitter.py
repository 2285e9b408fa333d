"""Normal tasks: leases on workers, and tasks pushed onto them. Called under the core worker's lock; never blocks.

Tasks that may share a worker (same shape, strategy and environment) share a queue. While tasks wait, leases are asked for, at most
LEASE_REQUESTS_MAX at a time; a worker that was granted runs one task after another until the queue is empty, lingers LINGER_S for the
next one, and goes back to its raylet.

    lease   REQUESTED ──grant──► BUSY ◄──► IDLE (lingers) ──► returned
                │  └──spillback──► REQUESTED at another raylet, which grants or rejects; or has it wait, where it fits nowhere else
                └──rejected──► gone (asked for again while tasks wait)
            BUSY ──others wait (WatchReclaims), or it does not answer──► ENDING ──all answered──► returned
            BUSY, ENDING ──worker lost──► disposed; its first task is retried or fails, the others were not started

Short tasks are pushed ahead, so that a worker need not wait for a round trip: as many as it runs in AHEAD_US, by what the queue's
tasks took lately. A task behind another could wait too long, or for ever, if the first waits for it. So a worker that blocks in `get` gives
its unstarted tasks back, and from one whose first task is long they are taken (stalls.py); it gets no more before
that one ends. What comes back keeps its place in the order of submission. A worker answers each task before it starts the next, so that
after a crash only the first can have run.

A task of which an argument finds no room on the worker's node goes to the queue of those that want to be where it lies (call_arguments.py).
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ray_mono.common.exceptions import (
    LocalRayletDiedError,
    RuntimeEnvSetupError,
    TaskUnschedulableError,
)
from ray_mono.common.scheduling.argument_nodes import node_with_most
from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.task_submission.lease import Lease, SchedulingQueue
from ray_mono.core_worker.task_submission.lost_worker import fail_lost, tell_lost
from ray_mono.core_worker.task_submission.stalls import Stalls
from ray_mono.core_worker.task_submission.task_manager import DONE, NO_ROOM, WRONG_WORKER, PendingTask
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.surface import RpcError, StatusCode

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker

LEASE_REQUESTS_MAX = 16
"""Per scheduling key. More would only queue at the raylet, in front of other clients."""
LINGER_S = 0.005
"""How long an idle lease is kept: longer than a caller takes from one answer to its next call, shorter than anybody notices."""
REJECTED_RETRY_S = 0.05
AHEAD_US = 2000.0
"""How much work a worker is given ahead: a few round trips of a busy machine."""
AHEAD_MAX = 64
FORCE_S = 1.0
"""After a cancel by force a worker that still has the task is ended by its raylet."""
OVERHEAD_US = 30.0
"""What a task costs its worker besides the function itself."""


class NormalTaskSubmitter:
    """The scheduling queues of one process."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        self._queues: dict[Any, SchedulingQueue] = {}
        self._stalls = Stalls(core, self._on_closed)
        # Raylets that tell which of our leases others wait for.
        self._watched: set[RayletServiceStub] = set()

    def queue_for(self, options: TaskOptions) -> SchedulingQueue:
        """The queue of tasks like this one; looked up once per remote function."""
        strategy = (
            options.strategy.SerializeToString(deterministic=True) if options.strategy is not None else b""
        )
        # A worker that ends after its call is no place to push others to.
        key = (options.resources, strategy, options.runtime_env, bool(options.max_calls))
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = SchedulingQueue(options, len(self._queues))
        return queue

    def submit(self, queue: SchedulingQueue, task: PendingTask) -> None:
        queue.submit(task)
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
        if (
            queue.run_us is None
            or lease.gives_back
            or lease.is_ending
            or not lease.tasks
            or queue.options.max_calls
        ):
            return
        limit = min(AHEAD_MAX, int(AHEAD_US / (queue.run_us + OVERHEAD_US)))
        while queue.tasks and len(lease.tasks) < limit:
            self._push(lease, queue.tasks.popleft())

    # ---- leases

    def _request(self, queue: SchedulingQueue, raylet: RayletServiceStub, spilled: bool) -> None:
        if raylet not in self._watched:
            self._watch(raylet)
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
            scheduling_key=queue.number,
            task_name=queue.tasks[0].name if queue.tasks else options.name,
            outlives_job=self._core.outlives_job,
        )
        raylet.RequestWorkerLease.start(
            request, lambda reply, error: self._on_lease(queue, lease_id, raylet, reply, error)
        )

    def _on_lease(
        self,
        queue: SchedulingQueue,
        lease_id: bytes,
        raylet: RayletServiceStub,
        reply: Any,
        error: RpcError | None,
    ) -> None:
        queue.requested.pop(lease_id, None)
        if error is not None:
            if self._core.is_leaving:
                return  # who waits still is told that this process left
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
                self._request(
                    queue, self._core.raylet_at(f"{target.host}:{target.port}"), not target.may_wait
                )
        else:
            self._on_rejection(queue, reply.rejection)

    def _watch(self, raylet: RayletServiceStub) -> None:
        self._watched.add(raylet)
        raylet.WatchReclaims.start(
            common_pb2.Empty(), self._on_reclaimed, lambda error: self._watched.discard(raylet)
        )

    def _on_reclaimed(self, named: Any) -> None:
        """Others wait for these leases."""
        for lease_id in named.lease_ids:
            for queue in self._queues.values():
                lease = queue.leases.get(lease_id)
                if lease is not None and not lease.is_ending:
                    lease.is_ending = True
                    if len(lease.tasks) > 1:
                        lease.peer.stub.GiveBackTasks.notify(common_pb2.Empty())
                    self._end_if_answered(lease)

    def _on_closed(self, lease: Lease, begun: int) -> None:
        """The raylet has taken back what a worker that does not answer had not begun."""
        lease.is_ending = True
        taken = [task for task in lease.tasks if task.place > begun]
        for task in taken:
            lease.tasks.remove(task)
            self._again(lease.queue, task)
        self._end_if_answered(lease)
        self._pump(lease.queue)

    def _end_if_answered(self, lease: Lease) -> None:
        if not lease.num_unanswered:
            self._give_back(lease)
            self._pump(lease.queue)

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
            if lease.linger is not None:
                lease.linger.cancel()
        if not lease.is_over:
            self._drop(lease)

    def _drop(self, lease: Lease, leaving: bool = False) -> None:
        self._forget(lease)
        lease.raylet.ReturnWorker.notify(
            raylet_pb2.ReturnWorkerRequest(lease_id=lease.lease_id, leaving=leaving)
        )

    def _forget(self, lease: Lease) -> None:
        lease.is_over = True
        del lease.queue.leases[lease.lease_id]

    # ---- tasks

    def _push(self, lease: Lease, task: PendingTask) -> None:
        queue = lease.queue
        lease.tasks.append(task)
        lease.num_unanswered += 1
        lease.num_pushed += 1
        task.place = lease.num_pushed
        is_new = not lease.is_announced
        if is_new:
            lease.is_announced = True
            task.request.lease_id = lease.lease_id
            task.request.lease_number = lease.number
        if lease.resource_ids:
            task.request.ClearField("resource_ids")
            for name, ids in lease.resource_ids.items():
                task.request.resource_ids[name].CopyFrom(ids)
        lease.peer.push(
            task.template, task.request, lambda reply, error: self._on_reply(lease, task, reply, error)
        )
        if is_new:
            task.request.ClearField("lease_id")
            task.request.ClearField("lease_number")
        if queue.stall_check is None:
            self._stalls.watch(queue)

    def _on_reply(self, lease: Lease, task: PendingTask, reply: Any, error: RpcError | None) -> None:
        lease.num_unanswered -= 1
        is_first = bool(lease.tasks) and lease.tasks[0] is task
        if is_first:
            lease.tasks.popleft()
        elif task in lease.tasks:
            lease.tasks.remove(task)
        else:
            self._on_late_reply(lease, error)
            return
        if error is not None:
            self._on_worker_lost(lease, task)
            return
        queue = lease.queue
        if reply.status == DONE:
            queue.run_us = reply.run_us if queue.run_us is None else 0.8 * queue.run_us + 0.2 * reply.run_us
            self._core.tasks.complete(task, reply, lease.address)
        elif reply.status == NO_ROOM:
            self._core.tasks.note_borrows(reply, lease.address)
            self._move(queue, task, lease.address.node_id)
        else:
            self._again(queue, task)
        if lease.is_over:
            return
        if reply.worker_exiting or reply.status == WRONG_WORKER:
            # Not told to end: others may need what it owns, and its answer may be on its way still.
            self._drop(lease, leaving=True)
            self._pump(queue)
        elif lease.is_ending:
            self._end_if_answered(lease)
            if reply.status != DONE:
                self._pump(queue)
        elif not lease.tasks:
            lease.gives_back = False
            self._next(lease)
        elif reply.status != DONE:
            lease.gives_back = True
            self._pump(queue)
        else:
            if is_first:
                lease.gives_back = False
            self._push_ahead(lease)

    def _on_late_reply(self, lease: Lease, error: RpcError | None) -> None:
        """Of a task that was taken back: it did not start there."""
        if lease.is_over:
            return
        if error is not None:
            self._forget(lease)
            tell_lost(lease)
            self._pump(lease.queue)
        else:
            self._end_if_answered(lease)

    def _on_worker_lost(self, lease: Lease, task: PendingTask) -> None:
        """The worker ran `task`; what it was sent behind that one was not started."""
        if lease.is_over:
            self._again(lease.queue, task)
        else:
            self._forget(lease)
            fail_lost(self._core, lease, task)
        self._pump(lease.queue)

    def _again(self, queue: SchedulingQueue, task: PendingTask) -> None:
        """A pushed task did not start: it waits again, unless it was cancelled meanwhile."""
        if task.task_id in self._core.tasks.cancelled:
            self._core.tasks.fail_cancelled(task)
        else:
            queue.take_back(task)

    def _move(self, queue: SchedulingQueue, task: PendingTask, from_node_id: bytes) -> None:
        """One of its arguments has no room there: it goes where most of them lie, if its options allow that, and waits for room then."""
        task.request.waits_for_room = True
        node_id = node_with_most(task.request.args, except_node_id=from_node_id)
        strategy = queue.options.strategy
        is_bound = (
            strategy is not None and strategy.HasField("node_affinity") and not strategy.node_affinity.soft
        )
        if node_id is None or is_bound or task.task_id in self._core.tasks.cancelled:
            self._again(queue, task)
            return
        there = common_pb2.NodeAffinity(node_id=node_id, soft=True)
        options = replace(queue.options, strategy=common_pb2.SchedulingStrategy(node_affinity=there))
        self.submit(self.queue_for(options), task)

    def cancel(self, task: PendingTask, request: Any) -> None:
        """Drops a pending task that waits here; request (CancelTaskRequest) goes to the worker of one that was pushed."""
        for queue in self._queues.values():
            for lease in queue.leases.values():
                if task in lease.tasks:
                    lease.peer.stub.CancelTask.start(request, lambda reply, error: None)
                    if request.force:
                        self._core.reactor.call_later(FORCE_S, partial(self._kill_if_it_runs, lease, task))
                    return
            with contextlib.suppress(ValueError):
                queue.tasks.remove(task)
                if not queue.tasks:
                    self._cancel_requests(queue)
                break
        self._core.tasks.fail_cancelled(task)

    def _kill_if_it_runs(self, lease: Lease, task: PendingTask) -> None:
        """A worker that was told to end for this task lives: it is frozen."""
        if lease.tasks and lease.tasks[0] is task and not lease.is_over:
            cause = common_pb2.DeathCause(
                message="its task was cancelled with force=True, and it did not answer"
            )
            request = raylet_pb2.KillWorkerRequest(worker_id=lease.address.worker_id, force=True, cause=cause)
            lease.raylet.KillWorker.start(request, lambda reply, error: None)

    def trouble_with(self, task: PendingTask) -> str:
        """What keeps a task that was pushed from reaching its worker; empty where it is there."""
        for queue in self._queues.values():
            for lease in queue.leases.values():
                if task in lease.tasks:
                    return lease.peer.channel.trouble
        return ""

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
