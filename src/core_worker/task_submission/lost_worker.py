"""A worker that was leased here is gone: its raylet is told, and says how it ended, for the error of the task that it ran."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_mono.common.exceptions import NodeDiedError, WorkerCrashedError
from ray_mono.core_worker.task_submission.task_manager import PendingTask
from ray_mono.protobuf import raylet_pb2
from ray_mono.rpc.surface import RpcError

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.core_worker.task_submission.lease import Lease

ANSWER_S = 10.0
"""A raylet that takes longer is in trouble itself."""


def tell_lost(lease: Lease) -> None:
    """It ran nothing of ours."""
    lease.raylet.LostWorker.start(_request(lease), lambda reply, error: None)


def fail_lost(core: CoreWorker, lease: Lease, task: PendingTask) -> None:
    """Runs the task again where its retries last, at once, or drops it if it was cancelled; else it fails when the raylet has answered.

    Lock held.
    """
    if task.retries_left != 0 or task.task_id in core.tasks.cancelled:
        core.tasks.lost(task, WorkerCrashedError)
        tell_lost(lease)
        return
    is_settled = False

    def settle(error: BaseException) -> None:
        nonlocal is_settled
        if not is_settled:
            is_settled = True
            timer.cancel()
            core.tasks.lost(task, lambda: error)

    def answered(death: Any, error: RpcError | None) -> None:
        if error is not None:
            settle(_node_died(lease, error.message))
        elif death.message:
            settle(WorkerCrashedError(f"The worker died before it finished the task: {death.message}"))
        else:
            settle(WorkerCrashedError())

    silence = f"its raylet did not answer within {ANSWER_S:g} s"
    timer = core.reactor.call_later(ANSWER_S, lambda: settle(_node_died(lease, silence)))
    lease.raylet.LostWorker.start(_request(lease), answered)


def _request(lease: Lease) -> raylet_pb2.LostWorkerRequest:
    return raylet_pb2.LostWorkerRequest(lease_id=lease.lease_id, worker_id=lease.address.worker_id)


def _node_died(lease: Lease, reason: str) -> NodeDiedError:
    node = f"node {lease.address.node_id.hex()} ({lease.address.host})"
    return NodeDiedError(
        f"The worker died before it finished the task, and its {node} is gone, or cannot be reached: {reason}"
    )
