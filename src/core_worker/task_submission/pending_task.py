"""A task that was submitted here: what it is, and where in its life.

    PENDING_ARGS_AVAIL ──args──► PENDING_NODE_ASSIGNMENT ──push──► SUBMITTED_TO_WORKER ──reply──► FINISHED
            ▲                             │          ▲                      │
            └─an actor's call, sent again─┘          ├─did not start there──┤
                                                     └─again, retries left──┘
    any of the first three ──► FAILED: an argument is an error; it is cancelled, cannot be placed, or is lost
                               without retries
    FINISHED ──what it returned is lost──► PENDING_ARGS_AVAIL: it runs again, which costs a retry

The states have Ray's names. A call of an actor "waits for a node" until it is its turn to be sent. A task
moves itself, when it is told what happened.

Once it has finished or failed, its process forgets it, unless it may have to run again (objects/lineage.py).
"""

from __future__ import annotations

import enum
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from typing import Any

from ray_mono.common import ids
from ray_mono.common.our_bug import InternalError
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.task_wire import FLAT_ARGS, SHORT_MAX
from ray_mono.protobuf import common_pb2, core_worker_pb2

FIRST_RETURN = ids.object_id_bytes(b"", 1)
"""A task's id, followed by this, is the id of its first return."""


@dataclass(frozen=True, slots=True)
class Together:
    """Shared by those tasks of one `map` that may travel in one frame, because their items are small."""

    most: int
    """How many travel in one; 0: the submitter chooses."""


RetryExceptions = bool | tuple[type[BaseException], ...]


class TaskState(enum.Enum):
    PENDING_ARGS_AVAIL = "waits for its arguments"
    PENDING_NODE_ASSIGNMENT = "waits for a worker"
    SUBMITTED_TO_WORKER = "is with a worker"
    FINISHED = "was answered"
    FAILED = "has failed"

    # Enum's own is Python code, which every step of every life would pay.
    __hash__ = object.__hash__


WAITS_FOR_ARGUMENTS = TaskState.PENDING_ARGS_AVAIL
WAITS_FOR_WORKER = TaskState.PENDING_NODE_ASSIGNMENT
PUSHED = TaskState.SUBMITTED_TO_WORKER
FINISHED = TaskState.FINISHED
FAILED = TaskState.FAILED

MOVES = frozenset(
    {
        (WAITS_FOR_ARGUMENTS, WAITS_FOR_WORKER),
        (WAITS_FOR_ARGUMENTS, FAILED),
        (WAITS_FOR_WORKER, PUSHED),
        (WAITS_FOR_WORKER, FAILED),
        (WAITS_FOR_WORKER, WAITS_FOR_ARGUMENTS),
        (PUSHED, WAITS_FOR_WORKER),
        (PUSHED, FINISHED),
        (PUSHED, FAILED),
        (FINISHED, WAITS_FOR_ARGUMENTS),
    }
)


_TASK_BYTES = 500
"""What a task takes besides its message."""
_NOBODY = common_pb2.Address()
CAME_BACK = -1
"""Instead of a place on a lease."""


def return_ids(task_id: bytes, num_returns: int) -> list[bytes]:
    """Object ids of what a task returns."""
    if num_returns == 1:
        return [task_id + FIRST_RETURN]
    return [ids.object_id_bytes(task_id, index) for index in range(1, num_returns + 1)]


