"""Normal tasks of a `map`, which travel together: as NormalTaskSubmitter pushes tasks ahead one by one, so
here in frames of many. What is answered other than with a small value, and what becomes of a lease, is the
submitter's. Lock held.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from ray_mono.core_worker.call_template import PACE_CALLS_MAX
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_submission.lease import Lease, mean_us
from ray_mono.core_worker.task_submission.shared_push import SharedPush, take_together
from ray_mono.core_worker.task_submission.stalls import Stalls
from ray_mono.core_worker.task_submission.task_manager import PendingTask, TaskManager
from ray_mono.protobuf import core_worker_pb2
from ray_mono.rpc.surface import RpcError


class Leases(Protocol):
    """The submitter."""

    def push(self, lease: Lease, task: PendingTask) -> None: ...

    def usual_came(self, lease: Lease, was_first: bool) -> None: ...

    def on_answer(self, lease: Lease, task: PendingTask, reply: Any, was_first: bool) -> None: ...

    def on_late_reply(self, lease: Lease, error: RpcError | None) -> None: ...

    def on_worker_lost(self, lease: Lease, left: Sequence[PendingTask]) -> None: ...


class SharedTasks:
    """Those of one process."""

    def __init__(self, env: Environment, tasks: TaskManager, stalls: Stalls, leases: Leases) -> None:
        self._env = env
        self._tasks = tasks
        self._stalls = stalls
        self._leases = leases

    def push_ahead(self, lease: Lease) -> None:
        """Pushes those of a `map` that are next, as many as the worker runs in chunk_ahead_us."""
        queue, config = lease.queue, self._env.config
        if not lease.takes_more or not lease.tasks or queue.options.max_calls:
            return
        limit, pace = 0, queue.tasks[0].template.pace
        if pace:
            each_us = mean_us(pace) + config.chunk_task_overhead_us
            limit = min(2 * config.chunk_max, int(config.chunk_ahead_us / each_us))
        queue.aim_at(max(limit, 2))
        while queue.tasks and (together := queue.tasks[0].together) and lease.takes_more:
            num_there = len(lease.tasks)
            if together.most:
                # As it was told; more than the worker runs in chunk_ahead_us, where it has next to nothing.
                most = together.most if num_there <= 1 or num_there + together.most <= limit else 0
            else:
                most = min(config.chunk_max, limit - num_there)
            if most <= 0:
                return
            if lease.resource_ids or not lease.peer.knows(queue.tasks[0].template):
                self._leases.push(lease, queue.tasks.popleft())
                continue
            tasks = take_together(queue.tasks, most, config.chunk_bytes_max)
            if len(tasks) > 1:
                self._push_together(lease, tasks)
            else:
                self._leases.push(lease, tasks[0])

    def _push_together(self, lease: Lease, tasks: list[PendingTask]) -> None:
        shared = SharedPush(tasks)
        lease.push_all(tasks)
        shared.send(
            lease.peer,
            partial(self._on_last_answers, lease, shared),
            partial(self._on_answers, lease, shared),
        )
        if not lease.queue.is_looked_at:
            self._stalls.watch(lease.queue)

    def _on_answers(self, lease: Lease, shared: SharedPush, payload: bytes) -> None:
        """Of some of the tasks that travelled together."""
        answers = core_worker_pb2.PushTasksReply.FromString(payload)
        values = answers.plain
        if not values:
            for task in shared.answered(answers.first, answers.count):
                was_first = bool(lease.tasks) and lease.tasks[0] is task
                if lease.answered(task):
                    self._leases.on_answer(lease, task, answers.reply, was_first)
                else:
                    self._leases.on_late_reply(lease, None)
            return
        tasks = shared.answered(answers.first, len(values))
        was_first = bool(lease.tasks) and lease.tasks[0] is tasks[0]
        lease.answered_all(tasks)
        mean_run_us = answers.run_us / len(values)
        tasks[0].template.pace.extend([mean_run_us] * min(len(values), PACE_CALLS_MAX))
        self._tasks.complete_all_usual(zip(tasks, values, strict=True))
        if mean_run_us > self._env.config.keep_up_us:
            self._stalls.ran_long(lease, tasks[0], tasks[-1])
        self._leases.usual_came(lease, was_first)

    def _on_last_answers(
        self, lease: Lease, shared: SharedPush, payload: bytes, error: RpcError | None
    ) -> None:
        if error is None:
            self._on_answers(lease, shared, payload)
            return
        left = [task for task in shared.left if lease.answered(task)]
        if left:
            self._leases.on_worker_lost(lease, left)
        else:
            self._leases.on_late_reply(lease, error)
