"""Tasks that were submitted here and have not finished: their specification, what keeps their arguments alive, and what their end means.

Called under the core worker's lock. It owns the table of pending tasks and decides between completion, retry and
failure; it does not know how tasks reach workers (the submitters do).

    PENDING ──reply──► finished (returns stored, arguments let go)
       │ └──worker lost, retries left; error covered by retry_exceptions──► resubmitted with attempt + 1
       └──worker lost, none left; cannot be placed──► failed: every return is the error
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_mono.core_worker import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2

if TYPE_CHECKING:
    from ray_mono.core_worker.call_template import CallTemplate
    from ray_mono.core_worker.core_worker import CoreWorker


class PendingTask:
    """One submitted task: its template, and the wire message with what is its own."""

    __slots__ = (
        "arg_ids",
        "num_unresolved",
        "request",
        "resubmit",
        "retries_left",
        "retry_exceptions",
        "return_ids",
        "task_id",
        "template",
    )

    def __init__(
        self, task_id: bytes, template: CallTemplate, request: Any, return_ids: list[bytes], arg_ids: list[bytes]
    ) -> None:
        self.task_id = task_id
        self.template = template
        self.request = request
        self.return_ids = return_ids
        # Every reference that the submission holds: arguments and what is inside them.
        self.arg_ids = arg_ids
        self.num_unresolved = 0
        self.retries_left = 0
        self.retry_exceptions: bool | tuple[type[BaseException], ...] = False
        self.resubmit: Callable[[PendingTask], None] | None = None

    @property
    def name(self) -> str:
        return self.template.name


class TaskManager:
    """The table of pending tasks of one process."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        self.pending: dict[bytes, PendingTask] = {}

    def add(self, task: PendingTask) -> None:
        self.pending[task.task_id] = task

    def complete(self, task: PendingTask, reply: Any, executor: common_pb2.Address) -> None:
        """The executor answered: values or errors of the function, which may be run again if the task's options say so."""
        if reply.is_application_error and task.retries_left != 0 and self._retries_error(task, reply):
            # What this attempt left behind in its worker is borrowed all the same.
            self._note_borrows(reply, executor)
            self._retry(task)
            return
        core = self._core
        if reply.has_inline:
            # The usual case, kept short.
            object_id = task.return_ids[0]
            if object_id in core.references:
                core.memory_store.put_inline(object_id, reply.inline_metadata, reply.inline_data)
        for returned in reply.returns:
            self._store_return(returned, core)
        if reply.borrowed:
            self._note_borrows(reply, executor)
        self._finish(task)

    def _note_borrows(self, reply: Any, executor: common_pb2.Address) -> None:
        for borrowed in reply.borrowed:
            self._core.ownership.watch_borrower(borrowed.object_id, executor, b"")

    def _store_return(self, returned: Any, core: CoreWorker) -> None:
        object_id = returned.object_id
        row = core.references.get(object_id)
        if row is None:
            # Nobody waits for it any more.
            if returned.in_plasma:
                core.free_in_stores(object_id, [returned.node_id])
            return
        nested = returned.nested if returned.in_plasma else returned.value.nested
        if nested and not row.nested:
            core.references.set_nested(object_id, core.ownership.adopt_returned(nested))
        if returned.in_plasma:
            core.memory_store.put_in_store(object_id, [returned.node_id], returned.size_bytes)
        else:
            core.memory_store.put_inline(object_id, returned.value.metadata, returned.value.data)

    def _retries_error(self, task: PendingTask, reply: Any) -> bool:
        if task.retry_exceptions is True:
            return True
        if not task.retry_exceptions:
            return False
        # A list of types: the error has to be read. Its type is the user's, so this is outside of what we can vouch for.
        try:
            value = reply.returns[0].value
            error = serialization.deserialize(value.metadata, value.data)
        except Exception:
            return False
        return isinstance(getattr(error, "cause", error), task.retry_exceptions)

    def lost(self, task: PendingTask, error: Callable[[], BaseException]) -> None:
        """The worker is gone before it answered: again, or `error()`."""
        if task.retries_left != 0:
            self._retry(task)
        else:
            self.fail(task, error())

    def _retry(self, task: PendingTask) -> None:
        if task.retries_left > 0:
            task.retries_left -= 1
        task.request.attempt += 1
        assert task.resubmit is not None
        task.resubmit(task)

    def fail(self, task: PendingTask, error: BaseException) -> None:
        """Every return becomes `error`."""
        if task.task_id not in self.pending:
            return
        serialized = serialization.serialize_error(error)
        self.fail_serialized(task, serialized.metadata, serialized.to_bytes())

    def fail_serialized(self, task: PendingTask, metadata: bytes, data: bytes) -> None:
        for object_id in task.return_ids:
            if object_id in self._core.references:
                self._core.memory_store.put_inline(object_id, metadata, data)
        self._finish(task)

    def _finish(self, task: PendingTask) -> None:
        if self.pending.pop(task.task_id, None) is not None and task.arg_ids:
            self._core.references.remove_submitted(task.arg_ids)

    # ---- arguments

    def resolve(self, task: PendingTask, when_ready: Callable[[PendingTask], None]) -> None:
        """Calls when_ready(task) once every argument by reference is there, with small ones put into the specification."""
        unresolved = []
        for arg in task.request.args:
            if arg.WhichOneof("arg") == "reference":
                object_id = arg.reference.object_id
                self._core.ownership.ask_owner(object_id)
                unresolved.append(object_id)
        if not unresolved:
            when_ready(task)
            return
        task.num_unresolved = 1

        def one_ready() -> None:
            task.num_unresolved -= 1
            if task.num_unresolved == 0:
                self._inline(task)
                when_ready(task)

        for object_id in unresolved:
            if not self._core.memory_store.when_ready(object_id, one_ready):
                task.num_unresolved += 1
        one_ready()

    def _inline(self, task: PendingTask) -> None:
        for arg in task.request.args:
            if arg.WhichOneof("arg") != "reference":
                continue
            entry = self._core.memory_store.get(arg.reference.object_id)
            if entry is None or not entry.ready:
                continue
            if entry.data is not None:
                nested = self._core.ownership.references_inside(arg.reference.object_id)
                arg.value.CopyFrom(common_pb2.SerializedObject(metadata=entry.metadata, data=entry.data, nested=nested))
            elif entry.locations:
                arg.location_node_ids.extend(entry.locations)


DONE = core_worker_pb2.PushTaskReply.DONE
NOT_STARTED = core_worker_pb2.PushTaskReply.NOT_STARTED
CANCELLED = core_worker_pb2.PushTaskReply.CANCELLED
WRONG_WORKER = core_worker_pb2.PushTaskReply.WRONG_WORKER
