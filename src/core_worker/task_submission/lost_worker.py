"""A worker that was leased here is gone. Its raylet is told, and answers how the worker ended. That decides
what becomes of the tasks that had begun:

    it died                        again at once, while max_retries last; then it fails with the cause
    its node was drained, since    again at once; that costs no retry. It fails where it has none at all
    its provider takes it away
    its raylet killed it, since    it fails: it would find no place again
    its placement group is gone
    its raylet killed it, since    again after a pause, which doubles each time; that costs no retry. It fails
    the node ran short of memory   where it has none at all, where task_oom_retries are used up, and where the
                                   worker was the last that the raylet could kill of its owner's
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ray_mono.common.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_submission.last_answers import beside_items
from ray_mono.core_worker.task_submission.lease import LOST, Lease
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError

OOM_PAUSE_MAX_S = 60.0
"""By then the node has room, or never will."""


def settle_lost(
    env: Environment,
    tasks: TaskManager,
    lease: Lease,
    left: Sequence[PendingTask],
    not_begun: Callable[[PendingTask], None],
) -> None:
    """The lease's worker is gone, and these tasks have no answer, in the order in which they were pushed. The
    first counts as begun, unless the lease was returned before. If it was cancelled it is dropped at once.
    All others wait for what the raylet says. Those that were over are answered all the same, those that had
    begun are lost, and not_begun(task) takes the rest. More than one can have begun: an answer may wait for
    others, for an owner, or for a caller that does not read. Where the raylet does not say, all of them may
    have.

    Lock held.
    """
    first = left[0] if left else None
    if first is not None and not first.together and tasks.is_cancelled(first):
        tasks.fail_cancelled(first)
        left = left[1:]
    if not left:
        lease.raylet.LostWorker.start(_request(lease), lambda reply, error: None)
        return

    def settle(death: Any, error: BaseException, words: Any) -> None:
        values = {} if words is None else dict(enumerate(words.plain, words.first))
        if words is not None:
            beside_items(lease.peer, {task.task_id: task for task in left}, words.items)
        for task in left:
            value = values.get(task.place)
            if value is not None:
                tasks.complete_usual(task, value)
            elif words is not None and task.place > words.begun:
                not_begun(task)
            elif death is not None and death.kind == common_pb2.DeathCause.OUT_OF_MEMORY:
                _killed_for_memory(env, tasks, task, death.oom_retries, error)
            elif death is not None and death.kind == common_pb2.DeathCause.PLACEMENT_GROUP_REMOVED:
                tasks.fail_unless_cancelled(task, TaskPlacementGroupRemoved.of(lease.queue.group_id))
            else:
                tasks.lost(task, lambda: error, is_preempted=death is not None and death.is_preempted)

    is_alone = len(left) == 1 and left[0] is first and not first.together and first.template.on_part is None
    is_alone = is_alone and lease.state is LOST
    _when_known(env, lease, settle, asks_for_words=not is_alone)


def _killed_for_memory(
    env: Environment, tasks: TaskManager, task: PendingTask, retries: Any, error: BaseException
) -> None:
    if not tasks.is_pending(task):
        return
    if tasks.may_run_again(task) and (retries.retries_max < 0 or task.oom_kills < retries.retries_max):
        task.killed_for_memory()
        tasks.begins_again(task, str(error), is_free=True)
        pause_s = min(retries.pause_s * 2 ** (task.oom_kills - 1), OOM_PAUSE_MAX_S)
        env.reactor.call_later(pause_s, partial(tasks.run_again, task))
    else:
        tasks.fail_unless_cancelled(task, error)


def _when_known(
    env: Environment,
    lease: Lease,
    settle: Callable[[Any, BaseException, Any], None],
    asks_for_words: bool,
) -> None:
    """Tells the raylet of the lost worker. settle(death, error, words) runs once: when the raylet has said
    how the worker ended, or that cannot be had: then death is None. words: its LastWordsReply, where they
    were asked for and are known; else None."""
    is_settled = False

    def once(death: Any, error: BaseException, words: Any = None) -> None:
        nonlocal is_settled
        if not is_settled:
            is_settled = True
            timer.cancel()
            settle(death, error, words)

    def crashed(death: Any) -> WorkerCrashedError | OutOfMemoryError | NodeDiedError:
        # A worker that was never reached is ended for that, and does not know why.
        return _crashed(death, lease.peer.channel.trouble)

    def told(death: Any, words: Any, failure: RpcError | None) -> None:
        once(death, crashed(death), words if failure is None and words.is_known else None)

    def answered(death: Any, failure: RpcError | None) -> None:
        if failure is not None:
            # Not at once: right after this it is known that its other workers are gone, too (reclaims.py).
            env.reactor.call_later(0.0, lambda: once(None, _node_died(lease, failure.message)))
        elif asks_for_words:
            request = raylet_pb2.LastWordsRequest(
                worker_id=lease.address.worker_id, lease_number=lease.number
            )
            lease.raylet.LastWords.start(request, partial(told, death))
        else:
            once(death, crashed(death))

    answer_s = env.config.lost_worker_answer_s
    silence = f"its raylet did not answer within {answer_s:g} s"
    timer = env.reactor.call_later(answer_s, lambda: once(None, _node_died(lease, silence)))
    lease.raylet.LostWorker.start(_request(lease), answered)


def _crashed(death: Any, trouble: str) -> WorkerCrashedError | OutOfMemoryError | NodeDiedError:
    if death.kind == common_pb2.DeathCause.OUT_OF_MEMORY:
        return OutOfMemoryError(death.message)
    if death.kind == common_pb2.DeathCause.NODE_DIED:
        # Its raylet ends, as one does at the end of a drain, and lives long enough to say so.
        return NodeDiedError(f"The worker died before it finished the task: {death.message}")
    if not death.message:
        return WorkerCrashedError()
    caller = f"; its caller {trouble}" if trouble else ""
    return WorkerCrashedError(f"The worker died before it finished the task: {death.message}{caller}")


def _request(lease: Lease) -> raylet_pb2.LostWorkerRequest:
    return raylet_pb2.LostWorkerRequest(lease_id=lease.lease_id, worker_id=lease.address.worker_id)


def _node_died(lease: Lease, reason: str) -> NodeDiedError:
    node = f"node {lease.address.node_id.hex()} ({lease.address.host})"
    return NodeDiedError(
        f"The worker died before it finished the task, and its {node} is gone, or cannot be reached: {reason}"
    )
