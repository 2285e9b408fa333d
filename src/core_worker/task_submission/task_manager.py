"""Tasks that were submitted here and have not finished: their specification, what keeps their arguments alive, and what their end means.

Called under the core worker's lock. It owns the table of pending tasks and decides between completion, retry and
failure; it does not know how tasks reach workers (the submitters do).

    PENDING ──reply──► finished (returns stored, arguments let go)
       │ └──worker lost, retries left; error covered by retry_exceptions──► resubmitted with attempt + 1
       └──worker lost, none left; cannot be placed; cancelled──► failed: every return is the error
       └──an argument is an error──► failed with it here, no worker is needed for that (task_failure.handed_on)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ray_mono.common import raw_error
from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.task_errors import handed_on
from ray_mono.core_worker.task_submission.retry_notices import RetryNotices
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2

if TYPE_CHECKING:
    from ray_mono.core_worker.call_template import CallTemplate
    from ray_mono.core_worker.core_worker import CoreWorker


INDEX_BYTES = 4
"""Of an object's id: which of its task's returns it is. The rest is the task's id."""
_FIRST = (1).to_bytes(INDEX_BYTES, "little")


def return_ids(task_id: bytes, num_returns: int) -> list[bytes]:
    """Object ids of what a task returns."""
    if num_returns == 1:
        return [task_id + _FIRST]
    return [task_id + index.to_bytes(4, "little") for index in range(1, num_returns + 1)]


class PendingTask:
    """One submitted task: its template, and what is its own. The wire message is made when somebody wants it, in most cases to push it: a
    queue of a million tasks has none."""

    __slots__ = (
        "_request",
        "arg_ids",
        "args",
        "depth",
        "flat_args",
        "has_args",
        "num_unresolved",
        "place",
        "resubmit",
        "retries_left",
        "retry_exceptions",
        "submission",
        "task_id",
        "template",
    )

    def __init__(
        self,
        task_id: bytes,
        template: CallTemplate,
        flat_args: bytes,
        args: Sequence[common_pb2.TaskArg],
        depth: int,
        arg_ids: Sequence[bytes],
    ) -> None:
        self.task_id = task_id
        self.template = template
        self.flat_args = flat_args
        # Until they are in the message.
        self.args = args
        self.has_args = bool(args)
        self.depth = depth
        self._request: Any = None
        # Every reference that the submission holds: arguments and what is inside them.
        self.arg_ids = arg_ids
        self.num_unresolved = 0
        # Normal tasks: the order of submission in its queue, and of pushes on its lease; 0 where it has none.
        self.submission = self.place = 0
        self.retries_left = 0
        self.retry_exceptions: bool | tuple[type[BaseException], ...] = False
        self.resubmit: Callable[[PendingTask], None] | None = None

    @property
    def request(self) -> Any:
        """PushTaskRequest, the same one for the rest of the task's life."""
        if self._request is None:
            self._request = core_worker_pb2.PushTaskRequest(
                template_id=self.template.number,
                task_id=self.task_id,
                flat_args=self.flat_args,
                depth=self.depth,
                args=self.args,
            )
            self.args = ()
        return self._request

    @property
    def return_ids(self) -> list[bytes]:
        """Made anew each time: a queue of a million tasks should not hold them."""
        return return_ids(self.task_id, self.template.num_returns)

    @property
    def name(self) -> str:
        return self.template.name


WhenFailed = Callable[[PendingTask, bytes], None]
"""Takes a task that has failed with the error of an argument, and that error, serialized."""


