"""Runs calls that came in one frame, one after another, on the main thread: what is the same for all of them
is done once, and what is usual of each is done here. Whatever is unusual goes the way of every call
(executor.py): the first call of its function, calls of concurrent actors, errors, large values, generators.

    begun: on the board, in Running, its own context ──► the user's function ──► a small value ──► collected
                                                             └──► anything else ──► CallEnds
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

from ray_mono.common.start_board import StartBoard
from ray_mono.core_worker.context import TaskContext, WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.core_worker.task_execution.call import Call, KnownSpec, context_of
from ray_mono.core_worker.task_execution.generator_runner import GENERATORS, GeneratorRunner
from ray_mono.core_worker.task_execution.interrupter import Interrupter
from ray_mono.core_worker.task_execution.kept_answers import KeptAnswers
from ray_mono.core_worker.task_execution.process_title import ProcessTitle
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.core_worker.task_execution.shared_calls import SharedCalls
from ray_mono.core_worker.task_execution.task_events import TaskEvents
from ray_mono.core_worker.task_execution.task_receiver import TaskReceiver
from ray_mono.core_worker.task_execution.task_reply import flush_output
from ray_mono.core_worker.values.serialization import plain_pickle
from ray_mono.protobuf import common_pb2


class CallEnds(Protocol):
    """What becomes of a call whose code has run: the Executor."""

    def returned(self, call: Call, task: TaskContext, value: Any) -> None: ...

    def raised(self, call: Call, task: TaskContext, error: BaseException) -> None: ...

    def not_begun(self, call: Call) -> None: ...

    def out_of_time(self) -> None: ...

    def fell_through(self, call: Call, task: TaskContext, error: BaseException) -> None: ...


class SharedRunner:
    """Of one worker."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        board: StartBoard,
        kept: KeptAnswers,
        running: Running,
        receiver: TaskReceiver,
        interrupter: Interrupter,
        generators: GeneratorRunner,
        events: TaskEvents,
        blocked: BlockedNotice,
        title: ProcessTitle,
        target_of: Callable[[KnownSpec], Callable[..., Any] | None],
        ends: CallEnds,
    ) -> None:
        """target_of(spec): what its calls run, where this worker is ready to run it here; else None. Raises
        what keeps it from being."""
        self._env = env
        self._context = context
        self._board = board
        self._kept = kept
        self._running = running
        self._receiver = receiver
        self._interrupter = interrupter
        self._generators = generators
        self._events = events
        self._blocked = blocked
        self._title = title
        self._target_of = target_of
        self._ends = ends

    def run(self, calls: SharedCalls) -> bool:
        """Runs them, as long as they are next. False, and nothing happened, where they are not usual."""
        spec = calls.spec
        target = self._target_of(spec)
        if target is None:
            return False
        self._title.show(spec)
        if spec.type == common_pb2.NORMAL_TASK:
            self._blocked.task_begins()
        with self._env.lock:
            if not calls.left:
                return True
            like = context_of(calls.call(calls.left[0]), self._running.actor)
        token = self._context.enter(like)
        try:
            self._run(calls, target, like)
        finally:
            self._context.leave(token)
            self._running.over()
            self._flush(calls)
        return True

    def _run(self, calls: SharedCalls, target: Callable[..., Any], like: TaskContext) -> None:
        # Whatever every call uses is at hand: it is a fifth of what a short one takes.
        running, receiver, lock, reactor = self._running, self._receiver, self._env.lock, self._env.reactor
        begin, take, beside, enter = running.begin, receiver.take_next_of, like.beside, self._context.enter
        spec, task_ids, run_one, collect = calls.spec, calls.task_ids, self._run_one, calls.answers.collect
        may_begin = self._board.may_begin if spec.type == common_pb2.NORMAL_TASK else None
        is_time_over = self._board.is_time_over
        first_number, name, alone_us = calls.number(0), spec.name, self._env.config.answered_alone_us
        index, number, task, plain = -1, 0, like, None
        while True:
            with lock:
                # In the same hold of the lock: one call is over, and the next begins.
                is_enough = is_short = False
                if plain is not None:
                    is_short = task.run_us < alone_us
                    is_enough = collect(index, number, task.run_us, plain) or not is_short
                    plain = None
                if is_enough:
                    spec.ran(is_short)
                else:
                    index = -1 if reactor.is_closed or running.is_ending else take(calls)
                    if index < 0:
                        return
                    task = beside(task_ids[index])
                    begin(task)
            if is_enough:
                self._flush(calls)
                continue
            try:
                enter(task)
                number = first_number and first_number + index
                if may_begin is None and is_time_over():
                    self._ends.out_of_time()
                if may_begin is None or may_begin(number, name):
                    plain = run_one(calls, index, task, target)
                else:
                    self._flush(calls)
                    self._ends.not_begun(calls.call(index))
            except BaseException as error:
                self._ends.fell_through(calls.call(index), task, error)

    def _run_one(
        self, calls: SharedCalls, index: int, task: TaskContext, target: Callable[..., Any]
    ) -> bytes | None:
        """Returns its small value, or None where it was answered otherwise."""
        spec, interrupter = calls.spec, self._interrupter
        started_s = perf_counter()
        try:
            try:
                interrupter.user_code_begins(task)
                value = target(calls.items[index])
                if type(value) in GENERATORS:
                    value = self._generators.run(calls.call(index), task, value)
            finally:
                ended_s = perf_counter()
                task.ran(ended_s - started_s)
                if task.is_cancelled:
                    interrupter.user_code_ended(task)
                if not spec.hides_events:
                    self._events.add(task, started_s, ended_s)
        except BaseException as error:
            self._flush(calls)
            self._ends.raised(calls.call(index), task, error)
            return None
        plain = plain_pickle(value)
        if plain is None or len(plain) > INLINE_BYTES_MAX or task.is_cancelled:
            self._flush(calls)
            self._ends.returned(calls.call(index), task, value)
            return None
        return plain

    def _flush(self, calls: SharedCalls) -> None:
        """Before anything else is said, or this worker ends. Nothing runs here meanwhile: whoever has the
        answer may know. What was printed goes first; whole lines have left already."""
        if calls.spec.type == common_pb2.NORMAL_TASK:
            self._board.rest()
        flush_output()
        with self._env.lock:
            calls.answers.flush()
        self._kept.leave(calls.answers.connection)