class PendingTask:
    """Its template, and what is its own. The wire message is made when somebody wants it, in most cases to
    push it: a queue of a million tasks has none."""

    __slots__ = (
        "_last_failure",
        "_request",
        "arg_ids",
        "args",
        "depth",
        "first_return_id",
        "flat_args",
        "has_args",
        "has_places",
        "item",
        "number",
        "oom_kills",
        "place",
        "resubmit",
        "retries_left",
        "retry_exceptions",
        "state",
        "task_id",
        "template",
        "together",
    )

    def __init__(
        self,
        task_id: bytes,
        template: CallTemplate,
        flat_args: bytes = b"",
        args: Sequence[common_pb2.TaskArg] = (),
        depth: int = 0,
        arg_ids: Sequence[bytes] = (),
        retries_left: int = 0,
        retry_exceptions: RetryExceptions = False,
        resubmit: Callable[[PendingTask], None] | None = None,
        number: int = 0,
        together: Together | None = None,
        item: Any = None,
    ) -> None:
        """arg_ids: every reference that the submission holds: arguments, and what is inside them. resubmit:
        has it run again. It is None for an actor's creation, which nobody runs again from here.
        together, item: of a `map`, see below."""
        self.task_id = task_id
        # The table of pending tasks, the counter of references and the memory store all know it by this.
        self.first_return_id = task_id + FIRST_RETURN
        self.template = template
        self.flat_args = flat_args
        # They are kept here until the message has them.
        self.args = args
        self.has_args = bool(args)
        # Some of its arguments lie in stores: known when they are there.
        self.has_places = False
        self.depth = depth
        self.arg_ids = arg_ids
        self.retries_left = retries_left
        self.retry_exceptions = retry_exceptions
        self.resubmit = resubmit
        # Normal tasks: the order of pushes on its lease; 0 where it has none, CAME_BACK where it has none any
        # more.
        self.place = 0
        # The order of submission, among all tasks of its process.
        self.number = number
        # How many of its workers were killed because their node ran short of memory.
        self.oom_kills = 0
        # Of a `map`, while it may travel with others of it; and its item, which becomes flat_args if it
        # travels alone.
        self.together = together
        self.item = item
        self._request: Any = None
        self.state = WAITS_FOR_ARGUMENTS if args else WAITS_FOR_WORKER

    @property
    def last_failure(self) -> str | bytes:
        """Why its last attempt came to nothing: a text, or a serialized error. Few have one, so that nobody
        sets none."""
        return getattr(self, "_last_failure", "")

    @property
    def request(self) -> Any:
        """PushTaskRequest, the same one for the rest of the task's life."""
        if self._request is None:
            if self.together:
                self._travels_alone()
            self._request = core_worker_pb2.PushTaskRequest(
                template_id=self.template.number,
                task_id=self.task_id,
                flat_args=self.flat_args,
                depth=self.depth,
                args=self.args,
            )
            self.args = ()
        return self._request

    def usual_push(self) -> bytes | None:
        """`request` as bytes, without the message, where it is like most (task_wire.py)."""
        if self.together:
            self._travels_alone()
        template, flat = self.template, self.flat_args
        size = len(flat)
        if self._request is not None or self.has_args or size > SHORT_MAX or template.on_part is not None:
            return None
        head = template.heads.get(self.depth) or template.head(self.depth)
        return head + self.task_id + FLAT_ARGS[size] + flat if flat else head + self.task_id

    def _travels_alone(self) -> None:
        self.flat_args = pickle.dumps([None, self.item], 5)
        self.together = self.item = None

    def with_items(self, task_ids: Sequence[bytes], items: Sequence[Any]) -> list[PendingTask]:
        """Tasks of the same `map`: this one, with each of these ids and items. Without a call for each, as of
        __init__, which takes three times as long."""
        template, depth, arg_ids = self.template, self.depth, self.arg_ids
        together, resubmit = self.together, self.resubmit
        retries_left, retry_exceptions = self.retries_left, self.retry_exceptions
        tasks = []
        for number, (task_id, item) in enumerate(zip(task_ids, items, strict=True), self.number):
            made = PendingTask.__new__(PendingTask)
            made.task_id, made.first_return_id, made.item = task_id, task_id + FIRST_RETURN, item
            made.template, made.depth, made.arg_ids, made.number = template, depth, arg_ids, number
            made.together, made.resubmit = together, resubmit
            made.retries_left, made.retry_exceptions = retries_left, retry_exceptions
            made.flat_args, made.args, made.has_args, made.has_places = b"", (), False, False
            made.place, made.oom_kills, made._request, made.state = 0, 0, None, WAITS_FOR_WORKER
            tasks.append(made)
        return tasks

    @property
    def return_ids(self) -> list[bytes]:
        """Made anew each time: a queue of a million tasks should not hold them."""
        return return_ids(self.task_id, self.template.num_returns)

    @property
    def name(self) -> str:
        return self.template.title

    # ---- its life

    @property
    def waits_for_arguments(self) -> bool:
        return self.state is WAITS_FOR_ARGUMENTS

    @property
    def is_pushed(self) -> bool:
        return self.state is PUSHED

    def _move(self, state: TaskState) -> None:
        if (self.state, state) not in MOVES:
            raise InternalError(f"{self.story} and cannot be one that {state.value}")
        self.state = state

    @property
    def story(self) -> str:
        """For people."""
        return (
            f"task {self.task_id.hex()} of {self.template.title}() {self.state.value}, retries left: "
            f"{self.retries_left}, place {self.place} on its lease"
        )

    def lies_in_stores(self) -> None:
        """Some of its arguments do: they are there, and have places."""
        self.has_places = True

    def arguments_came(self) -> None:
        self._move(WAITS_FOR_WORKER)

    def pushed(self, place: int = 0) -> None:
        """place: its place in the order of pushes on its lease, from 1; 0 for a call of an actor."""
        if self.state is WAITS_FOR_WORKER:
            self.state = PUSHED  # the usual move, which the table has
        else:
            self._move(PUSHED)
        self.place = place

    def not_started(self) -> None:
        """It was pushed, and did not begin there."""
        self._move(WAITS_FOR_WORKER)
        self.place = CAME_BACK

    @property
    def came_back(self) -> bool:
        """Whether it was pushed last time, and did not begin."""
        return self.place == CAME_BACK

    def again(self, why: str | bytes = "", is_free: bool = False) -> None:
        """It began and failed, and is run once more, which costs one of its retries, unless it is free. why:
        a text, or a serialized error."""
        self._move(WAITS_FOR_WORKER)
        self._count_attempt(why, is_free)

    def killed_for_memory(self) -> None:
        """Its worker was."""
        self.oom_kills += 1

    def _count_attempt(self, why: str | bytes, is_free: bool = False) -> None:
        self.place = 0
        self._last_failure = why
        if self.retries_left > 0 and not is_free:
            self.retries_left -= 1
        self.request.attempt += 1

    def make_again(self, arg_ids: Sequence[bytes]) -> None:
        """It was answered, and something that it returned is lost. arg_ids: what it holds now."""
        self._move(WAITS_FOR_ARGUMENTS)
        self._count_attempt("what it returned is lost")
        self.arg_ids = arg_ids
        self.request.waits_for_room = False

    @property
    def attempt(self) -> int:
        """Counted from 0."""
        return 0 if self._request is None else self._request.attempt

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        if self._request is not None:
            return _TASK_BYTES + self._request.ByteSize()
        item = self.item if isinstance(self.item, str | bytes) else b""
        return _TASK_BYTES + len(self.flat_args) + len(item)

    def look_again_for_arguments(self) -> None:
        """Before another attempt: what it is given by reference may have moved meanwhile."""
        if self.has_args and self.state is WAITS_FOR_WORKER:
            self._move(WAITS_FOR_ARGUMENTS)

    def finished(self) -> None:
        if self.state is PUSHED:
            self.state = FINISHED  # the usual move, which the table has
        else:
            self._move(FINISHED)

    def failed(self) -> None:
        self._move(FAILED)

    def give_up_retries(self) -> None:
        """It was cancelled."""
        self.retries_left = 0


