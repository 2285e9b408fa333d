"""Leases whose first task is long: the tasks that wait behind it are taken back. Called under the core
worker's lock; never blocks.

While anything is pushed, each lease is looked at every stall_look_s. Where tasks still wait, leases are asked
for. The first look only notes the task that is first. It counts how many later looks find the same task
first:

    1                    The task is long. Nothing more is pushed behind it, and the worker is asked to give
                         back what waits there.
    stall_asked_looks    The worker has not given it back; it may be frozen. Its raylet is asked to take back
                         what waits.
    stall_alone_looks    The raylet is asked also if nothing waits behind the task: the task itself may not
                         have begun.

A worker that takes no connection is not looked at: the next one may be as far away, or this process may have
no descriptor for it, and each worker that is left so costs its node another one.

The raylet reads what the worker has begun (common/start_board.py). Tasks that have not begun are this
process's again at once, and run elsewhere. The lease keeps worker and resources until the worker has answered
for them, should it ever go on; then the lease is over. If the task of a frozen worker is cancelled by force,
the raylet ends the worker force_s later (normal_task_submitter.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray_mono.core_worker.call_template import PACE_CALLS_MAX
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_submission.lease import Lease, SchedulingQueue, mean_us
from ray_mono.core_worker.task_submission.overtaking import Overtaking
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError


class Stalls:
    """Looks for stalls, for one process."""

    def __init__(
        self,
        env: Environment,
        on_closed: Callable[[Lease, int], None],
        pump: Callable[[SchedulingQueue], None],
    ) -> None:
        """on_closed(lease, begun): no task of the lease begins any more. Of those pushed, the first `begun`
        have begun, or were answered unstarted. pump(queue): tasks may have waited since the last look."""
        self._env = env
        self._on_closed = on_closed
        self._pump = pump
        self._overtaking = Overtaking(env, on_closed)

    def watch(self, queue: SchedulingQueue) -> None:
        queue.note_looks(True)
        self._env.reactor.call_later(self._env.config.stall_look_s, lambda: self._look(queue))

    def take_back(self, queue: SchedulingQueue, task: PendingTask) -> None:
        """It came back unstarted, and waits again."""
        queue.take_back(task)
        self._overtaking.watch(queue)

    def ran_long(self, lease: Lease, first: PendingTask, last: PendingTask) -> None:
        """These were answered, and were not very short. Those behind them were perhaps thought to be: what
        the worker cannot run soon is given back, and goes to others, too."""
        if lease.ran_long(first, last) and len(lease.tasks) > 1:
            pace = lease.tasks[-1].template.pace
            if pace and len(lease.tasks) * mean_us(pace) > self._env.config.spread_us:
                lease.peer.stub.GiveBackTasks.notify(common_pb2.Empty())

    def _look(self, queue: SchedulingQueue) -> None:
        queue.note_looks(False)
        goes_on = False
        for lease in list(queue.leases.values()):
            if lease.tasks and self._look_at(lease):
                goes_on = True
        if goes_on and not queue.is_looked_at:
            self.watch(queue)
        if queue.tasks:
            self._pump(queue)

    def _look_at(self, lease: Lease) -> bool:
        """Looks at a lease. Returns whether it has to be looked at again."""
        config = self._env.config
        if lease.peer.channel.is_connecting:
            return True
        looks = lease.look()
        if not looks:
            return True
        if looks == 1:
            # Its like may take as long: believed at once.
            lease.tasks[0].template.pace.extend([config.stall_look_s * 1e6] * PACE_CALLS_MAX)
        lease.stall()
        if lease.is_ending and lease.num_unanswered > len(lease.tasks):
            return False  # its tasks were taken back already
        if len(lease.tasks) > 1:
            # It is asked at each look: tasks may have reached the worker after it was asked last, and the
            # first task may wait for them.
            lease.peer.stub.GiveBackTasks.notify(common_pb2.Empty())
            if looks == config.stall_asked_looks:
                self._withdraw(lease)
            return True
        if lease.is_alone():
            # Once, and no more looks until then: a worker that waits for others' tasks may wait for long.
            left_s = (config.stall_alone_looks - looks) * config.stall_look_s
            self._env.reactor.call_later(left_s, partial(self._look_alone, lease, lease.tasks[0]))
        return False

    def _look_alone(self, lease: Lease, task: PendingTask) -> None:
        if len(lease.tasks) == 1 and lease.tasks[0] is task and not lease.is_over:
            self._withdraw(lease)

    def _withdraw(self, lease: Lease) -> None:
        def answered(reply: Any, error: RpcError | None) -> None:
            # A raylet that does not answer is gone, and its workers soon are.
            if error is None and reply.is_closed and not lease.is_over:
                self._on_closed(lease, reply.begun)

        request = raylet_pb2.WithdrawTasksRequest(lease_id=lease.lease_id, last=lease.num_pushed)
        lease.raylet.WithdrawTasks.start(request, answered)
