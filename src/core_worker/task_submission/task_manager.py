"""Tasks that were submitted here and have not finished: what keeps their arguments alive, and what their ends
mean. The life of each is in pending_task.py.

Called under the core worker's lock. The TaskManager decides between completion, retry and failure. The usual
end of a task is PendingTasks'. It does not know how tasks reach workers; the submitters do.

    a reply                      finished: the returns are stored, and the arguments let go, unless the task
                                 may have to run again (objects/lineage.py)
    a reply with an error that   again with attempt + 1, while retries are left
    retry_exceptions covers;
    its worker was lost
    any other end                failed: every return is the error
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray_mono.common import raw_error
from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.common.our_bug import known
from ray_mono.common.wait_messages import clause
from ray_mono.core_worker.objects.generator_streams import GeneratorStreams
from ray_mono.core_worker.objects.lineage import Failure, Lineage, Reason, WhyNot
from ray_mono.core_worker.objects.object_recovery import ObjectRecovery
from ray_mono.core_worker.objects.unhandled_errors import UnhandledErrors
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.task_submission.pending_task import PendingTask, PendingTasks
from ray_mono.core_worker.task_submission.retry_notices import RetryNotices
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2

Reply = core_worker_pb2.PushTaskReply
DONE = Reply.DONE
NOT_STARTED = Reply.NOT_STARTED
CANCELLED = Reply.CANCELLED
WRONG_WORKER = Reply.WRONG_WORKER
NO_ROOM = Reply.NO_ROOM


class TaskManager(PendingTasks):
    """Of one process."""

    def __init__(
        self,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        plasma: PlasmaStoreProvider,
        borrowing: Borrowing,
        streams: GeneratorStreams,
        lineage: Lineage[PendingTask],
        recovery: ObjectRecovery,
        unhandled: UnhandledErrors,
        retry_notices: RetryNotices,
    ) -> None:
        super().__init__(references, memory_store)
        self._plasma = plasma
        self._borrowing = borrowing
        self._streams = streams
        self.stream_of, self.items_awaited_by = streams.get, streams.awaited_by
        self._lineage = lineage
        self._recovery = recovery
        self._unhandled = unhandled
        self._retry_notices = retry_notices

    def cancel(self, task: PendingTask) -> None:
        """Nobody wants it any more: it is not run again, and its end is told as that."""
        self._cancelled.add(task.task_id)
        task.give_up_retries()

    def is_cancelled(self, task: PendingTask) -> bool:
        return task.task_id in self._cancelled

    # ---- again, after their end (reconstruction.py)

    def make_again(self, task: PendingTask, arg_ids: Sequence[bytes]) -> None:
        """A finished task is pending again. It holds these, which are counted."""
        task.make_again(arg_ids)
        self._pending[task.first_return_id] = task

    def await_object(self, task_id: bytes, object_id: bytes) -> None:
        """The pending task is to make this lost object again."""
        task = known(self.get(task_id), "the task of an awaited object")
        attempt = task.attempt
        if task.template.on_part is not None and task.is_pushed:
            # A generator that runs has passed it.
            attempt += 1
            if task.retries_left != 0:
                self._streams.rush(task_id)
        self._awaited.setdefault(task_id, {})[object_id] = attempt

    def needs_another_attempt(self, task: PendingTask) -> bool:
        """It was answered, and lost objects wait for its next attempt, or it threw away what came after
        them."""
        if self._streams.is_rushed(task.task_id):
            return True
        awaited = self._awaited.get(task.task_id, {})
        later = [each for each, attempt in awaited.items() if attempt > task.attempt]
        return any(map(self._memory_store.is_pending, later))

    def _settle_awaited(self, task: PendingTask, error: tuple[bytes, bytes] | None) -> WhyNot | None:
        """The task has ended. Lost objects that it did not make are `error`, as (metadata, data); None: there
        was none. Then it returns why another run would not make them; None where all are made."""
        why_not = None
        for object_id in self._awaited.pop(task.task_id, ()):
            if self._memory_store.is_pending(object_id):
                if error is not None:
                    self._memory_store.put_inline(object_id, *error)
                else:
                    is_item = task.template.on_part is not None
                    why_not = WhyNot.FEWER_ITEMS if is_item else WhyNot.NOT_MADE_AGAIN
                    self._recovery.fail(object_id, why_not)
            entry = self._memory_store.get(object_id)
            if entry is None or entry.locations is None:
                self._recovery.value_ended(object_id)
        return why_not

    # ---- ends

    def complete(self, task: PendingTask, reply: Any, executor: common_pb2.Address) -> None:
        """The executor answered: values or errors of the function, which may be run again if the task's
        options say so."""
        if not self.is_pending(task):
            self.answered_late(task, reply)
            return
        if reply.is_application_error and task.retries_left != 0 and self._retries_error(task, reply):
            # What this attempt left behind in its worker is borrowed all the same.
            self.note_borrows(reply, executor)
            self._retry(task, reply.returns[0].value.data if reply.returns else b"")
            return
        if self._awaited and task.retries_left != 0 and self.needs_another_attempt(task):
            self.note_borrows(reply, executor)
            self._retry(task, "an item was lost while it ran")
            return
        if task.template.on_part is not None:
            self._streams.complete(task.task_id, task.first_return_id, reply, self.is_cancelled(task))
        elif reply.HasField("plain"):
            object_id = task.first_return_id
            if self._references.is_referenced(object_id):
                self._memory_store.put_plain(object_id, reply.plain)
        else:
            for returned in reply.returns:
                self._store_return(returned)
        if reply.borrowed:
            self.note_borrows(reply, executor)
        error = reply.returns[0].value if reply.is_application_error and reply.returns else None
        why_not = self._settle_awaited(task, None if error is None else (error.metadata, error.data))
        task.finished()
        self._pending.pop(task.first_return_id, None)
        if why_not is not None:
            self._lineage.failed(task.task_id, why_not)
            self._let_go(task)
        elif self._lineage.finished(task, self.is_cancelled(task)):
            self._cancelled.discard(task.task_id)
        else:
            self._let_go(task)

    def answered_late(self, task: PendingTask, reply: Any) -> None:
        """The executor answered, after it was said to be gone. If the task has failed, nobody will ask for
        what is in a store. If it is to run again, or has since, that stays: the next attempt may find it
        there."""
        if self.is_pending(task):
            return
        for returned in reply.returns:
            if not returned.in_plasma:
                continue
            entry = self._memory_store.get(returned.object_id)
            if entry is None or returned.node_id not in (entry.locations or ()):
                self._plasma.free(returned.object_id, [returned.node_id])

    def note_borrows(self, reply: Any, executor: common_pb2.Address) -> None:
        for borrowed in reply.borrowed:
            self._borrowing.watch_borrower(borrowed.object_id, executor, b"")

    def _store_return(self, returned: Any) -> None:
        object_id = returned.object_id
        if object_id not in self._references:
            # Nobody waits for it any more.
            if returned.in_plasma:
                self._plasma.free(object_id, [returned.node_id])
            elif returned.value.metadata == serialization.ERROR:
                self._unhandled.note(object_id, returned.value.data)
            return
        is_known = self._memory_store.get(object_id) is not None
        if is_known and not (
            returned.in_plasma and self._memory_store.add_location(object_id, returned.node_id)
        ):
            # The task runs again, for another return. What is known stays.
            if returned.in_plasma:
                self._plasma.free(object_id, [returned.node_id])
            return
        nested = returned.nested if returned.in_plasma else returned.value.nested
        if nested:
            self._references.add_nested(object_id, self._borrowing.adopt_returned(nested))
        if is_known:
            return
        if returned.in_plasma:
            self._lineage.stored(object_id)
            self._memory_store.put_in_store(object_id, [returned.node_id], returned.size_bytes)
        else:
            self._memory_store.put_value(object_id, returned.value)

    def _retries_error(self, task: PendingTask, reply: Any) -> bool:
        if task.retry_exceptions is True:
            return True
        if not task.retry_exceptions:
            return False
        # A list of types: so the error has to be read. That runs the user's code, which may raise anything.
        try:
            value = reply.returns[0].value
            error = serialization.deserialize(value.metadata, value.data)
        except BaseException:
            return False
        return raw_error.is_a(getattr(error, "cause", error), task.retry_exceptions)

    def may_run_again(self, task: PendingTask) -> bool:
        """Whether it has retries at all: where what was lost is nobody's fault, that costs none."""
        return bool(task.template.spec.max_retries) and not self.is_cancelled(task)

    def lost(self, task: PendingTask, error: Callable[[], BaseException], is_preempted: bool = False) -> None:
        """The worker went before it answered. The task runs again, or fails with `error()`. is_preempted:
        its node was drained, since its provider takes it away."""
        if self.is_pending(task) and is_preempted and self.may_run_again(task):
            self._retry(task, "its node was taken away", is_free=True)
        elif self.is_pending(task) and task.retries_left != 0:
            # Of a worker's death the driver is told anyway, with all that is known.
            self._retry(task, clause(str(error())), notice="its worker was lost")
        else:
            self.fail_unless_cancelled(task, error())

    def _retry(self, task: PendingTask, why: str | bytes, is_free: bool = False, notice: str = "") -> None:
        self.next_attempt(task, why, is_free, notice)
        self.run_again(task)

    def run_again(self, task: PendingTask) -> None:
        """Its next attempt is due, unless it was cancelled or has failed while it waited for that."""
        if self.is_pending(task):
            task.request.waits_for_room = False
            known(task.resubmit, "how a task is run again")(task)

    def next_attempt(
        self, task: PendingTask, why: str | bytes, is_free: bool = False, notice: str = ""
    ) -> None:
        """It failed and will be run again, and the driver may be told. why: a text, or a serialized error,
        which is read only then. notice: what the driver is told instead."""
        self.begins_again(task, why, is_free)
        self._retry_notices.tell(task.template, task.retries_left, notice or why)

    def begins_again(self, task: PendingTask, why: str | bytes, is_free: bool) -> None:
        """As next_attempt, where the driver is told otherwise."""
        task.again(why, is_free)
        if task.template.on_part is not None:
            self._streams.begins_again(task.task_id)

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
                if self._memory_store.is_known(object_id):
                    continue  # the task ran again, for another return
                self._memory_store.put_inline(object_id, metadata, data)
            elif not (is_stream or task.template.spec.actor_creation.is_detached):
                # Nothing stands for a detached actor here. Its calls tell.
                self._unhandled.note(object_id, data)
        if is_stream:
            self._streams.fail(task.task_id, metadata, data)
        self._settle_awaited(task, (metadata, data))
        task.failed()
        if self._pending.pop(task.first_return_id, None) is not None:
            self._lineage.failed(task.task_id, self._why_not_again(task, Failure(metadata, data)))
            self._let_go(task)

    def _why_not_again(self, task: PendingTask, failure: Failure) -> Reason:
        if self.is_cancelled(task):
            return WhyNot.CANCELLED
        return failure if task.retries_left else WhyNot.MAX_ATTEMPTS

    def hand_over(self, task: PendingTask) -> None:
        """An actor's creation is the GCS's from now on. What it holds stays counted."""
        task.pushed()
        task.finished()
        self._pending.pop(task.first_return_id, None)
