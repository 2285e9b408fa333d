"""An asyncio event loop on virtual time.

The loop owns the order of everything that happens in a simulation. It does no I/O: when nothing is ready it
jumps to the next timer, so an hour of heartbeats costs what its callbacks cost. Callbacks run in the order in
which they were scheduled; timers of one instant in the order in which they were set. Tasks and futures hash
by a counter of their loop, so that even sets of them (asyncio keeps some) iterate in the same order in every
run.

Every callback belongs to the simulated process in whose context it was scheduled (CURRENT_PROCESS). A process
that was killed runs nothing any more, not even `finally` blocks: just what SIGKILL leaves of a real one.

A run that can make no progress ends in an error with a list of who waits where: Deadlock when nothing is
ready and no timer is set, TimeLimitReached when periodic timers hide such a wait, Livelock when the callbacks
of one instant never end.

Callbacks take no time, so all that follow from one another run before anything else comes. With `let_slip`
they may take some: what is due soon comes between them.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import heapq
import itertools
import random
import sys
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, NoReturn, TypeVar

from tests.simulation.handles import CURRENT_PROCESS, SimFuture, SimHandle, SimTask

T = TypeVar("T")

LIVELOCK_TURNS = 1_000_000
"""Callbacks at one instant of virtual time before the loop calls it a livelock: a thousand times what a busy
cluster needs.
"""
SLIP_PROBABILITY = 0.2
"""That a callback ends after the next timer, where that is due soon enough."""


class SimulationError(Exception):
    """The simulated program failed, or an invariant does not hold."""


class Deadlock(SimulationError):
    """Nothing is ready, no timer is set, and the run has not finished."""


class Livelock(SimulationError):
    """Callbacks schedule callbacks and virtual time stands still."""


class TimeLimitReached(SimulationError):
    """The run has not finished within its bound of virtual seconds."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop of one simulation. `errors` collects what asyncio would only have logged; the run fails on the
    first.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._ready: collections.deque[SimHandle] = collections.deque()
        # A heap: by time, and of one time in the order in which they were set.
        self._timers: list[tuple[float, int, SimHandle]] = []
        self._sequence = itertools.count()
        self._numbers = itertools.count(1)
        self._tasks: list[SimTask] = []
        # Ended tasks are dropped when the list has grown to this.
        self._tasks_kept = 1000
        self._turns_at_this_instant = 0
        self._is_running = False
        self._is_closed = False
        self._stop_asked = False
        self._slip_s = 0.0
        self._slips = random.Random()
        self.is_ending = False
        self.errors: list[str] = []
        self.checks: list[Callable[[], None]] = []
        """Run at the end of every instant, outside of all processes."""

    def let_slip(self, slip_s: float, rng: random.Random) -> None:
        """From now on callbacks may take so long."""
        self._slip_s, self._slips = slip_s, rng

    # ---- time and callbacks

    def time(self) -> float:
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> SimHandle:
        self._check_open()
        handle = SimHandle(self._now_s, callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> SimHandle:
        self._check_open()
        when_s = max(when, self._now_s)
        handle = SimHandle(when_s, callback, args, self, context)
        heapq.heappush(self._timers, (when_s, next(self._sequence), handle))
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> SimHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def put_off(self, handle: SimHandle, until_s: float) -> None:
        """It is due, and its process is stopped."""
        heapq.heappush(self._timers, (until_s, next(self._sequence), handle))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio's handles tell their loop; cancelled ones are dropped here when they come up."""

    # ---- tasks and futures

    def create_future(self) -> SimFuture:
        future = SimFuture(loop=self)
        future.number = self.next_number()
        return future

    def next_number(self) -> int:
        """What a task or future of this loop hashes by."""
        return next(self._numbers)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> SimTask:
        self._check_open()
        task = SimTask(coro, self.next_number(), self, name, context)
        self._tasks.append(task)
        if len(self._tasks) > self._tasks_kept:
            self._tasks = [task for task in self._tasks if not task.done()]
            self._tasks_kept = 2 * len(self._tasks) + 1000
        return task

    def pending_tasks(self) -> list[SimTask]:
        """Tasks that have not ended, of living processes, in order of creation."""
        return [
            task
            for task in self._tasks
            if not task.done() and (task.process is None or task.process.is_alive)
        ]

    # ---- running

    def run_until_complete(self, future: Any, limit_s: float | None = None) -> Any:
        """Runs until `future` is done and returns its result.

        limit_s: virtual seconds from now after which TimeLimitReached is raised; None: no limit.
        """
        task = asyncio.ensure_future(future, loop=self)
        end_s = None if limit_s is None else self._now_s + limit_s
        self._run(
            task.done, end_s, lambda: _describe_task(task) if isinstance(task, asyncio.Task) else repr(task)
        )
        return task.result()

    def run_until_idle(self, limit_s: float) -> None:
        """Runs until nothing is ready and no timer is set; tasks may still wait. limit_s as above."""
        self._run(self._is_idle, self._now_s + limit_s, lambda: "what was going on")

    def _is_idle(self) -> bool:
        return not self._ready and all(handle.cancelled() for _, _, handle in self._timers)

    def run_forever(self) -> None:
        self._stop_asked = False
        self._run(lambda: self._stop_asked, None, lambda: "run_forever()")

    def stop(self) -> None:
        self._stop_asked = True

    def _run(self, is_done: Callable[[], bool], end_s: float | None, what: Callable[[], str]) -> None:
        if self._is_running:
            raise RuntimeError("the loop is running already")
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self._finalize_asyncgen)
        asyncio._set_running_loop(self)
        self._is_running = True
        try:
            while not is_done():
                if not self._ready:
                    self._jump(end_s, what)
                elif self._slip_s:
                    self._slip()
                handle = self._ready.popleft()
                if not handle.cancelled():
                    self._count_turn(handle)
                    handle._run()
                if self.errors:
                    raise SimulationError("\n".join(self.errors))
        finally:
            self._is_running = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _jump(self, end_s: float | None, what: Callable[[], str]) -> None:
        """Moves time to the next timer and makes it and all others of that instant ready."""
        for check in self.checks:
            check()
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if not self._timers:
            raise Deadlock(
                f"nothing is left to happen at {self._now_s:.6f} s, but this has not ended:\n{what()}\n"
                f"{self.describe_waits()}"
            )
        when_s = self._timers[0][0]
        if end_s is not None and when_s > end_s:
            raise TimeLimitReached(
                f"at {end_s:.6f} virtual seconds this has not ended:\n{what()}\n{self.describe_waits()}"
            )
        self._move_to(when_s)

    def _slip(self) -> None:
        """The last callback may have taken until the next timer, which is then behind what is ready."""
        if self._timers and self._timers[0][0] <= self._now_s + self._slip_s:
            if self._slips.random() < SLIP_PROBABILITY:
                self._move_to(self._timers[0][0])

    def _move_to(self, when_s: float) -> None:
        if when_s > self._now_s:
            self._now_s = when_s
            self._turns_at_this_instant = 0
        while self._timers and self._timers[0][0] <= self._now_s:
            self._ready.append(heapq.heappop(self._timers)[2])

    def _count_turn(self, handle: SimHandle) -> None:
        self._turns_at_this_instant += 1
        if self._turns_at_this_instant > LIVELOCK_TURNS:
            raise Livelock(f"{LIVELOCK_TURNS} callbacks at {self._now_s:.6f} s; the last is {handle!r}")

    def describe_waits(self, limit: int = 40) -> str:
        """One line per pending task: its process, name and the innermost await. At most `limit` lines."""
        lines = [_describe_task(task) for task in self.pending_tasks()]
        if len(lines) > limit:
            lines = [*lines[:limit], f"… and {len(lines) - limit} more"]
        return "\n".join(["tasks that wait:", *lines]) if lines else "no task waits"

    # ---- the end

    def end(self) -> None:
        """Cancels what is left, dead processes' tasks too, lets their clean-up run, and closes. What they do
        is of no effect.
        """
        self.is_ending = True
        for _ in range(3):  # a task that swallows one cancellation gets another
            for task in self._tasks:
                task.process = None
                task.cancel()
            self._drain()
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine = task.get_coro()
            if not task.done() and isinstance(coroutine, Coroutine):
                with contextlib.suppress(RuntimeError):  # it ignores that, too
                    coroutine.close()
        self.close()

    def _drain(self) -> None:
        asyncio._set_running_loop(self)
        try:
            for _ in range(LIVELOCK_TURNS):
                if not self._ready:
                    return
                handle = self._ready.popleft()
                handle.process = None
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(None)

    def close(self) -> None:
        self._is_closed = True
        self._ready.clear()
        self._timers.clear()
        self._tasks.clear()

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the simulation's loop is closed")

    def _finalize_asyncgen(self, generator: AsyncGenerator[Any, None]) -> None:
        if not self._is_closed:
            self.create_task(generator.aclose())

    # ---- errors and small duties of an event loop

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        process = CURRENT_PROCESS.get()
        where = f"{process.name}: " if process else ""
        error = context.get("exception")
        source = context.get("task") or context.get("future") or context.get("handle") or ""
        what = f"{context.get('message')}: {error!r} {source!r}"
        self.errors.append(f"{self._now_s:.6f} s {where}{what}{_traceback_text(error)}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def set_exception_handler(self, handler: Any) -> None:
        """Ignored: a simulation fails on every unhandled error."""

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """There is no debug mode: the loop checks what it can always."""

    def is_running(self) -> bool:
        return self._is_running

    def is_closed(self) -> bool:
        return self._is_closed

    async def shutdown_asyncgens(self) -> None:
        """Generators end with the tasks that iterate them."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is no executor."""

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> NoReturn:  # type: ignore[override]
        raise SimulationError(f"a thread for {func!r}: code that the simulator runs uses no threads")

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> NoReturn:
        raise SimulationError(
            f"call_soon_threadsafe({callback!r}): code that the simulator runs uses no threads"
        )


def new_loop() -> VirtualLoop:
    """A loop at second 0. (Type checkers see the I/O methods of asyncio's loops, which raise here, as
    missing.)
    """
    return VirtualLoop()  # type: ignore[abstract]


def _describe_task(task: asyncio.Task[Any]) -> str:
    process = task.process if isinstance(task, SimTask) else None
    place = ""
    awaitable: Any = task.get_coro()
    while awaitable is not None:
        frame = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "ag_frame", None)
        if frame is not None:
            place = (
                f"{frame.f_code.co_qualname} ({frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno})"
            )
        awaitable = getattr(awaitable, "cr_await", None)
    return f"  {process.name if process else '-'}: {task.get_name()} at {place or 'its end'}"


def _traceback_text(error: BaseException | None) -> str:
    if error is None or error.__traceback__ is None:
        return ""
    return "\n" + "".join(traceback.format_exception(error))
