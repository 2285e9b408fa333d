"""A concurrency group of an async actor: an event loop on a thread of its own, and the calls under way on it.

Every group has a loop, as in Ray. So a coroutine that blocks its thread holds up its own group and no other.
This is where the actor's code runs:

    constructor (also an `async def`)       the default group's loop, before the first call
    coroutines, async generators, methods   their group's loop; `limit` of them at once, the others wait
    generators, what __ray_call__ is given  a thread for each call, so that the loop goes on
    __ray_shutdown__                        the main thread, when no call starts any more
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import inspect
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.core_worker.context import TaskContext, WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import is_awaited
from ray_mono.core_worker.task_errors import ActorExit, users_traceback
from ray_mono.core_worker.task_execution.call import Call
from ray_mono.core_worker.task_execution.call_thread import CallThread
from ray_mono.core_worker.task_execution.generator_runner import GeneratorRunner
from ray_mono.core_worker.task_execution.task_events import TaskEvents
from ray_mono.core_worker.task_execution.task_reply import TaskReplies

logger = logging.getLogger(__name__)


async def construct(cls: type, args: Iterable[Any], kwargs: dict[str, Any]) -> Any:
    """An instance of an async actor's class, whose `__init__` may be a coroutine itself."""
    if not inspect.iscoroutinefunction(cls.__init__):  # type: ignore[misc]
        return cls(*args, **kwargs)
    instance = cls.__new__(cls, *args, **kwargs)
    if isinstance(instance, cls):
        await instance.__init__(*args, **kwargs)  # type: ignore[misc]
    return instance


@dataclass(frozen=True)
class AsyncParts:
    """The parts that the groups of an actor use."""

    context: WorkerContext
    env: Environment
    began: dict[TaskContext, float]
    """Running.began."""
    call_over: Callable[[TaskContext], None]
    """Running.call_over."""
    replies: TaskReplies
    generators: GeneratorRunner
    events: TaskEvents
    answer_error: Callable[[Call, TaskContext, BaseException], None]
    """Answers a call by the error that left the user's code."""
    exit_by: Callable[[BaseException], None]
    """A coroutine ended the actor."""
    is_time_over: Callable[[], bool]
    """Before a call begins: StartBoard.is_time_over."""
    out_of_time: Callable[[], None]
    """It is: Executor.out_of_time."""


