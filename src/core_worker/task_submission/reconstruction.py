"""Tasks that have finished run again, since something that they returned is lost. Which objects that is about
decides objects/object_recovery.py; which tasks are there to run, objects/lineage.py.

Another run has the ids of the first. What is known of the task's objects stays; a run only gives those that
are awaited, and one more copy of those that are there. It costs one of the task's retries, as in Ray.

A generator may lose an item while it runs. Its present run has passed that item: so it runs once more when it
ends (`was_late_for`). It rests no more until then, since the user may be waiting for this very item.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_mono.common import ids
from ray_mono.core_worker.objects.generator_streams import GeneratorStreams
from ray_mono.core_worker.objects.lineage import Lineage, WhyNot
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.task_submission.dependency_resolver import DependencyResolver
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_submission.task_manager import TaskManager

_TASK_ID_BYTES = ids.TaskID.SIZE


class Reconstruction:
    """Implements object_recovery.Remaker for one process."""

    def __init__(
        self,
        references: ReferenceCounter,
        streams: GeneratorStreams,
        lineage: Lineage[PendingTask],
        tasks: TaskManager,
        dependencies: DependencyResolver,
    ) -> None:
        self._references = references
        self._streams = streams
        self._lineage = lineage
        self._tasks = tasks
        self._dependencies = dependencies
        self._prepared: list[PendingTask] = []

    def why_not(self, object_id: bytes) -> WhyNot | None:
        """See Remaker."""
        task_id = object_id[:_TASK_ID_BYTES]
        if int.from_bytes(object_id[_TASK_ID_BYTES:], "little") > ids.PUT_INDEX_BASE:
            return WhyNot.PUT
        if self._tasks.get(task_id) is not None:
            return None
        record = self._lineage.get(task_id)
        if record is None:
            return WhyNot.NOT_MADE_AGAIN
        if record.task is None:
            return record.why_not or WhyNot.NOT_MADE_AGAIN
        return None

    def prepare(self, object_id: bytes) -> Sequence[bytes]:
        """See Remaker."""
        task_id = object_id[:_TASK_ID_BYTES]
        if self._tasks.get(task_id) is not None:
            self._tasks.await_object(task_id, object_id)
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

    def start(self) -> None:
        """See Remaker."""
        prepared, self._prepared = self._prepared, []
        # Those that others wait for first.
        for task in reversed(prepared):
            if task.resubmit is not None and self._tasks.is_pending(task):
                self._dependencies.resolve(task, task.resubmit)
