"""Normal tasks of a `map`, which travel together: as NormalTaskSubmitter pushes tasks ahead one by one, so
here in frames of many. What is answered other than with a small value, and what becomes of a lease, is the
submitter's. Lock held.

A worker collects answers. If what it runs next holds the GIL it cannot send them. So frames are looked at
every held_look_s. Where nothing came since the last look, the raylet reads what is held off the worker's
board.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from ray_mono.core_worker.call_template import PACE_CALLS_MAX
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_submission.lease import Lease, mean_us
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_submission.shared_push import SharedPush, take_together
from ray_mono.core_worker.task_submission.stalls import Stalls
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.core_worker.task_wire import plains_of
from ray_mono.protobuf import core_worker_pb2, raylet_pb2
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
        if not lease.takes_more or not lease.tasks or not queue.pushes_ahead:
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
        lease.push_all(tasks)
        shared = SharedPush(tasks)
        shared.send(
            lease.peer,
            partial(self._on_last_answers, lease, shared),
            partial(self._on_answers, lease, shared),
        )
        if not lease.queue.is_looked_at:
            self._stalls.watch(lease.queue)
        self._watch(lease, shared)

    def _on_answers(self, lease: Lease, shared: SharedPush, payload: bytes) -> None:
        """Of some of the tasks that travelled together."""
        answers = core_worker_pb2.PushTasksReply.FromString(payload)
        values = plains_of(answers)
        if not values:
            for task in shared.answered(answers.first, answers.count):
                was_first = bool(lease.tasks) and lease.tasks[0] is task
                if lease.answered(task):
                    self._leases.on_answer(lease, task, answers.reply, was_first)
                else:
                    self._leases.on_late_reply(lease, None)
            return
        tasks, new = shared.answered_with(answers.first, values)
        if not tasks:
            return  # the raylet was asked for them
        was_first = bool(lease.tasks) and lease.tasks[0] is tasks[0]
        lease.answered_all(tasks)
        mean_run_us = answers.run_us / len(values)
        tasks[0].template.pace.extend([mean_run_us] * min(len(values), PACE_CALLS_MAX))
        self._tasks.complete_all_usual(tasks, new)
        if mean_run_us > self._env.config.keep_up_us:
            self._stalls.ran_long(lease, tasks[0], tasks[-1])
        self._leases.usual_came(lease, was_first)
        if not shared.is_watched:
            self._watch(lease, shared)

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

    # ---- answers that are held

    def _watch(self, lease: Lease, shared: SharedPush, ran: PendingTask | None = None) -> None:
        """ran: what the worker ran when it was looked at last, if that was the first without an answer."""
        if shared.first_left is not None:
            shared.watch(True)
            look = partial(self._look, lease, shared, ran)
            self._env.reactor.call_later(self._env.config.held_look_s, look)

    def _look(self, lease: Lease, shared: SharedPush, ran: PendingTask | None) -> None:
        """Where nothing came since the last look, the raylet is asked for answers that the worker holds."""
        has_moved = shared.watch(False)
        first = shared.first_left
        if first is None or lease.is_over or first not in lease.tasks:
            return
        if has_moved:
            self._watch(lease, shared)
            return
        shared.watch(True)
        request = raylet_pb2.LastWordsRequest(worker_id=lease.address.worker_id, lease_number=lease.number)
        lease.raylet.HeldAnswers.start(request, partial(self._on_held, lease, shared, first, ran))

    def _on_held(
        self,
        lease: Lease,
        shared: SharedPush,
        first: PendingTask,
        ran: PendingTask | None,
        held: Any,
        error: RpcError | None,
    ) -> None:
        """They come once more when the worker goes on. first: the one that had no answer when the raylet was
        asked. Each answer that comes begins the watch anew, if it has ended."""
        shared.watch(False)
        if error is not None or not held.is_known or lease.is_over:
            return
        skipped = max(0, shared.first_place - held.first)
        tasks, new = shared.answered_with(max(0, held.first - shared.first_place), held.plain[skipped:])
        if tasks:
            lease.answered_all(tasks)
            self._tasks.complete_all_usual(tasks, new)
            self._leases.on_late_reply(lease, None)
        elif held.begun > first.place:
            return  # its answer is on its way, or waits for an owner
        runs = first if held.begun == first.place else None
        if runs is None or runs is not ran:
            self._watch(lease, shared, runs)
        # Else it is long, and its answer does not wait for others.
