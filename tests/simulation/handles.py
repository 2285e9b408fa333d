"""The pieces that a virtual loop schedules: callbacks, futures and tasks that know their process and their
place.

All of them order and hash by counters of their loop, never by address, so that runs repeat. A callback
belongs to the process in whose context it was scheduled, and does nothing once that process is dead.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol


class LiveProcess(Protocol):
    """What the loop knows of a simulated process."""

    name: str
    is_alive: bool
    stopped_until_s: float
    """SIGSTOP until then: what it would do before, it does then."""
    has_run: bool
    """Set when a callback of the process runs; whoever looks at processes after each step resets it."""


CURRENT_PROCESS: contextvars.ContextVar[LiveProcess | None] = contextvars.ContextVar(
    "CURRENT_PROCESS", default=None
)


class SimHandle(asyncio.TimerHandle):
    """A scheduled callback, inert once its process is dead."""

    def __init__(
        self,
        when_s: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        context = contextvars.copy_context() if context is None else context
        super().__init__(when_s, callback, args, loop, context)
        self.loop: Any = loop
        self.process = context.get(CURRENT_PROCESS)

    def _run(self) -> None:
        if self.process is None:
            super()._run()
        elif self.process.stopped_until_s > self.loop.time():
            self.loop.put_off(self, self.process.stopped_until_s)
        elif self.process.is_alive:
            self.process.has_run = True
            super()._run()


class SimFuture(asyncio.Future[Any]):
    """A future that hashes by its loop's counter."""

    number: int = 0

    def __hash__(self) -> int:
        return self.number


class SimTask(asyncio.Task[Any]):
    """A task that hashes by its loop's counter, and knows the process that it runs in."""

    def __init__(
        self,
        coroutine: Generator[Any, None, Any] | Coroutine[Any, Any, Any],
        number: int,
        loop: asyncio.AbstractEventLoop,
        name: str | None,
        context: contextvars.Context | None,
    ) -> None:
        # First, because asyncio's __init__ schedules the first step and enters the task into sets.
        self.number = number
        self.process = (contextvars.copy_context() if context is None else context).get(CURRENT_PROCESS)
        super().__init__(coroutine, loop=loop, name=name or f"Task-{number}", context=context)

    def __hash__(self) -> int:
        return self.number
