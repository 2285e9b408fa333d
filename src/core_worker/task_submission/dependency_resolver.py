"""The arguments of a task, before it is sent. It waits for those by reference. Then small values are put into
the task's message, and for large ones it says where they lie.

If an argument is an error, the task fails with it here and at once, whatever the other arguments, and needs
no worker for that (task_errors.handed_on). Some errors only an executor can read; then the task goes on to
one.

Called under the core worker's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from ray_mono.common.our_bug import known
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.future_resolver import FutureResolver
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.task_errors import handed_on
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2

WhenReady = Callable[[PendingTask], None]
WhenFailed = Callable[[PendingTask, bytes], None]
"""Takes a task that has failed with the error of an argument, and that serialized error."""


class DependencyResolver:
    """Waits for arguments in one process."""

    def __init__(
        self,
        env: Environment,
        memory_store: MemoryStore,
        resolver: FutureResolver,
        borrowing: Borrowing,
        tasks: TaskManager,
    ) -> None:
        self._env = env
        self._memory_store = memory_store
        self._resolver = resolver
        self._borrowing = borrowing
        self._tasks = tasks
        # Tasks to be failed with the error of an argument. Tasks that wait for these are appended, not failed
        # at once: a chain of them may be longer than the stack is deep.
        self._failing: deque[tuple[PendingTask, bytes, WhenFailed | None]] = deque()
        self._is_failing = False

    def resolve(
        self, task: PendingTask, when_ready: WhenReady, when_failed: WhenFailed | None = None
    ) -> None:
        """Calls when_ready(task) once every argument by reference is there, and small ones are in the
        message.

        As soon as one argument is an error, the task fails with it, and when_failed(task, error) is called.
        """
        unresolved = _references(task)
        for object_id in unresolved:
            self._resolver.ask_owner(object_id)
        if not unresolved:
            self._ready(task, when_ready)
            return
        store = self._memory_store
        num_missing = 1
        is_over = False

        def one_ready(object_id: bytes) -> None:
            nonlocal is_over, num_missing
            if is_over:
                return  # the task went on without this argument
            num_missing -= 1
            is_error = store.first_error((object_id,)) is not None
            is_over = is_error or num_missing == 0
            # A task that is not pending failed meanwhile: it was cancelled, or the node is gone.
            if not is_over or not self._tasks.is_pending(task):
                return
            if is_error and self._fail_by(task, object_id, when_failed):
                return
            self._inline(task)
            self._ready(task, when_ready)

        failed = store.first_error(unresolved)
        for object_id in unresolved if failed is None else ():
            if not store.when_ready(object_id, partial(one_ready, object_id)):
                num_missing += 1
        one_ready(failed or b"")

    def waits_for(self, task: PendingTask) -> bool:
        """Whether `resolve` would wait."""
        object_ids, store = _references(task), self._memory_store
        return any(map(store.is_pending, object_ids)) and store.first_error(object_ids) is None

    def _ready(self, task: PendingTask, when_ready: WhenReady) -> None:
        if task.waits_for_arguments:
            task.arguments_came()
        when_ready(task)

    def _fail_by(self, task: PendingTask, object_id: bytes, when_failed: WhenFailed | None) -> bool:
        """Has the task fail with the error that the object is. Returns whether that can be done here."""
        entry = known(self._memory_store.get(object_id), "the entry of an argument")
        error = handed_on(task.template, known(entry.data, "the error of an argument"), self._env)
        if error is None:
            return False
        self._memory_store.mark_seen(object_id)
        self._failing.append((task, error, when_failed))
        if not self._is_failing:
            self._is_failing = True
            try:
                self._fail_all()
            finally:
                self._is_failing = False
        return True

    def _fail_all(self) -> None:
        while self._failing:
            task, error, when_failed = self._failing.popleft()
            # A task that is not pending ended by what the end of another one led to.
            if self._tasks.is_pending(task):
                self._tasks.fail_serialized(task, serialization.ERROR, error)
                if when_failed is not None:
                    when_failed(task, error)

    def _inline(self, task: PendingTask) -> None:
        for arg in task.request.args:
            if arg.WhichOneof("arg") != "reference":
                continue
            object_id = arg.reference.object_id
            entry = self._memory_store.get(object_id)
            if entry is None:
                continue
            if entry.data is not None:
                if entry.metadata == serialization.ERROR:
                    # Its executor gets the error, and fails the task with it.
                    self._memory_store.mark_seen(object_id)
                nested = self._borrowing.references_inside(object_id)
                arg.value.CopyFrom(
                    common_pb2.SerializedObject(metadata=entry.metadata, data=entry.data, nested=nested)
                )
            elif entry.locations:
                # An earlier attempt may have left other locations here.
                del arg.location_node_ids[:]
                arg.location_node_ids.extend(entry.locations)
                arg.size_bytes = entry.size_bytes
                task.lies_in_stores()


def _references(task: PendingTask) -> list[bytes]:
    """The arguments that it is given by reference."""
    args = task.request.args if task.has_args else ()
    return [arg.reference.object_id for arg in args if arg.WhichOneof("arg") == "reference"]
