"""What runs in a worker, and whether and how the worker ends: the record that its parts share.

    RUNS ──exit_actor, sys.exit, max_calls, SIGTERM, a constructor that failed──► ENDING: no other call begins

Kept by the main thread, but where it says otherwise.
"""

from __future__ import annotations

from typing import Any

from ray_mono.common.raw_error import exit_code_of, repr_of
from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.task_execution.call import HeldActor


class Running:
    """Of one worker."""

    def __init__(self) -> None:
        # What the main thread has taken from the queue and not finished.
        self._task: TaskContext | None = None
        self._actor: HeldActor | None = None
        self._actor_is_asyncio = False
        # Calls of the actor that were dispatched and are not over, by task id, in the order of their
        # dispatch.
        self.calls: dict[bytes, TaskContext] = {}
        self._num_calls: dict[bytes, int] = {}
        self._is_ending = False
        self._is_terminated = False
        self._was_struck = False
        self._owes_answer = False
        self._left_from_thread = False
        self._exit_cause = ""

    # ---- tasks

    @property
    def task(self) -> TaskContext | None:
        return self._task

    def begin(self, task: TaskContext | None) -> None:
        """Taken from the queue; a cancel finds it here now. Lock held."""
        self._task = task

    def over(self) -> None:
        self._task = None

    @property
    def actor(self) -> HeldActor | None:
        return self._actor

    @property
    def actor_is_asyncio(self) -> bool:
        return self._actor_is_asyncio

    def hold(self, actor: HeldActor, is_asyncio: bool) -> None:
        """The actor is constructed."""
        self._actor, self._actor_is_asyncio = actor, is_asyncio

    def find(self, task_id: bytes) -> TaskContext | None:
        """A task or call that runs, or is dispatched. Lock held."""
        if self._task is not None and self._task.task_id == task_id:
            return self._task
        return self.calls.get(task_id)

    # ---- the end of the worker

    @property
    def is_ending(self) -> bool:
        return self._is_ending

    @property
    def is_terminated(self) -> bool:
        """By SIGTERM: it dies of that, when it is done."""
        return self._is_terminated

    @property
    def was_struck(self) -> bool:
        """Whether SIGTERM has raised SystemExit in what the main thread ran."""
        return self._was_struck

    @property
    def owes_answer(self) -> bool:
        """Somebody waits for a call that will not be answered: the end of this process is what tells them."""
        return self._owes_answer

    @property
    def exit_cause(self) -> str:
        """What a task did to end its worker."""
        return self._exit_cause

    def end(self) -> None:
        """No other call begins."""
        self._is_ending = True

    def end_after_this(self) -> None:
        """SIGTERM, or a constructor that failed: no other call begins, and who waits for one hears of it by
        the end of the process."""
        self._owes_answer = self._is_ending = True

    def terminate(self) -> None:
        """SIGTERM came. In its handler."""
        self._is_terminated = True
        self.end_after_this()

    def strike(self) -> None:
        """It is about to raise SystemExit, or has nothing to raise it in any more."""
        self._was_struck = True

    def leave_from_thread(self) -> None:
        """exit_actor() on a thread of the user's: the process ends after the call that runs now, as in Ray.
        The GCS is not told yet. Lock held."""
        self._left_from_thread = True
        self.end_after_this()

    def take_leave(self) -> bool:
        """Whether it left so, and nobody was told."""
        left, self._left_from_thread = self._left_from_thread, False
        return left

    def exit_by(self, error: BaseException) -> None:
        """A task raised SystemExit."""
        self._exit_cause = cause_of_exit(error)

    def ends_after(self, spec: Any) -> bool:
        """Whether the worker ends with this answer: it is told to, or this was the last call that max_calls
        allows."""
        if self._is_ending or not spec.max_calls:
            return self._is_ending
        digest = spec.function.python.function_hash
        self._num_calls[digest] = self._num_calls.get(digest, 0) + 1
        if self._num_calls[digest] >= spec.max_calls:
            self._is_ending = True
        return self._is_ending


def cause_of_exit(error: BaseException) -> str:
    return f"its code raised SystemExit({repr_of(exit_code_of(error))})"
