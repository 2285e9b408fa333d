"""Workers whose first task is long: what waits behind it is taken back. Called under the core worker's lock; never blocks.

Every LOOK_S, while anything is pushed, each lease is looked at. What counts is how many looks have found the same task first:

    1                  it is long: nothing more is pushed behind it, and the worker is asked to give back what waits there
    ASKED_LOOKS        the worker did not answer, it may be frozen: its raylet is asked to take that back
    ALONE_LOOKS        also where nothing waits behind it: it may be the first that has not begun

The raylet reads what the worker has begun (common/start_board.py). What has not is this process's again, at once, and runs elsewhere;
the lease is over as soon as the worker, should it ever go on, has given back its copies. Until then it keeps worker and resources.
A frozen worker whose task is cancelled by force is ended by its raylet, a second later (normal_task_submitter.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.core_worker.task_submission.lease import Lease, SchedulingQueue

LOOK_S = 0.01
ASKED_LOOKS = 3
ALONE_LOOKS = 10


class Stalls:
    """Looks for them, for one process."""

    def __init__(self, core: CoreWorker, on_closed: Callable[[Lease, int], None]) -> None:
        """on_closed(lease, begun): no task of the lease begins any more; `begun` of those pushed have, or were answered unstarted."""
        self._core = core
        self._on_closed = on_closed

    def watch(self, queue: SchedulingQueue) -> None:
        queue.stall_check = self._core.reactor.call_later(LOOK_S, lambda: self._look(queue))

    def _look(self, queue: SchedulingQueue) -> None:
        queue.stall_check = None
        goes_on = False
        for lease in list(queue.leases.values()):
            if lease.tasks and self._look_at(lease):
                goes_on = True
        if goes_on and queue.stall_check is None:
            self.watch(queue)

    def _look_at(self, lease: Lease) -> bool:
        """Whether it is to be looked at again."""
        first = lease.tasks[0]
        if lease.seen_first is not first:
            lease.seen_first, lease.looks = first, 0
            return True
        lease.looks += 1
        lease.gives_back = True
        if lease.is_ending and lease.num_unanswered > len(lease.tasks):
            return False  # taken back already
        if len(lease.tasks) > 1:
            # Each time: what was pushed meanwhile came after that, and the first may wait for it.
            lease.peer.stub.GiveBackTasks.notify(common_pb2.Empty())
            if lease.looks == ASKED_LOOKS:
                self._withdraw(lease)
            return True
        if lease.looks == ALONE_LOOKS:
            self._withdraw(lease)
        return lease.looks < ALONE_LOOKS

    def _withdraw(self, lease: Lease) -> None:
        def answered(reply: Any, error: RpcError | None) -> None:
            # Without an answer the raylet is gone, and soon its workers.
            if error is None and reply.is_closed and not lease.is_over:
                self._on_closed(lease, reply.begun)

        request = raylet_pb2.WithdrawTasksRequest(lease_id=lease.lease_id, last=lease.num_pushed)
        lease.raylet.WithdrawTasks.start(request, answered)
