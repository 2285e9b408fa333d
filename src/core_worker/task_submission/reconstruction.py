"""Tasks that have finished run again, since something that they returned is lost. Which objects that is about
decides objects/object_recovery.py; which tasks are there to run, objects/lineage.py.

Another run has the ids of the first. What is known of the task's objects stays; a run only gives those that
are awaited, and one more copy of those that are there. It costs one of the task's retries, as in Ray.

A generator may lose an item while it runs. Its present run has passed that item: so it runs once more when it
ends. It rests no more until then, since the user may be waiting for this very item. A run that has not ended
after late_run_s is interrupted, as cancel() does it, since it may have no end. (A call of an actor is not.)
Where no retries are left, the item is lost for good at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ray_mono.common import ids
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.generator_streams import GeneratorStreams
from ray_mono.core_worker.objects.lineage import Lineage, Reason, WhyNot, why_no_retry
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.task_submission.dependency_resolver import DependencyResolver
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_submission.task_manager import TaskManager

_TASK_ID_BYTES = ids.TaskID.SIZE


class Reconstruction:
    """Implements object_recovery.Remaker for one process."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        streams: GeneratorStreams,
        lineage: Lineage[PendingTask],
        tasks: TaskManager,
        dependencies: DependencyResolver,
        interrupt: Callable[[PendingTask], None],
    ) -> None:
        """interrupt(task) ends the present run of a normal task."""
        self._env = env
        self._interrupt = interrupt
        # Generators whose run is interrupted if it does not end soon.
        self._late: set[bytes] = set()
        self._references = references
        self._streams = streams
        self._lineage = lineage
        self._tasks = tasks
        self._dependencies = dependencies
        self._prepared: list[PendingTask] = []

    def why_not(self, object_id: bytes) -> Reason | None:
        """See Remaker."""
        task_id, index = object_id[:_TASK_ID_BYTES], int.from_bytes(object_id[_TASK_ID_BYTES:], "little")
        if index > ids.PUT_INDEX_BASE:
            return WhyNot.PUT
        task = self._tasks.get(task_id)
        if task is not None:
            has_passed = not task.retries_left and task.is_pushed and self._streams.has_passed(object_id)
            if not has_passed:
                return None
            return WhyNot.CANCELLED if self._tasks.is_cancelled(task) else why_no_retry(task)
        record = self._lineage.get(task_id)
        if record is None:
            return WhyNot.NOT_MADE_AGAIN
        if record.num_yielded is not None and index > record.num_yielded + 1:
            return WhyNot.FEWER_ITEMS
        if record.task is None:
            return record.why_not or WhyNot.NOT_MADE_AGAIN
        return None

    def prepare(self, object_id: bytes) -> Sequence[bytes]:
        """See Remaker."""
        task_id = object_id[:_TASK_ID_BYTES]
        pending = self._tasks.get(task_id)
        if pending is not None:
            self._tasks.await_object(task_id, object_id)
            if pending.template.on_part is not None:
                self._end_late(pending)
            return ()
        record = self._lineage.get(task_id)
        if record is None or record.task is None:
            return ()
        task = record.task
        arg_ids = [
            each for each in task.arg_ids if not ids.stands_for_actor(each) or each in self._references
        ]
        self._lineage.runs_again(record, arg_ids)
        self._tasks.make_again(task, arg_ids)
        self._tasks.await_object(task_id, object_id)
        if task.template.on_part is not None:
            self._streams.reopen(task_id)
        self._prepared.append(task)
        return [each for each in arg_ids if not ids.stands_for_actor(each)]

    def _end_late(self, task: PendingTask) -> None:
        task_id, attempt = task.task_id, task.attempt
        if not (task.is_pushed and ids.is_normal_task(task_id)) or task_id in self._late:
            return

        def end() -> None:
            self._late.discard(task_id)
            runs_still = self._tasks.get(task_id) is task and task.is_pushed and task.attempt == attempt
            if runs_still and task.retries_left and self._tasks.needs_another_attempt(task):
                self._interrupt(task)

        self._late.add(task_id)
        self._env.reactor.call_later(self._env.config.late_run_s, end)

    def start(self) -> None:
        """See Remaker."""
        prepared, self._prepared = self._prepared, []
        # Those that others wait for first.
        for task in reversed(prepared):
            if task.resubmit is not None and self._tasks.is_pending(task):
                self._dependencies.resolve(task, task.resubmit)
