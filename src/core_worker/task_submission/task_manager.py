"""Tasks that were submitted here and have not finished: what keeps their arguments alive, and what their end
means.

Called under the core worker's lock. It owns the table of pending tasks and decides between completion, retry
and failure; it does not know how tasks reach workers (the submitters do). The life of one task is
pending_task.py's table.

    reply ──► finished: returns stored, arguments let go
    worker lost, or an error that retry_exceptions covers, and retries left ──► resubmitted with attempt + 1
    worker lost and none left; cannot be placed; cancelled; an argument is an error ──► failed: every return is the error
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_mono.common import raw_error
from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.common.our_bug import known
from ray_mono.core_worker.objects.generator_streams import GeneratorStreams
from ray_mono.core_worker.objects.unhandled_errors import UnhandledErrors
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.task_submission.pending_task import FIRST_RETURN, PendingTask
from ray_mono.core_worker.task_submission.retry_notices import RetryNotices
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2

DONE = core_worker_pb2.PushTaskReply.DONE
NOT_STARTED = core_worker_pb2.PushTaskReply.NOT_STARTED
CANCELLED = core_worker_pb2.PushTaskReply.CANCELLED
WRONG_WORKER = core_worker_pb2.PushTaskReply.WRONG_WORKER
NO_ROOM = core_worker_pb2.PushTaskReply.NO_ROOM


class TaskManager:
    """The table of pending tasks of one process."""

    def __init__(
        self,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        plasma: PlasmaStoreProvider,
        borrowing: Borrowing,
        streams: GeneratorStreams,
        unhandled: UnhandledErrors,
        retry_notices: RetryNotices,
    ) -> None:
        self._references = references
        self._memory_store = memory_store
        self._plasma = plasma
        self._borrowing = borrowing
        self._streams = streams
        self._unhandled = unhandled
        self._retry_notices = retry_notices
        self._pending: dict[bytes, PendingTask] = {}
        # Pending, and cancelled: their ends other than by a reply are TaskCancelledErrors.
        self._cancelled: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._pending)

    def add_pending(self, task: PendingTask) -> list[bytes]:
        """It is submitted: counts every reference that it holds, and each that it returns once. Returns the ids of those."""
        if task.arg_ids:
            self._references.add_submitted(task.arg_ids)
        self._pending[task.task_id] = task
        if task.template.num_returns == 1:
            object_id = task.task_id + FIRST_RETURN
            self._references.add_owned(object_id)
            self._memory_store.expect(object_id)
            return [object_id]
        made = task.return_ids
        for object_id in made:
            self._references.add_owned(object_id)
            self._memory_store.expect(object_id)
        return made

    def get(self, task_id: bytes) -> PendingTask | None:
        return self._pending.get(task_id)

    def is_pending(self, task: PendingTask) -> bool:
        return task.task_id in self._pending

    def values(self) -> list[PendingTask]:
        """Every pending task, in the order of submission; a copy."""
        return list(self._pending.values())

    def cancel(self, task: PendingTask) -> None:
        """Nobody wants it any more: it is not run again, and its end is told as that."""
        self._cancelled.add(task.task_id)
        task.give_up_retries()

    def is_cancelled(self, task: PendingTask) -> bool:
        return task.task_id in self._cancelled

    # ---- ends

    def complete(self, task: PendingTask, reply: Any, executor: common_pb2.Address) -> None:
        """The executor answered: values or errors of the function, which may be run again if the task's
        options say so."""
        if task.task_id not in self._pending:
            return  # it has failed here meanwhile: its node is gone
        if reply.is_application_error and task.retries_left != 0 and self._retries_error(task, reply):
            # What this attempt left behind in its worker is borrowed all the same.
            self.note_borrows(reply, executor)
            self._retry(task, reply.returns[0].value.data if reply.returns else b"")
            return
        if task.template.on_part is not None:
            end_id = task.task_id + FIRST_RETURN
            self._streams.complete(task.task_id, end_id, reply, self.is_cancelled(task))
        elif reply.has_inline:
            # The usual case, kept short.
            object_id = task.task_id + FIRST_RETURN
            if object_id in self._references:
                self._memory_store.put_inline(object_id, reply.inline_metadata, reply.inline_data)
        else:
            for returned in reply.returns:
                self._store_return(returned)
        if reply.borrowed:
            self.note_borrows(reply, executor)
        task.finished()
        self._finish(task)

    def note_borrows(self, reply: Any, executor: common_pb2.Address) -> None:
        for borrowed in reply.borrowed:
            self._borrowing.watch_borrower(borrowed.object_id, executor, b"")

    def _store_return(self, returned: Any) -> None:
        object_id = returned.object_id
        row = self._references.get(object_id)
        if row is None:
            # Nobody waits for it any more.
            if returned.in_plasma:
                self._plasma.free(object_id, [returned.node_id])
            elif returned.value.metadata == serialization.ERROR:
                self._unhandled.note(object_id, returned.value.data)
            return
        nested = returned.nested if returned.in_plasma else returned.value.nested
        if nested and not row.nested:
            self._references.set_nested(object_id, self._borrowing.adopt_returned(nested))
        if returned.in_plasma:
            self._memory_store.put_in_store(object_id, [returned.node_id], returned.size_bytes)
        else:
            self._memory_store.put_inline(object_id, returned.value.metadata, returned.value.data)

    def _retries_error(self, task: PendingTask, reply: Any) -> bool:
        if task.retry_exceptions is True:
            return True
        if not task.retry_exceptions:
            return False
        # A list of types: the error has to be read. Its type is the user's, so this is outside of what we can
        # vouch for.
        try:
            value = reply.returns[0].value
            error = serialization.deserialize(value.metadata, value.data)
        except BaseException:
            return False
        return raw_error.is_a(getattr(error, "cause", error), task.retry_exceptions)

    def lost(self, task: PendingTask, error: Callable[[], BaseException]) -> None:
        """The worker is gone before it answered: again, or `error()`."""
        if not self.is_pending(task):
            return
        if self.is_cancelled(task):
            self.fail_cancelled(task)
        elif task.retries_left != 0:
            self._retry(task, "its worker was lost")
        else:
            self.fail(task, error())

    def _retry(self, task: PendingTask, why: str | bytes) -> None:
        self.next_attempt(task, why)
        task.request.waits_for_room = False
        known(task.resubmit, "how a task is run again")(task)

    def next_attempt(self, task: PendingTask, why: str | bytes) -> None:
        """It failed and will be run again, which is told. why: a text, or a serialized error, which is read
        only where it is told."""
        task.again()
        self._retry_notices.tell(task, why)

    def fail(self, task: PendingTask, error: BaseException) -> None:
        """Every return becomes `error`."""
        if not self.is_pending(task):
            return
        serialized = serialization.serialize_error(error)
        self.fail_serialized(task, serialized.metadata, serialized.to_bytes())

    def fail_cancelled(self, task: PendingTask) -> None:
        """It was cancelled and did not run, or its worker was ended for it."""
        self.fail(task, TaskCancelledError(task.task_id.hex()))

    def fail_unless_cancelled(self, task: PendingTask, error: BaseException) -> None:
        """It did not run. Who cancelled it hears of that, whatever else was in its way."""
        if self.is_cancelled(task):
            self.fail_cancelled(task)
        else:
            self.fail(task, error)

    def fail_serialized(self, task: PendingTask, metadata: bytes, data: bytes) -> None:
        is_stream = task.template.on_part is not None
        for object_id in task.return_ids:
            if object_id in self._references:
                self._memory_store.put_inline(object_id, metadata, data)
            elif not is_stream:
                self._unhandled.note(object_id, data)
        if is_stream:
            self._streams.fail(task.task_id, metadata, data)
        task.failed()
        self._finish(task)

    def _finish(self, task: PendingTask) -> None:
        if self._cancelled:
            self._cancelled.discard(task.task_id)
        if self._pending.pop(task.task_id, None) is not None and task.arg_ids:
            self._references.remove_submitted(task.arg_ids)

    def hand_over(self, task: PendingTask) -> None:
        """An actor's creation is the GCS's from now on. What it holds stays counted."""
        task.pushed()
        task.finished()
        self._pending.pop(task.task_id, None)