class TaskManager:
    """The table of pending tasks of one process."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        self._retry_notices = RetryNotices(core)
        self.pending: dict[bytes, PendingTask] = {}
        # Pending, and cancelled: their ends other than by a reply are TaskCancelledErrors.
        self.cancelled: set[bytes] = set()
        # Fail next, with the error of an argument. Tasks that wait for them come in behind: a chain may be longer than a stack is deep.
        self._failing: deque[tuple[PendingTask, bytes, WhenFailed | None]] = deque()
        self._is_failing = False

    def add(self, task: PendingTask) -> None:
        self.pending[task.task_id] = task

    def stories_of(self, object_ids: Sequence[bytes], most: int) -> list[str]:
        """For people: the calls whose values these are, as far as they were made here, each name once; "…" for those beyond `most`."""
        names: dict[str, None] = {}
        for object_id in object_ids:
            task = self.pending.get(object_id[:-INDEX_BYTES])
            if task is None:
                continue
            if len(names) == most:
                return [*names, "…"]
            names[self._story_of(task)] = None
        return list(names)

    def _story_of(self, task: PendingTask) -> str:
        spec = task.template.spec
        told = f"{task.name}()"
        if spec.type == common_pb2.ACTOR_TASK:
            actor = self._core.actor_submitter.actor(spec.actor_task.actor_id)
            told += f" of actor {actor.actor_id.hex()[:8]}"
            why = actor.pending_reason or (actor.peer.channel.trouble if actor.peer is not None else "")
        elif task.place:
            why = self._core.task_submitter.trouble_with(task)
        else:
            resources = ResourceSet.from_proto(spec.resources)
            why = f"it waits for a worker, and needs {resources}" if resources else "it waits for a worker"
        if task.num_unresolved:
            why = "its arguments are not there"
        return f"{told} ({why})" if why else told

    def complete(self, task: PendingTask, reply: Any, executor: common_pb2.Address) -> None:
        """The executor answered: values or errors of the function, which may be run again if the task's options say so."""
        if reply.is_application_error and task.retries_left != 0 and self._retries_error(task, reply):
            # What this attempt left behind in its worker is borrowed all the same.
            self.note_borrows(reply, executor)
            self._retry(task, reply.returns[0].value.data if reply.returns else b"")
            return
        core = self._core
        if task.template.on_part is not None:
            core.streams.complete(task, reply)
        elif reply.has_inline:
            # The usual case, kept short.
            object_id = task.task_id + _FIRST
            if object_id in core.references:
                core.memory_store.put_inline(object_id, reply.inline_metadata, reply.inline_data)
        else:
            for returned in reply.returns:
                self._store_return(returned, core)
        if reply.borrowed:
            self.note_borrows(reply, executor)
        self._finish(task)

    def note_borrows(self, reply: Any, executor: common_pb2.Address) -> None:
        for borrowed in reply.borrowed:
            self._core.ownership.watch_borrower(borrowed.object_id, executor, b"")

    def _store_return(self, returned: Any, core: CoreWorker) -> None:
        object_id = returned.object_id
        row = core.references.get(object_id)
        if row is None:
            # Nobody waits for it any more.
            if returned.in_plasma:
                core.free_in_stores(object_id, [returned.node_id])
            elif returned.value.metadata == serialization.ERROR:
                core.unhandled.note(object_id, returned.value.data)
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
        except BaseException:
            return False
        return raw_error.is_a(getattr(error, "cause", error), task.retry_exceptions)

    def lost(self, task: PendingTask, error: Callable[[], BaseException]) -> None:
        """The worker is gone before it answered: again, or `error()`."""
        if task.task_id in self.cancelled:
            self.fail_cancelled(task)
        elif task.retries_left != 0:
            self._retry(task, "its worker was lost")
        else:
            self.fail(task, error())

    def _retry(self, task: PendingTask, why: str | bytes) -> None:
        self.next_attempt(task, why)
        task.place = 0
        task.request.waits_for_room = False
        assert task.resubmit is not None
        task.resubmit(task)

    def next_attempt(self, task: PendingTask, why: str | bytes) -> None:
        """It failed and will be run again, which is told. why: a text, or a serialized error, which is read only where it is told."""
        if task.retries_left > 0:
            task.retries_left -= 1
        task.request.attempt += 1
        self._retry_notices.tell(task, why)

    def fail(self, task: PendingTask, error: BaseException) -> None:
        """Every return becomes `error`."""
        if task.task_id not in self.pending:
            return
        serialized = serialization.serialize_error(error)
        self.fail_serialized(task, serialized.metadata, serialized.to_bytes())

    def fail_cancelled(self, task: PendingTask) -> None:
        """It was cancelled and did not run, or its worker was ended for it."""
        self.fail(task, TaskCancelledError(task.task_id.hex()))

    def fail_serialized(self, task: PendingTask, metadata: bytes, data: bytes) -> None:
        for object_id in task.return_ids:
            if object_id in self._core.references:
                self._core.memory_store.put_inline(object_id, metadata, data)
            elif task.template.on_part is None:
                self._core.unhandled.note(object_id, data)
        if task.template.on_part is not None:
            self._core.streams.fail(task, metadata, data)
        self._finish(task)

    def _finish(self, task: PendingTask) -> None:
        if self.cancelled:
            self.cancelled.discard(task.task_id)
        if self.pending.pop(task.task_id, None) is not None and task.arg_ids:
            self._core.references.remove_submitted(task.arg_ids)

    # ---- arguments

    def resolve(
        self,
        task: PendingTask,
        when_ready: Callable[[PendingTask], None],
        when_failed: WhenFailed | None = None,
    ) -> None:
        """Calls when_ready(task) once every argument by reference is there, with small ones put into the specification.

        As soon as one of them is an error the task fails with it, and when_failed(task, error) is called; where only its executor can read
        that error, the task goes on to it instead.
        """
        unresolved = []
        for arg in task.request.args if task.has_args else ():
            if arg.WhichOneof("arg") == "reference":
                object_id = arg.reference.object_id
                self._core.ownership.ask_owner(object_id)
                unresolved.append(object_id)
        if not unresolved:
            when_ready(task)
            return
        task.num_unresolved = 1

        store = self._core.memory_store
        is_over = False

        def one_ready(object_id: bytes) -> None:
            nonlocal is_over
            if is_over:
                return  # it went on without this one
            task.num_unresolved -= 1
            is_error = store.first_error((object_id,)) is not None
            is_over = is_error or task.num_unresolved == 0
            # Else it failed meanwhile: cancelled, or the node is gone.
            if not is_over or task.task_id not in self.pending:
                return
            if is_error and self._fail_by(task, object_id, when_failed):
                return
            task.num_unresolved = 0
            self._inline(task)
            when_ready(task)

        failed = store.first_error(unresolved)
        for object_id in unresolved if failed is None else ():
            if not store.when_ready(object_id, partial(one_ready, object_id)):
                task.num_unresolved += 1
        one_ready(failed or b"")

    def _fail_by(self, task: PendingTask, object_id: bytes, when_failed: WhenFailed | None) -> bool:
        """Whether the task fails here with the error that the object is."""
        entry = self._core.memory_store.get(object_id)
        assert entry is not None and entry.data is not None
        error = handed_on(task.template, entry.data, self._core)
        if error is None:
            return False
        entry.is_seen = True
        task.num_unresolved = -1  # until it has failed
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
            # Else another's end was its end.
            if task.task_id in self.pending:
                self.fail_serialized(task, serialization.ERROR, error)
                if when_failed is not None:
                    when_failed(task, error)

    def _inline(self, task: PendingTask) -> None:
        for arg in task.request.args:
            if arg.WhichOneof("arg") != "reference":
                continue
            entry = self._core.memory_store.get(arg.reference.object_id)
            if entry is None or not entry.ready:
                continue
            if entry.data is not None:
                if entry.metadata == serialization.ERROR:
                    # The task is told, and fails with it.
                    entry.is_seen = True
                nested = self._core.ownership.references_inside(arg.reference.object_id)
                arg.value.CopyFrom(
                    common_pb2.SerializedObject(metadata=entry.metadata, data=entry.data, nested=nested)
                )
            elif entry.locations:
                arg.location_node_ids.extend(entry.locations)
                arg.size_bytes = entry.size_bytes


DONE = core_worker_pb2.PushTaskReply.DONE
NOT_STARTED = core_worker_pb2.PushTaskReply.NOT_STARTED
CANCELLED = core_worker_pb2.PushTaskReply.CANCELLED
WRONG_WORKER = core_worker_pb2.PushTaskReply.WRONG_WORKER
NO_ROOM = core_worker_pb2.PushTaskReply.NO_ROOM
