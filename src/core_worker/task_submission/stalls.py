"""Workers whose first task is long: what waits behind it is taken back. Called under the core worker's lock;
never blocks.

Every stall_look_s, while anything is pushed, each lease is looked at. What counts is how many looks have
found the same task first:

    1                    it is long: nothing more is pushed behind it, and the worker is asked to give back what waits there
    stall_asked_looks    the worker did not answer, it may be frozen: its raylet is asked to take that back
    stall_alone_looks    also where nothing waits behind it: it may be the first that has not begun

The raylet reads what the worker has begun (common/start_board.py). What has not is this process's again, at
once, and runs elsewhere; the lease is over as soon as the worker, should it ever go on, has given back its
copies. Until then it keeps worker and resources. A frozen worker whose task is cancelled by force is ended by
its raylet, a second later (normal_task_submitter.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_submission.lease import Lease, SchedulingQueue
from ray_mono.core_worker.task_submission.task_manager import PendingTask
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError


class Stalls:
    """Looks for them, for one process."""

    def __init__(self, env: Environment, on_closed: Callable[[Lease, int], None]) -> None:
        """on_closed(lease, begun): no task of the lease begins any more; `begun` of those pushed have, or
        were answered unstarted."""
        self._env = env
        self._on_closed = on_closed

    def watch(self, queue: SchedulingQueue) -> None:
        queue.look_for_stalls(True)
        self._env.reactor.call_later(self._env.config.stall_look_s, lambda: self._look(queue))

    def _look(self, queue: SchedulingQueue) -> None:
        queue.look_for_stalls(False)
        goes_on = False
        for lease in list(queue.leases.values()):
            if lease.tasks and self._look_at(lease):
                goes_on = True
        if goes_on and not queue.is_looked_at:
            self.watch(queue)

    def _look_at(self, lease: Lease) -> bool:
        """Whether it is to be looked at again."""
        config = self._env.config
        looks = lease.look()
        if not looks:
            return True
        lease.stall()
        if lease.is_ending and lease.num_unanswered > len(lease.tasks):
            return False  # taken back already
        if len(lease.tasks) > 1:
            # Each time: what was pushed meanwhile came after that, and the first may wait for it.
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
            # Without an answer the raylet is gone, and soon its workers.
            if error is None and reply.is_closed and not lease.is_over:
                self._on_closed(lease, reply.begun)

        request = raylet_pb2.WithdrawTasksRequest(lease_id=lease.lease_id, last=lease.num_pushed)
        lease.raylet.WithdrawTasks.start(request, answered)