def _held_by(tasks: Iterable[PendingTask]) -> Iterable[tuple[Sequence[bytes], int]]:
    """What their submissions hold, each list of references once, and how often it follows itself: tasks of a
    `map` share it."""
    held = [task.arg_ids for task in tasks if task.arg_ids]
    if held and held.count(held[0]) == len(held):
        return ((held[0], len(held)),)
    return [(next(same), 1 + sum(1 for _ in same)) for _, same in groupby(held, id)]


class PendingTasks:
    """The table of them, and what happens to most: they are added, and answered with one small value. A
    TaskManager sees to all else.

    This stands beside PendingTask, so that a call and its `get` enter one file less (bench/frames.py).
    """

    def __init__(self, references: ReferenceCounter, memory_store: MemoryStore) -> None:
        self._references = references
        self._memory_store = memory_store
        self._is_referenced = references.is_referenced
        # By the ids of their first returns.
        self._pending: dict[bytes, PendingTask] = {}
        # Pending tasks that were cancelled. Any end of theirs but a reply is a TaskCancelledError.
        self._cancelled: set[bytes] = set()
        # By pending task: lost objects that it is to make again, each with the attempt that can do so.
        self._awaited: dict[bytes, dict[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add_pending(self, task: PendingTask) -> list[bytes]:
        """It is submitted: counts every reference that it holds, and each of its returns once. Returns the
        ids of its returns."""
        if task.arg_ids:
            self._references.add_submitted(task.arg_ids)
        object_id = task.first_return_id
        self._pending[object_id] = task
        if task.template.num_returns == 1:
            self._references.add_owned(object_id)
            return [object_id]
        made = task.return_ids
        for object_id in made:
            self._references.add_owned(object_id)
        return made

    def add_all_pending(self, tasks: Sequence[PendingTask]) -> list[bytes]:
        """As add_pending, of tasks that return one value each. Returns the ids of those, in order."""
        for arg_ids, times in _held_by(tasks):
            self._references.add_submitted(arg_ids, times)
        made = [task.first_return_id for task in tasks]
        self._references.add_all_owned(made)
        self._pending.update(zip(made, tasks, strict=True))
        return made

    def get(self, task_id: bytes) -> PendingTask | None:
        return self._pending.get(task_id + FIRST_RETURN)

    def is_pending(self, task: PendingTask) -> bool:
        return task.first_return_id in self._pending

    def is_with_worker(self, object_id: bytes) -> bool:
        """Whether the call that makes this object is."""
        task = self.get(object_id[: -ids.INDEX_BYTES])
        return task is not None and task.is_pushed

    def values(self) -> list[PendingTask]:
        """Every pending task, in the order of submission; a copy."""
        return list(self._pending.values())

    def complete(self, task: PendingTask, reply: Any, executor: common_pb2.Address) -> None:
        """See TaskManager."""
        raise NotImplementedError

    def complete_usual(self, task: PendingTask, value: bytes) -> None:
        """It was answered as most are (task_wire.py). The same as `complete`, kept short."""
        object_id = task.first_return_id
        if task.template.on_part is not None or (self._awaited and task.task_id in self._awaited):
            self.complete(task, core_worker_pb2.PushTaskReply(plain=value), _NOBODY)
            return
        if self._pending.pop(object_id, None) is None:
            return
        if self._is_referenced(object_id):
            self._memory_store.put_plain(object_id, value)
        task.finished()
        if self._cancelled:
            self._cancelled.discard(task.task_id)
        if task.arg_ids:
            self._references.remove_submitted(task.arg_ids)

    def complete_all_usual(self, tasks: Sequence[PendingTask], values: Sequence[bytes]) -> None:
        """As complete_usual, of tasks that return one value each."""
        made = [task.first_return_id for task in tasks]
        found = list(map(self._pending.pop, made, repeat(None)))
        if self._cancelled or None in found or not all(map(self._is_referenced, made)):
            self._pending.update((task.first_return_id, task) for task in found if task is not None)
            for task, value in zip(tasks, values, strict=True):
                self.complete_usual(task, value)
            return
        self._memory_store.put_all_plain(made, values)
        for task in tasks:
            task.finished()
        for arg_ids, times in _held_by(tasks):
            self._references.remove_submitted(arg_ids, times)

    def _let_go(self, task: PendingTask) -> None:
        if self._cancelled:
            self._cancelled.discard(task.task_id)
        if task.arg_ids:
            self._references.remove_submitted(task.arg_ids)
