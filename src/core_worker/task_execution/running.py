"""The record of what runs in a worker, and of whether and how the worker ends. All parts read it.

    RUNS ──exit_actor, sys.exit, max_calls, SIGTERM, a constructor that failed──► ENDING: no other call begins

The main thread keeps it, except where a docstring says otherwise.
"""

from __future__ import annotations

from ray_mono.common.raw_error import exit_code_of, repr_of
from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.task_execution.call import KnownSpec, RunningActor

CALLS_POLL_S = 0.01
"""Between two looks of whoever waits at the end for an actor's calls on other threads."""


class Running:
    """The record of one worker."""

    def __init__(self) -> None:
        # The task that the main thread has taken from the queue and not finished.
        self._task: TaskContext | None = None
        self._actor: RunningActor | None = None
        self._actor_is_asyncio = False
        # The actor's calls that were dispatched and are not over, by task id, in the order of their dispatch.
        self.calls: dict[bytes, TaskContext] = {}
        self._num_calls: dict[bytes, int] = {}
        # Whose user code runs, and since when, by perf_counter. Each is put in and taken out by the thread
        # that runs it.
        self.began: dict[TaskContext, float] = {}
        self.is_ending = False
        """No other call begins. Everybody reads it, since every call looks at it."""
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
        """A task was taken from the queue. From now on a cancel finds it here. Lock held."""
        self._task = task

    def over(self) -> None:
        self._task = None

    @property
    def actor(self) -> RunningActor | None:
        return self._actor

    @property
    def actor_is_asyncio(self) -> bool:
        return self._actor_is_asyncio

    def hold(self, actor: RunningActor, is_asyncio: bool) -> None:
        """The actor is constructed."""
        self._actor, self._actor_is_asyncio = actor, is_asyncio

    def find(self, task_id: bytes) -> TaskContext | None:
        """The task or call if it runs or is dispatched. Lock held."""
        if self._task is not None and self._task.task_id == task_id:
            return self._task
        return self.calls.get(task_id)

    def begun(self) -> dict[TaskContext, float]:
        """Whose user code runs, and since when; a copy. Any thread."""
        return dict(self.began)

    def under_way(self) -> list[TaskContext]:
        """Those that have begun first, then what was dispatched. Lock held."""
        return [*dict.fromkeys([*self.begun(), *self.calls.values()])]

    def call_over(self, task: TaskContext) -> None:
        """A call of `calls` is over. It is answered by then, so that a retry may have its id here. Any
        thread, without the lock."""
        task_id = task.task_id
        if self.calls.get(task_id) is task:
            taken = self.calls.pop(task_id)
            if taken is not task:
                self.calls[task_id] = taken  # the retry came in between

    # ---- the end of the worker

    @property
    def is_terminated(self) -> bool:
        """Whether SIGTERM came. The worker dies of that signal when it is done."""
        return self._is_terminated

    @property
    def was_struck(self) -> bool:
        """Whether SIGTERM has raised SystemExit on the main thread, or has nothing left to raise it in."""
        return self._was_struck

    @property
    def owes_answer(self) -> bool:
        """Whether somebody waits for a call that will not be answered. The end of this process tells them."""
        return self._owes_answer

    @property
    def exit_cause(self) -> str:
        """What a task did to end its worker; empty if none did."""
        return self._exit_cause

    def end(self) -> None:
        """No other call begins."""
        self.is_ending = True

    def end_after_this(self) -> None:
        """SIGTERM came, or a constructor failed. No other call begins, and the end of the process tells those
        who wait for one."""
        self._owes_answer = self.is_ending = True

    def terminate(self) -> None:
        """SIGTERM came. Its handler calls this."""
        self._is_terminated = True
        self.end_after_this()

    def strike(self) -> None:
        """SIGTERM is about to raise SystemExit, or has nothing left to raise it in."""
        self._was_struck = True

    def leave_from_thread(self) -> None:
        """exit_actor() was called on a thread of the user's. The process ends after the call that runs now,
        as in Ray. The GCS is not told yet. Lock held."""
        self._left_from_thread = True
        self.end_after_this()

    def take_leave(self) -> bool:
        """Whether leave_from_thread was called, and nobody was told. True once."""
        left, self._left_from_thread = self._left_from_thread, False
        return left

    def exit_by(self, error: BaseException) -> None:
        """A task raised SystemExit."""
        self._exit_cause = cause_of_exit(error)

    def ends_after(self, spec: KnownSpec) -> bool:
        """A call is answered. Returns whether the worker ends with it: it is ending, or this was the last
        call that max_calls allows."""
        if self.is_ending or not spec.max_calls:
            return self.is_ending
        digest = spec.function_hash
        self._num_calls[digest] = self._num_calls.get(digest, 0) + 1
        if self._num_calls[digest] >= spec.max_calls:
            self.is_ending = True
        return self.is_ending


def cause_of_exit(error: BaseException) -> str:
    return f"its code raised SystemExit({repr_of(exit_code_of(error))})"
