"""A worker that was leased here is gone. Its raylet is told, and answers how the worker ended, which goes
into the error of the task that it ran."""

from __future__ import annotations

from typing import Any

from ray_mono.common.exceptions import NodeDiedError, WorkerCrashedError
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_submission.lease import Lease
from ray_mono.core_worker.task_submission.task_manager import PendingTask, TaskManager
from ray_mono.protobuf import raylet_pb2
from ray_mono.rpc.surface import RpcError


def tell_lost(lease: Lease) -> None:
    """Tells the raylet of a lost worker. Nobody needs to know how it ended."""
    lease.raylet.LostWorker.start(_request(lease), lambda reply, error: None)


def fail_lost(env: Environment, tasks: TaskManager, lease: Lease, task: PendingTask) -> None:
    """Runs the task again at once if it has retries left, and drops it if it was cancelled. Otherwise the
    task fails when the raylet has answered, or has not answered in time. Lock held."""
    if task.retries_left != 0 or tasks.is_cancelled(task):
        tasks.lost(task, WorkerCrashedError)
        tell_lost(lease)
        return
    is_settled = False

    def settle(error: BaseException) -> None:
        nonlocal is_settled
        if not is_settled:
            is_settled = True
            timer.cancel()
            tasks.lost(task, lambda: error)

    def answered(death: Any, error: RpcError | None) -> None:
        if error is not None:
            settle(_node_died(lease, error.message))
        elif death.message:
            settle(WorkerCrashedError(f"The worker died before it finished the task: {death.message}"))
        else:
            settle(WorkerCrashedError())

    answer_s = env.config.lost_worker_answer_s
    silence = f"its raylet did not answer within {answer_s:g} s"
    timer = env.reactor.call_later(answer_s, lambda: settle(_node_died(lease, silence)))
    lease.raylet.LostWorker.start(_request(lease), answered)


def _request(lease: Lease) -> raylet_pb2.LostWorkerRequest:
    return raylet_pb2.LostWorkerRequest(lease_id=lease.lease_id, worker_id=lease.address.worker_id)


def _node_died(lease: Lease, reason: str) -> NodeDiedError:
    node = f"node {lease.address.node_id.hex()} ({lease.address.host})"
    return NodeDiedError(
        f"The worker died before it finished the task, and its {node} is gone, or cannot be reached: {reason}"
    )
