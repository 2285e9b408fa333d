"""The event loop of a simulated async actor: asyncio's, in virtual time, on a thread that has the baton while
it runs.

It sleeps as any thread here: parked, until its next timer or until another thread leaves it something.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.baton import Baton, Killed, SimThread
from tests.simulation.handles import SimHandle
from tests.simulation.loop import SimulationError, VirtualLoop


class ActorLoop(VirtualLoop):
    """One of them."""

    def __init__(self, baton: Baton) -> None:
        super().__init__()
        self._baton = baton
        # While it runs.
        self._thread: SimThread | None = None
        self._is_stopped = False

    def time(self) -> float:
        return self._baton.loop.time()

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> SimHandle:
        handle = self.call_soon(callback, *args, context=context)
        if self._thread is not None:
            self._thread.wake()
        return handle

    def run_forever(self) -> None:
        thread = self._thread = self._baton.running()
        self._is_stopped = False
        asyncio._set_running_loop(self)
        try:
            while not self._is_stopped:
                self._run_ready()
                if not (self._ready or self._is_stopped):
                    self._park(thread)
        except Killed:
            self._abandon()
            raise
        finally:
            self._thread = None
            asyncio._set_running_loop(None)

    def _abandon(self) -> None:
        """Its process is dead. What coroutines do on their way out they do here, where it reaches nobody, and
        not when memory is collected."""
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine = task.get_coro()
            if not task.done() and isinstance(coroutine, Coroutine):
                with contextlib.suppress(BaseException):
                    coroutine.close()
        self.close()

    def stop(self) -> None:
        self._is_stopped = True

    def _run_ready(self) -> None:
        self._now_s = self.time()
        while self._timers and self._timers[0][0] <= self._now_s:
            self._ready.append(self._pop_timer())
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()
        if self.errors:
            raise SimulationError("\n".join(self.errors))

    def _pop_timer(self) -> SimHandle:
        return heapq.heappop(self._timers)[2]

    def _park(self, thread: SimThread) -> None:
        while self._timers and self._timers[0][2].cancelled():
            self._pop_timer()
        thread.park(self._timers[0][0] if self._timers else None)


class _Asyncio:
    """asyncio, with another kind of new loops."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton

    def new_event_loop(self) -> ActorLoop:
        return ActorLoop(self._baton)  # type: ignore[abstract]

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


def actor_asyncio(baton: Baton) -> Any:
    return _Asyncio(baton)
