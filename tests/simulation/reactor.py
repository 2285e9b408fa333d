"""The core worker's reactor in a simulation: environment.ReactorInterface over the virtual loop.

What comes in is handled on the loop's thread, under the lock, as the real reactor's background thread does
it. Threads of the process (baton.py) wait in `wait`. A turn ends as a real one does: what finalizers and
others left is drained, what was written goes out, and whose wait is over goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from ray_mono.rpc.reactor import LATE_FLUSH_S
from tests.simulation.baton import Baton, Killed, SimThread
from tests.simulation.handles import SimHandle
from tests.simulation.loop import SimulationError
from tests.simulation.process import SimProcess


class SimLock:
    """An RLock that nobody ever waits for: who parks does not hold it."""

    def __init__(self) -> None:
        self._owner = 0
        self._depth = 0

    def acquire(self) -> bool:
        me = threading.get_ident()
        if self._owner not in (0, me):
            raise SimulationError("a thread waits while it holds the core worker's lock")
        self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = 0

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _is_owned(self) -> bool:
        return self._owner == threading.get_ident()


class SimReactor:
    """Of one simulated driver or worker."""

    def __init__(self, baton: Baton, process: SimProcess) -> None:
        self.lock = SimLock()
        self.is_closed = False
        self.interrupted = False
        self.process = process
        self._baton = baton
        self._loop = baton.loop
        self._dirty: list[Any] = []
        self._served: list[tuple[Sequence[Any], Callable[[], None]]] = []
        # Threads that wait, and what for.
        self._waiting: dict[SimThread, Any] = {}
        self._is_in_turn = False
        self._is_woken = False
        process.on_death(lambda _reason: self.close())

    # ---- turns

    def turn(self, handle: Callable[..., None], *args: Any) -> None:
        """One thing that happens, handled on the loop's thread; then the end of the turn."""
        with self.lock:
            self._is_in_turn = True
            try:
                handle(*args)
                self._settle()
            except Killed:
                return  # it ended its process
            finally:
                self._is_in_turn = False
        self._look_at_waits()

    def _settle(self) -> None:
        """Lock held."""
        while due := [drain for queues, drain in self._served if any(queues)]:
            due[0]()
        self.flush()

    def _look_at_waits(self) -> None:
        for thread, waiter in self._waiting.items():
            if waiter.done or self.is_closed:
                thread.wake()

    def _end_of_nothing(self) -> None:
        self._is_woken = False

    # ---- ReactorInterface

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> SimHandle:
        return self._loop.call_later(delay_s, self._fire, callback, context=self.process.context.copy())

    def _fire(self, callback: Callable[[], None]) -> None:
        if not self.is_closed:
            self.turn(callback)

    def mark_dirty(self, connection: Any, rings: bool = True) -> None:
        self._dirty.append(connection)
        if rings:
            self.wake()

    def flush(self) -> None:
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                connection.flush()

    def flush_soon(self) -> None:
        self.call_later(LATE_FLUSH_S, lambda: None)

    def take_turn(self) -> None:
        """What has come is read on the loop's thread. What was written goes now."""
        with self.lock:
            self._settle()

    def hand_over(self) -> None:
        """The loop's thread reads always."""

    def wake(self) -> None:
        if not (self._is_in_turn or self._is_woken or self.is_closed or self._loop.is_closed()):
            self._is_woken = True
            self._loop.call_soon(self.turn, self._end_of_nothing, context=self.process.context.copy())

    def serve_queues(self, queues: Sequence[Any], drain: Callable[[], None]) -> None:
        self._served.append((queues, drain))

    def wait(self, waiter: Any, timeout_s: float | None = None) -> bool:
        if self.lock._is_owned():
            raise SimulationError("a wait under the core worker's lock")
        thread = self._baton.running()
        with self.lock:
            self._settle()
        self._look_at_waits()
        self._raise_on(thread)
        end_s = None if timeout_s is None else self._loop.time() + timeout_s
        self._waiting[thread] = waiter
        try:
            while not waiter.done and not self.is_closed:
                thread.park(end_s)
                self._raise_on(thread)
                if end_s is not None and self._loop.time() >= end_s:
                    break
        finally:
            del self._waiting[thread]
        return bool(waiter.done)

    def rest_in(self, wait: Callable[[float | None], bool], timeout_s: float | None) -> bool:
        raise SimulationError("a wait of Python's would hold up the loop")

    def raise_if_interrupted(self) -> None:
        if self._baton.current is not None:
            self._raise_on(self._baton.current)

    def _raise_on(self, thread: SimThread) -> None:
        if self.interrupted and thread.is_main:
            self.interrupted = False
            raise KeyboardInterrupt

    def may_interrupt(self, frame: Any) -> bool:
        """A signal comes where a thread is parked: at rest, or in the user's code."""
        return True

    def note_interrupt(self, is_wanted: bool = True) -> None:
        self.interrupted = is_wanted

    def close(self) -> None:
        if self.process.is_alive and not self.is_closed:
            self.flush()
        self.is_closed = True
        self._look_at_waits()

    def abandon(self) -> None:
        raise SimulationError("no process forks here")
