"""A worker that was leased here is gone. Its raylet is told, and answers how the worker ended, which goes
into the error of the task that it ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ray_mono.common.exceptions import NodeDiedError, WorkerCrashedError
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_submission.lease import Lease
from ray_mono.core_worker.task_submission.task_manager import PendingTask, TaskManager
from ray_mono.protobuf import raylet_pb2
from ray_mono.rpc.surface import RpcError


def settle_lost(
    env: Environment,
    tasks: TaskManager,
    lease: Lease,
    left: Sequence[PendingTask],
    not_begun: Callable[[PendingTask], None],
) -> None:
    """The lease's worker is gone, and these tasks have no answer, in the order in which they were pushed. The
    first counts as begun: it runs again at once if it has retries left, and is dropped if it was cancelled.
    All others wait for what the raylet says. Those that were over are answered all the same, those that had
    begun are lost, and not_begun(task) takes the rest. More than one can have begun: an answer may wait for
    others, for an owner, or for a caller that does not read. Where the raylet does not say, all of them may
    have.

    Lock held.
    """
    first = left[0] if left else None
    if first is not None and not first.together and (first.retries_left != 0 or tasks.is_cancelled(first)):
        tasks.lost(first, WorkerCrashedError)
        left = left[1:]
    if not left:
        lease.raylet.LostWorker.start(_request(lease), lambda reply, error: None)
        return

    def settle(error: BaseException, words: Any) -> None:
        values = {} if words is None else dict(enumerate(words.plain, words.first))
        for task in left:
            value = values.get(task.place)
            if value is not None:
                tasks.complete_usual(task, value)
            elif words is None or task.place <= words.begun:
                tasks.lost(task, lambda: error)
            else:
                not_begun(task)

    is_alone = len(left) == 1 and left[0] is first and not first.together
    _when_known(env, lease, settle, asks_for_words=not is_alone)


def _when_known(
    env: Environment,
    lease: Lease,
    settle: Callable[[BaseException, Any], None],
    asks_for_words: bool,
) -> None:
    """Tells the raylet of the lost worker. settle(error, words) runs once: when the raylet has said how the
    worker ended, or that cannot be had. words: its LastWordsReply, where they were asked for and are known;
    else None."""
    is_settled = False

    def once(error: BaseException, words: Any = None) -> None:
        nonlocal is_settled
        if not is_settled:
            is_settled = True
            timer.cancel()
            settle(error, words)

    def told(error: BaseException, words: Any, failure: RpcError | None) -> None:
        once(error, words if failure is None and words.is_known else None)

    def answered(death: Any, failure: RpcError | None) -> None:
        if failure is not None:
            once(_node_died(lease, failure.message))
        elif asks_for_words:
            request = raylet_pb2.LastWordsRequest(
                worker_id=lease.address.worker_id, lease_number=lease.number
            )
            lease.raylet.LastWords.start(request, partial(told, _crashed(death)))
        else:
            once(_crashed(death))

    answer_s = env.config.lost_worker_answer_s
    silence = f"its raylet did not answer within {answer_s:g} s"
    timer = env.reactor.call_later(answer_s, lambda: once(_node_died(lease, silence)))
    lease.raylet.LostWorker.start(_request(lease), answered)


def _crashed(death: Any) -> WorkerCrashedError:
    if not death.message:
        return WorkerCrashedError()
    return WorkerCrashedError(f"The worker died before it finished the task: {death.message}")


def _request(lease: Lease) -> raylet_pb2.LostWorkerRequest:
    return raylet_pb2.LostWorkerRequest(lease_id=lease.lease_id, worker_id=lease.address.worker_id)


def _node_died(lease: Lease, reason: str) -> NodeDiedError:
    node = f"node {lease.address.node_id.hex()} ({lease.address.host})"
    return NodeDiedError(
        f"The worker died before it finished the task, and its {node} is gone, or cannot be reached: {reason}"
    )