class AsyncGroup:
    """One group. It is made on the main thread. Its methods that begin with an underscore run on the loop's
    thread."""

    def __init__(self, parts: AsyncParts, name: str, limit: int) -> None:
        self._parts = parts
        self._loop = asyncio.new_event_loop()
        self._limit = limit
        self._is_closed = False
        self._has_ended = False
        # By its context, since two attempts of a call may run at once, if the caller lost a connection. Both
        # count.
        self._running: dict[TaskContext, tuple[asyncio.Task[None], Call]] = {}
        # By task id, in order. They are no coroutines yet, since there may be many.
        self._waiting: OrderedDict[bytes, tuple[Call, TaskContext, list[Any]]] = OrderedDict()
        # Calls on their way to the loop's thread, which is woken for the first of them.
        self._arriving: deque[tuple[Call, TaskContext, list[Any]]] = deque()
        self._is_flush_near = False
        # Bound once, and not for each call.
        self._followed = self._flush_soon
        self._on_unbegun = self._unbegun
        # Calls that waited begin in it, and not in that of the call that made room.
        self._own_context = contextvars.copy_context()
        self._ident = 0
        CallThread(self._run_loop, f"actor-loop-{name}" if name else "actor-loop").start()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._ident = threading.get_ident()
        while not self._has_ended:
            # Callbacks and tasks that the actor's code starts on the loop may raise and so stop it. The calls
            # on the loop have to go on.
            try:
                self._loop.run_forever()
            except SystemExit as error:
                self._parts.exit_by(error)
            except BaseException as error:
                logger.error("a callback or task on an actor's loop failed: %s", users_traceback(error))
        self._loop.close()

    def run(self, coroutine: Any) -> Any:
        """Runs a coroutine on the loop to its end. Returns what it returns, and raises what it raises."""
        done = threading.Event()
        outcome: list[Any] = []
        failure: list[BaseException] = []
        kept: list[asyncio.Task[None]] = []

        async def run() -> None:
            try:
                outcome.append(await coroutine)
            except BaseException as error:
                failure.append(error)
            done.set()

        self._loop.call_soon_threadsafe(lambda: kept.append(self._loop.create_task(run())))
        done.wait()
        if failure:
            raise failure.pop()
        return outcome.pop()

    def close(self) -> concurrent.futures.Future[None]:
        """Cancels what runs on the loop, as asyncio.run does at its end, so that every `finally` runs. The
        future is done when that is over; then the loop ends."""
        return asyncio.run_coroutine_threadsafe(self._close(), self._loop)

    async def _close(self) -> None:
        self._is_closed = True
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        self._has_ended = True
        self._loop.call_soon(self._loop.stop)

    # ---- calls

    def running(self, task: TaskContext) -> tuple[asyncio.Task[None], int] | None:
        """The asyncio task of a call that has begun, and its loop's thread. Any thread."""
        running = self._running.get(task)
        return None if running is None else (running[0], self._ident)

    def num_beside_calls(self) -> int:
        """Of asyncio tasks on the loop, those that are no calls. Any thread."""
        return len(asyncio.all_tasks(self._loop)) - len(self._running)

    def start(self, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        """Starts a call beside others. Calls start in the order in which this is called."""
        call.followed_if(self._followed)
        self._arriving.append((call, task, prepared))
        if len(self._arriving) == 1:
            try:
                self._loop.call_soon_threadsafe(self._start_arrived)
            except RuntimeError:  # the loop is closed
                self._arriving.clear()
                raise

    def _start_arrived(self) -> None:
        while self._arriving:
            self._start(*self._arriving[0])
            # Removed only now: whoever adds a call to an empty queue wakes this thread.
            self._arriving.popleft()

    def _flush_soon(self) -> bool:
        """Has the answers of one round of the loop share a send at its end. Returns whether it does so, as
        Call.is_followed asks."""
        if threading.get_ident() != self._ident:
            return False
        if not self._is_flush_near:
            self._is_flush_near = True
            self._loop.call_soon(self._flush)
        return True

    def _flush(self) -> None:
        self._is_flush_near = False
        with self._parts.env.lock:
            self._parts.replies.flush()

    def cancel(self, task_id: bytes) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._cancel, task_id)

    async def ended(self, task_ids: set[bytes]) -> None:
        """Returns when those of these calls are over that are this group's. Runs on any loop."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._ended(task_ids), self._loop))

    async def _ended(self, task_ids: set[bytes]) -> None:
        while True:
            running = [running for task, (running, _) in self._running.items() if task.task_id in task_ids]
            if not running and task_ids.isdisjoint(self._waiting):
                return
            running = running or [running for running, _ in self._running.values()]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    def _cancel(self, task_id: bytes) -> None:
        for task, (running, _) in self._running.items():
            if task.task_id == task_id:
                running.cancel()
        self._drop_waiting(task_id)

    def _drop_waiting(self, task_id: bytes) -> None:
        """It does not run, if it waits here."""
        waiting = self._waiting.pop(task_id, None)
        if waiting is not None:
            call, task, prepared = waiting
            prepared.clear()
            self._over(call, task, has_run=False)

    def _start(self, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        try:
            self._start_or_wait(call, task, prepared)
        except BaseException as error:
            self._parts.replies.answer_anyhow(call, error)

    def _start_or_wait(self, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        if task.is_cancelled:
            # It was cancelled while its arguments were fetched, when there was nothing to cancel here yet.
            prepared.clear()
            self._over(call, task, has_run=False)
            return
        if len(self._running) >= self._limit:
            # If it waits here already, its caller has lost that connection, and has sent all again, in order.
            self._drop_waiting(task.task_id)
            self._waiting[task.task_id] = call, task, prepared
            return
        running = self._loop.create_task(self._run(call, task, prepared))
        # A task factory of the user's may have begun it, and it may be over.
        if not running.done():
            self._running[task] = running, call
            if prepared:
                running.add_done_callback(self._on_unbegun)

    def _unbegun(self, running: asyncio.Task[None]) -> None:
        """It was cancelled before it began: _run takes this callback away, as the loop takes long for one."""
        for task, (each, call) in self._running.items():
            if each is running:
                self._ended_one(call, task, has_run=False)
                return

    def _ended_one(self, call: Call, task: TaskContext, has_run: bool) -> None:
        self._running.pop(task, None)
        self._over(call, task, has_run)
        if self._waiting:
            self._own_context.run(self._start_waiting)

    def _start_waiting(self) -> None:
        # One that was cancelled by now takes no turn.
        while self._waiting and len(self._running) < self._limit and not self._is_closed:
            self._start(*self._waiting.popitem(last=False)[1])

    def _over(self, call: Call, task: TaskContext, has_run: bool) -> None:
        self._parts.call_over(task)
        if not (has_run or self._is_closed):
            # It was cancelled before it began. So it has not answered, and no code of the user's was stopped.
            self._parts.replies.finish_error(call, task, TaskCancelledError(task.task_id.hex()))

    async def _run(self, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        parts = self._parts
        if (made := self._running.get(task)) is not None:
            made[0].remove_done_callback(self._on_unbegun)
        if parts.is_time_over():
            parts.out_of_time()
        target, args, kwargs = prepared
        prepared.clear()
        parts.context.enter(task)
        parts.began[task] = started_s = time.perf_counter()
        try:
            try:
                try:
                    value = target(*args, **kwargs)
                    if type(value) is CoroutineType or is_awaited(value):
                        value = await value
                    if type(value) is AsyncGeneratorType:
                        value = await parts.generators.run_async(call, task, value)
                    elif type(value) is GeneratorType:
                        value = await on_thread(parts.generators.run, call, task, value)
                finally:
                    del parts.began[task]
                    if not call.spec.is_short:
                        call.spec.ran(is_short=True)  # for the main thread, which only started it
                    if not call.spec.hides_events:
                        parts.events.add(task, started_s, time.perf_counter())
                if task.is_cancelled:
                    # The method caught the cancellation and returned, but nobody wants its value.
                    raise asyncio.CancelledError
            except (ActorExit, SystemExit) as error:
                parts.exit_by(error)
            except BaseException as error:
                # Calls that the end of the actor cancels are not answered: their callers hear of that end.
                if not self._is_closed:
                    parts.answer_error(call, task, error)
            else:
                parts.replies.finish(call, task, value)
        except BaseException as error:
            parts.replies.answer_anyhow(call, error)
        self._ended_one(call, task, has_run=True)


async def on_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Runs a function on a thread of its own, as part of the same call. A call that is cancelled waits for it
    all the same, since a thread cannot be stopped."""
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    done = asyncio.Event()
    outcome: list[Any] = []
    failure: list[BaseException] = []
    # The thread empties it: it may outlive the call by a moment, and must not keep the arguments.
    work: list[Any] = [function, *args]
    del function, args

    def run() -> None:
        function, *args = work
        work.clear()
        try:
            outcome.append(context.run(function, *args))
        except BaseException as error:
            failure.append(error)
        del function, args
        loop.call_soon_threadsafe(done.set)

    CallThread(run, "actor-call").start()
    is_cancelled = False
    while not done.is_set():
        try:
            await done.wait()
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        raise asyncio.CancelledError
    if failure:
        raise failure.pop()
    return outcome.pop()
