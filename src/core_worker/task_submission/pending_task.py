"""One task that was submitted here and has not finished.

    PENDING_ARGS_AVAIL ──arguments are there──► PENDING_NODE_ASSIGNMENT ──pushed──► SUBMITTED_TO_WORKER ──reply──► FINISHED
            ▲                                         │          ▲                          │
            └──an actor's call is sent again──────────┘          ├──did not start there─────┤
                                                                 └──again, retries left─────┘
    any of the three ──an argument is an error; cancelled; cannot be placed; lost without retries──► FAILED

The states have Ray's names. A call of an actor "waits for a node" until it is its turn to be sent. A task
moves itself, when it is told what happened; who tells it are the TaskManager and the submitters.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

from ray_mono.common.our_bug import InternalError
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.protobuf import common_pb2, core_worker_pb2

INDEX_BYTES = 4
"""Of an object's id: which of its task's returns it is. The rest is the task's id."""
FIRST_RETURN = (1).to_bytes(INDEX_BYTES, "little")

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

_MOVES = frozenset(
    {
        (WAITS_FOR_ARGUMENTS, WAITS_FOR_WORKER),
        (WAITS_FOR_ARGUMENTS, FAILED),
        (WAITS_FOR_WORKER, PUSHED),
        (WAITS_FOR_WORKER, FAILED),
        (WAITS_FOR_WORKER, WAITS_FOR_ARGUMENTS),
        (PUSHED, WAITS_FOR_WORKER),
        (PUSHED, FINISHED),
        (PUSHED, FAILED),
    }
)


def return_ids(task_id: bytes, num_returns: int) -> list[bytes]:
    """Object ids of what a task returns."""
    if num_returns == 1:
        return [task_id + FIRST_RETURN]
    return [task_id + index.to_bytes(INDEX_BYTES, "little") for index in range(1, num_returns + 1)]


class PendingTask:
    """Its template, and what is its own. The wire message is made when somebody wants it, in most cases to
    push it: a queue of a million tasks has none."""

    __slots__ = (
        "_request",
        "arg_ids",
        "args",
        "depth",
        "flat_args",
        "has_args",
        "number",
        "place",
        "resubmit",
        "retries_left",
        "retry_exceptions",
        "state",
        "task_id",
        "template",
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
    ) -> None:
        """arg_ids: every reference that the submission holds: arguments and what is inside them. resubmit:
        has it run again; None for what nobody runs again from here, an actor's creation."""
        self.task_id = task_id
        self.template = template
        self.flat_args = flat_args
        # Until they are in the message.
        self.args = args
        self.has_args = bool(args)
        self.depth = depth
        self.arg_ids = arg_ids
        self.retries_left = retries_left
        self.retry_exceptions = retry_exceptions
        self.resubmit = resubmit
        # Normal tasks: the order of pushes on its lease; 0 where it has none.
        self.place = 0
        # The order of submission, among all tasks of its process.
        self.number = number
        self._request: Any = None
        self.state = WAITS_FOR_ARGUMENTS if args else WAITS_FOR_WORKER

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

    # ---- its life

    @property
    def waits_for_arguments(self) -> bool:
        return self.state is WAITS_FOR_ARGUMENTS

    def _move(self, state: TaskState) -> None:
        if (self.state, state) not in _MOVES:
            raise InternalError(f"{self.story} and cannot be one that {state.value}")
        self.state = state

    @property
    def story(self) -> str:
        """For people."""
        return (
            f"task {self.task_id.hex()} of {self.template.title}() {self.state.value}, retries left: "
            f"{self.retries_left}, place {self.place} on its lease"
        )

    def arguments_came(self) -> None:
        self._move(WAITS_FOR_WORKER)

    def pushed(self, place: int = 0) -> None:
        """place: as the so manieth on its lease."""
        if self.state is not WAITS_FOR_WORKER:
            self._move(PUSHED)
        self.state = PUSHED
        self.place = place

    def not_started(self) -> None:
        """It was pushed, and did not begin there."""
        self._move(WAITS_FOR_WORKER)
        self.place = 0

    def again(self) -> None:
        """It began and failed, and is run once more, which costs one of its retries."""
        self._move(WAITS_FOR_WORKER)
        self.place = 0
        if self.retries_left > 0:
            self.retries_left -= 1
        self.request.attempt += 1

    def look_again_for_arguments(self) -> None:
        """Before another attempt: what it is given by reference may have moved meanwhile."""
        if self.has_args and self.state is WAITS_FOR_WORKER:
            self._move(WAITS_FOR_ARGUMENTS)

    def finished(self) -> None:
        if self.state is not PUSHED:
            self._move(FINISHED)
        self.state = FINISHED

    def failed(self) -> None:
        self._move(FAILED)

    def give_up_retries(self) -> None:
        """It was cancelled."""
        self.retries_left = 0
