"""Normal tasks: leases on workers, and tasks pushed onto them. Called under the core worker's lock; never
blocks.

Tasks that may share a worker (same shape, strategy and environment) share a queue. While tasks wait, leases
are asked for, at most lease_requests_max at a time. A worker that was granted runs one task after another
until the queue is empty. It lingers for the next one (linger_s, twice that at most), and goes back to its
raylet.

    request   grant ──► a lease (lease.py)
              spillback ──► another raylet is asked. It grants or rejects; if the request fits nowhere else,
                            it may have it wait
              rejected ──► gone; asked for again while tasks wait
    lease     others wait (reclaims.py), its raylet is gone, or it does not answer ──► nothing is pushed any
                            more; when all is answered, it is returned
              worker lost ──► what had begun is retried or fails; the rest runs elsewhere (lost_worker.py)

Short tasks are pushed ahead, so that a worker need not wait for a round trip: as many as it runs in ahead_us,
by what their function took lately (call_template.Pace). Very short ones go to the worker that is awake,
until it has work for wake_us, before another one is woken. While the workers that are held keep up, no more
are asked for. Not pushed ahead are tasks of a function that has not run yet, and tasks that hold other
resources than CPUs.

A task behind another one could wait too long, or for ever if that one waits for it. So a worker that blocks
in `get` gives its unstarted tasks back. If the first task is long, they are taken from the worker, and it
gets no more before that task ends (stalls.py). They are asked for, too, where tasks were longer than was
thought. What comes back keeps its place in the order of submission.

If an argument of a task finds no room on the worker's node, the task goes to a queue that prefers the node
where most of its arguments lie (call_arguments.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ray_mono.common.exceptions import (
    LocalRayletDiedError,
    RuntimeEnvSetupError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
)
from ray_mono.common.scheduling.argument_nodes import node_with_most
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.options import with_affinity
from ray_mono.core_worker.peers import OnReply, PeerPool
from ray_mono.core_worker.task_submission.lease import (
    BUSY,
    ENDING,
    LOST,
    RETURNED,
    STALLED,
    Lease,
    SchedulingQueue,
)
from ray_mono.core_worker.task_submission.lost_worker import settle_lost
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_submission.reclaims import Reclaims
from ray_mono.core_worker.task_submission.removed_groups import RemovedGroups
from ray_mono.core_worker.task_submission.scheduling_queues import SchedulingQueues
from ray_mono.core_worker.task_submission.shared_tasks import SharedTasks
from ray_mono.core_worker.task_submission.stalls import Stalls
from ray_mono.core_worker.task_submission.task_manager import DONE, NO_ROOM, WRONG_WORKER, Reply, TaskManager
from ray_mono.core_worker.task_wire import PLAIN, RUN_US, USUAL_ANSWER
from ray_mono.protobuf import common_pb2, core_worker_pb2, raylet_pb2
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.surface import RpcError, StatusCode

_LEASE_PREFIX_BYTES = 20
_LEASE_COUNTER_BYTES = 8
_FORCED = common_pb2.DeathCause(message="its task was cancelled with force=True, and it did not answer")


class NormalTaskSubmitter:
    """The scheduling queues of one process."""

    def __init__(self, env: Environment, context: WorkerContext, tasks: TaskManager, peers: PeerPool) -> None:
        self._env = env
        self._context = context
        self._tasks = tasks
        self._peers = peers
        self._lease_requests_max = env.config.lease_requests_max
        self._long_us = env.config.keep_up_us
        self._queues = queues = SchedulingQueues(env.config)
        self.queue_for, self.removed_groups = queues.queue_for, RemovedGroups(self._end_group)
        self.forget_queued, self.trouble_with = queues.forget_queued, queues.trouble_with
        self.describe, self.lease_of, self.queue_of = queues.describe, queues.lease_of, queues.queue_of
        self._stalls = Stalls(env, self._on_closed, self.pump)
        self._shared = SharedTasks(env, tasks, self._stalls, self)
        self._reclaims = Reclaims(env.raylet, queues.by_key, self._end_if_answered, self._request)
        # Of lease ids, which nobody else has.
        self._lease_prefix = env.rng.randbytes(_LEASE_PREFIX_BYTES)
        self._num_asked = 0

    def submit(self, queue: SchedulingQueue, task: PendingTask) -> None:
        pace = task.template.pace
        if not queue.tasks:
            lease = queue.filled
            if lease is not None and 0 < len(lease.tasks) < queue.fill and lease.state is BUSY:
                if lease.tasks[-1].template.pace is pace:
                    self.push(lease, task)
                    return
            if queue.idle and queue.idle[-1].is_reachable:
                self.push(queue.wake(pace), task)
                return
        queue.tasks.append(task)
        if queue.idle or (len(queue.requested) < self._lease_requests_max and not queue.keeps_up(pace)):
            self.pump(queue)

    def submit_all(self, queue: SchedulingQueue, tasks: Sequence[PendingTask]) -> None:
        """As submit, in order."""
        queue.tasks.extend(tasks)
        self.pump(queue)

    def pump(self, queue: SchedulingQueue) -> None:
        """A task may wait, or a worker: pushes, and asks for leases."""
        while queue.tasks and queue.idle:
            lease = queue.idle.pop()
            if lease.is_reachable:
                self.push(lease, queue.tasks.popleft())
            else:
                self.on_worker_lost(lease, ())
        if self._context.is_leaving:
            return  # requests would fail at once, and the tasks fail by that
        # Looked at anew each time: a request can fail at once, and the tasks with it.
        while len(queue.requested) < min(len(queue.tasks), self._lease_requests_max):
            self._request(queue, self._env.raylet)
        if queue.tasks:
            for lease in sorted(queue.leases.values(), key=lambda lease: len(lease.tasks)):
                self._push_ahead(lease)

    def _push_ahead(self, lease: Lease) -> None:
        queue = lease.queue
        if queue.tasks and queue.tasks[0].together:
            self._shared.push_ahead(lease)
            if not queue.tasks or queue.tasks[0].together:
                return
        while queue.tasks and lease.tasks and lease.takes_more and queue.pushes_ahead:
            pace = queue.tasks[0].template.pace
            limit = queue.share_of(lease, pace)
            if len(lease.tasks) >= limit:
                return
            while queue.tasks and len(lease.tasks) < limit and queue.tasks[0].template.pace is pace:
                self.push(lease, queue.tasks.popleft())

    # ---- leases

    def _new_lease_id(self) -> bytes:
        self._num_asked += 1
        return self._lease_prefix + self._num_asked.to_bytes(_LEASE_COUNTER_BYTES, "little")

    def _end_group(self, group_id: bytes) -> bool:
        """Its workers get no more tasks, and no other workers are asked for. Returns whether it has any."""
        leases = [lease for queue in self._queues.forget_group(group_id) for lease in queue.leases.values()]
        for lease in leases:
            if not lease.is_ending:
                lease.end()
                self._end_if_answered(lease)
        return bool(leases)

    def _request(
        self, queue: SchedulingQueue, raylet: RayletServiceStub, spilled: bool = False, waited_s: float = 0.0
    ) -> None:
        """waited_s: elsewhere, so far."""
        if queue.group_id in self.removed_groups:
            self._fail_all(queue, TaskPlacementGroupRemoved.of(queue.group_id))
            return
        self._reclaims.watch(raylet)
        lease_id = self._new_lease_id()
        queue.requested[lease_id] = raylet
        options, job = queue.options, self._context.job
        request = raylet_pb2.RequestWorkerLeaseRequest(
            lease_id=lease_id,
            job_id=job.job_id,
            resources=options.resources.to_proto(),
            strategy=options.strategy,
            runtime_env=options.runtime_env,
            requester=self._env.address,
            backlog=max(0, len(queue.tasks) - len(queue.requested)),
            grant_or_reject=spilled,
            scheduling_key=queue.number,
            task_name=queue.tasks[0].name if queue.tasks else options.name,
            outlives_job=job.outlives_job,
            depth=queue.tasks[0].depth if queue.tasks else 0,
            is_retriable=bool(options.max_retries),
            waited_s=waited_s,
        )
        raylet.RequestWorkerLease.start(request, partial(self._on_lease, queue, lease_id, raylet))

    def _on_lease(
        self,
        queue: SchedulingQueue,
        lease_id: bytes,
        raylet: RayletServiceStub,
        reply: Any,
        error: RpcError | None,
    ) -> None:
        if error is not None and raylet is self._env.raylet and error.code is StatusCode.UNAVAILABLE:
            # A driver learns right after this why it is gone. Until then nothing is asked again.
            self._env.reactor.call_later(0.0, partial(self._lost, queue, lease_id, error.message))
            return
        queue.requested.pop(lease_id, None)
        if error is not None:
            # The raylet's queue is full, or it was another node that died: its tasks go elsewhere.
            self._retry_later(queue)
            return
        outcome = reply.WhichOneof("outcome")
        if outcome == "grant":
            lease = Lease(lease_id, queue, raylet, reply.grant, self._peers.peer(reply.grant.worker))
            queue.leases[lease_id] = lease
            if queue.group_id in self.removed_groups:  # while this was on its way
                lease.end()
                self._end_if_answered(lease)
            else:
                self._next(lease)
        elif outcome == "spillback":
            if queue.tasks:
                target = reply.spillback
                raylet = self._peers.raylet_at(f"{target.host}:{target.port}")
                self._request(queue, raylet, not target.may_wait, target.waited_s)
        else:
            self._on_rejection(queue, reply.rejection)

    def _on_closed(self, lease: Lease, begun: int) -> None:
        """The raylet has taken back what a worker that does not answer had not begun."""
        lease.end()
        for task in lease.take_unbegun(begun):
            self.again(lease.queue, task)
        self._end_if_answered(lease)
        self.pump(lease.queue)

    def _end_if_answered(self, lease: Lease) -> None:
        if not lease.num_unanswered:
            self._return(lease)
            self.pump(lease.queue)

    def _on_rejection(self, queue: SchedulingQueue, rejection: Any) -> None:
        kind = rejection.kind
        if kind == raylet_pb2.Rejection.RUNTIME_ENV_FAILED:
            self._fail_all(queue, RuntimeEnvSetupError(rejection.message))
        elif kind in (raylet_pb2.Rejection.INFEASIBLE, raylet_pb2.Rejection.JOB_FINISHED):
            self._fail_all(queue, TaskUnschedulableError(rejection.message))
        elif kind == raylet_pb2.Rejection.PLACEMENT_GROUP_REMOVED:
            self._fail_all(queue, TaskPlacementGroupRemoved.of(queue.group_id))
            self.removed_groups.add(queue.group_id)
        elif kind == raylet_pb2.Rejection.NOT_HERE:
            self._retry_later(queue)
        elif queue.tasks and kind == raylet_pb2.Rejection.CANCELLED:
            self.pump(queue)

    def _retry_later(self, queue: SchedulingQueue) -> None:
        """Asks the local raylet again a little later. Another node was busy or has died, or a raylet's queue
        is full."""
        if queue.is_retried:
            return

        def again() -> None:
            queue.note_retry(False)
            self.pump(queue)

        queue.note_retry(True)
        self._env.reactor.call_later(self._env.config.rejected_retry_s, again)

    def _fail_all(self, queue: SchedulingQueue, error: BaseException) -> None:
        for task in queue.take_all():
            self._tasks.fail(task, error)

    def _lost(self, queue: SchedulingQueue, lease_id: bytes, reason: str) -> None:
        queue.requested.pop(lease_id, None)
        if not self._context.is_leaving:  # else those that still wait are told that this process left
            message = f"The raylet of this node is gone ({reason}): nothing can run any more."
            self._fail_all(queue, LocalRayletDiedError(message))

    def _next(self, lease: Lease) -> None:
        """The lease has nothing to do: it gets the next task, or lingers. Where tasks are spread it does not,
        since the next one goes to another node."""
        queue = lease.queue
        if queue.tasks:
            self.push(lease, queue.tasks.popleft())
            self._push_ahead(lease)
            return
        lease.rest()
        if queue.is_spread:
            self._cancel_requests(queue)
            self._return(lease)
            return
        queue.idle.append(lease)
        if not lease.is_watched_for_idleness:
            self._watch_idleness(lease)

    def _watch_idleness(self, lease: Lease) -> None:
        """Returns the lease if it rests for linger_s, and cancels requests that no task waits for. A caller
        that calls, waits and calls again rests it many times in that time. One timer serves all these rests.
        """
        rests = lease.watch_idleness(True)

        def look() -> None:
            lease.watch_idleness(False)
            if not lease.queue.tasks:
                self._cancel_requests(lease.queue)
            if lease not in lease.queue.idle:
                return
            if lease.num_rests == rests:
                self._return(lease)
            else:
                self._watch_idleness(lease)

        self._env.reactor.call_later(self._env.config.linger_s, look)

    def _cancel_requests(self, queue: SchedulingQueue) -> None:
        """Nothing waits for what was asked for."""
        for lease_id, raylet in list(queue.requested.items()):
            request = raylet_pb2.CancelWorkerLeaseRequest(lease_id=lease_id)
            raylet.CancelWorkerLease.start(request, lambda reply, error: None)

    def _return(self, lease: Lease, leaving: bool = False) -> None:
        if lease.is_over:
            return
        lease.returned()
        lease.queue.forget(lease)
        request = raylet_pb2.ReturnWorkerRequest(lease_id=lease.lease_id, leaving=leaving)
        lease.raylet.ReturnWorker.notify(request)
        if lease.raylet is not self._env.raylet:
            free = lease.queue.options.resources.to_proto()
            self._env.raylet.ReturnedElsewhere.notify(
                raylet_pb2.ReturnedElsewhereRequest(node_id=lease.address.node_id, resources=free)
            )

    # ---- tasks

    def push(self, lease: Lease, task: PendingTask) -> None:
        """The next task of this worker."""
        is_first = not lease.num_pushed
        lease.push(task)
        payload = None if is_first or lease.resource_ids else task.usual_push()
        on_reply = partial(self._on_reply, lease, task)
        if payload is None or not lease.peer.push(task.template, payload, on_reply):
            self._push_in_full(lease, task, is_first, on_reply)
        if not lease.queue.is_looked_at:
            self._stalls.watch(lease.queue)

    def _push_in_full(self, lease: Lease, task: PendingTask, is_first: bool, on_reply: OnReply) -> None:
        request = task.request
        if is_first:
            request.lease_id = lease.lease_id
            request.lease_number = lease.number
        if lease.resource_ids:
            request.ClearField("resource_ids")
            for name, ids in lease.resource_ids.items():
                request.resource_ids[name].CopyFrom(ids)
        lease.peer.push_request(task.template, request, on_reply)
        if is_first:
            request.ClearField("lease_id")
            request.ClearField("lease_number")

    def _on_reply(self, lease: Lease, task: PendingTask, payload: bytes, error: RpcError | None) -> None:
        was_first = bool(lease.tasks) and lease.tasks[0] is task
        if not lease.answered(task):
            self.on_late_reply(lease, error)
            return
        if error is not None:
            self.on_worker_lost(lease, [task])
            return
        if len(payload) <= USUAL_ANSWER.size:
            self.on_answer(lease, task, Reply.FromString(payload), was_first)
            return
        run_tag, run_us, value_tag, size = USUAL_ANSWER.unpack_from(payload)
        if run_tag != RUN_US or value_tag != PLAIN or size + USUAL_ANSWER.size != len(payload):
            self.on_answer(lease, task, Reply.FromString(payload), was_first)
            return
        # The usual case, kept short: DONE, and one small value.
        task.template.pace.append(run_us)
        self._tasks.complete_usual(task, payload[USUAL_ANSWER.size :])
        if run_us > self._long_us:
            self._stalls.ran_long(lease, task, task)
        self.usual_came(lease, was_first)

    def on_answer(self, lease: Lease, task: PendingTask, reply: Any, was_first: bool) -> None:
        """Any answer that was waited for still."""
        queue = lease.queue
        if reply.status == DONE:
            task.template.pace.append(reply.run_us)
            self._tasks.complete(task, reply, lease.address)
            if reply.run_us > self._long_us:
                self._stalls.ran_long(lease, task, task)
        elif reply.status == NO_ROOM:
            self._tasks.note_borrows(reply, lease.address)
            self._move(queue, task, lease.address.node_id)
        else:
            self.again(queue, task)
        if (reply.worker_exiting or reply.status == WRONG_WORKER) and not lease.is_over:
            # It is not told to end: others may need what it owns, and its answers may still be on their way.
            self._return(lease, leaving=True)
            self.pump(queue)
        else:
            self._go_on(lease, was_first, reply.status == DONE)

    def _go_on(self, lease: Lease, was_first: bool, is_done: bool) -> None:
        """What a lease does after an answer. was_first: it is of the task that its worker ran. is_done: the
        task has run."""
        state, queue = lease.state, lease.queue
        if state is RETURNED or state is LOST:
            return
        if state is ENDING:
            self._end_if_answered(lease)
            if not is_done:
                self.pump(queue)
        elif not lease.tasks:
            if state is STALLED:
                lease.go_on()
            self._next(lease)
        elif not is_done:
            lease.stall()
            self.pump(queue)
        else:
            if was_first and state is STALLED:
                lease.go_on()
            if queue.tasks:
                self._push_ahead(lease)

    def usual_came(self, lease: Lease, was_first: bool) -> None:
        """Some of its tasks, one after another, were answered as most are."""
        if lease.state is not BUSY:
            self._go_on(lease, was_first, True)
        elif not lease.tasks:
            self._next(lease)
        elif lease.queue.tasks and len(lease.tasks) <= lease.queue.refill_at:
            self._push_ahead(lease)

    def on_late_reply(self, lease: Lease, error: RpcError | None) -> None:
        """Of a task that was taken back: it did not start there."""
        if lease.is_over:
            return
        if error is not None:
            self.on_worker_lost(lease, ())
        else:
            self._end_if_answered(lease)

    def on_worker_lost(self, lease: Lease, left: Sequence[PendingTask]) -> None:
        """`left` will not be answered, nor will what was pushed behind them."""
        if not lease.is_over:
            lease.lost()
            lease.queue.forget(lease)
        elif not left:
            return
        # Of one that was returned, since its worker is about to end, some may have begun as well.
        left = [*left, *lease.take_unbegun(0)]
        settle_lost(self._env, self._tasks, lease, left, partial(self._not_begun, lease.queue))
        self.pump(lease.queue)

    def _not_begun(self, queue: SchedulingQueue, task: PendingTask) -> None:
        """It was with a worker that is gone."""
        self.again(queue, task)
        self.pump(queue)

    def again(self, queue: SchedulingQueue, task: PendingTask) -> None:
        """A pushed task did not start: it waits again, unless it was cancelled or has failed meanwhile."""
        if not self._tasks.is_pending(task):
            return
        if self._tasks.is_cancelled(task):
            self._tasks.fail_cancelled(task)
        else:
            task.not_started()
            self._stalls.take_back(queue, task)

    def _move(self, queue: SchedulingQueue, task: PendingTask, from_node_id: bytes) -> None:
        """One of its arguments has no room there: it goes where most of them lie, if its options allow that,
        and waits for room then."""
        task.request.waits_for_room = True
        node_id = node_with_most(task.request.args, except_node_id=from_node_id)
        strategy = queue.options.strategy
        is_bound = strategy is not None and (
            strategy.HasField("placement_group")
            or (strategy.HasField("node_affinity") and not strategy.node_affinity.soft)
        )
        if node_id is None or is_bound or self._tasks.is_cancelled(task) or not self._tasks.is_pending(task):
            self.again(queue, task)
            return
        there = common_pb2.NodeAffinity(node_id=node_id, soft=True)
        task.not_started()
        self.submit(self.queue_for(with_affinity(queue.options, there)), task)

    def cancel(self, task: PendingTask, request: Any) -> None:
        """Drops a pending task that waits here; request (CancelTaskRequest) goes to the worker of one that
        was pushed."""
        if (lease := self._queues.lease_of(task)) is not None:
            lease.peer.stub.CancelTask.start(request, lambda reply, error: None)
            if request.force:
                kill = partial(self._kill_if_it_runs, lease, task)
                self._env.reactor.call_later(self._env.config.force_s, kill)
            return
        queue = self._queues.take(task)
        if queue is not None and not queue.tasks:
            self._cancel_requests(queue)
        self._tasks.fail_cancelled(task)

    def interrupt(self, task: PendingTask) -> None:
        """Ends the present run of a task, which is not cancelled by that."""
        if (lease := self._queues.lease_of(task)) is not None:
            request = core_worker_pb2.CancelTaskRequest(task_id=task.task_id)
            lease.peer.stub.CancelTask.start(request, lambda reply, error: None)

    def _kill_if_it_runs(self, lease: Lease, task: PendingTask) -> None:
        """A worker that was told to end for this task lives: it is frozen, or the task was over, and its
        answer is held there. Its raylet knows which."""
        if task in lease.tasks and not lease.is_over:
            worker_id, number, place = lease.address.worker_id, lease.number, task.place
            request = raylet_pb2.KillWorkerRequest(
                worker_id=worker_id, force=True, cause=_FORCED, lease_number=number, place=place
            )
            lease.raylet.KillWorker.start(request, lambda reply, error: None)
