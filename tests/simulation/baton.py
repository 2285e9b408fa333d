"""Threads of simulated processes: real ones, of which one runs at a time.

The core worker blocks the thread that calls it, so what calls it needs a thread of its own. Each thread here
runs only while it holds the baton. The loop's thread hands it over, waits, and gets it back when that thread
parks (it waits, or sleeps in virtual time) or ends. So no two threads ever race, and a run repeats exactly.
(A switch there and back takes some 15 µs, which is a tenth of what happens between two: a library of
coroutines would save nothing that counts.)

A thread runs in its process's context. When the process is killed its threads run no further: each is
unwound, outside of the run, by Killed, which nothing of the product's swallows for long; what it does on its
way out reaches nobody, since its connections are gone.
"""

from __future__ import annotations

import contextvars
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from tests.simulation.handles import CURRENT_PROCESS, LiveProcess, SimHandle
from tests.simulation.loop import SimulationError, VirtualLoop

PLACES_MAX = 6
"""Functions that are named for each thread that waits."""
WAITING = ("baton.py", "reactor.py", "machine.py")
"""Where a thread waits itself, which says nothing."""
UNWINDINGS_MAX = 100
"""How often a thread of a dead process may wait for something anew before the run gives up on it."""


class Killed(BaseException):
    """The process of this thread is dead."""


class Baton:
    """The threads of one simulation."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.current: SimThread | None = None
        """Who has the baton; None: the loop's thread."""
        self._back = threading.Lock()
        self._back.acquire()
        # Those that have not ended, in the order of their starts.
        self._threads: dict[SimThread, None] = {}

    def start(
        self, process: LiveProcess, target: Callable[[], None], name: str, is_main: bool = False
    ) -> SimThread:
        """A thread of a process; it runs when the others of this instant have run."""
        thread = SimThread(self, process, target, name, is_main)
        self._threads[thread] = None
        thread.wake()
        return thread

    def running(self) -> SimThread:
        """Raises SimulationError on the loop's thread, which must never wait."""
        if self.current is None:
            raise SimulationError("what the loop runs would block")
        return self.current

    def process_died(self, process: LiveProcess) -> None:
        """Its threads are unwound, when whoever kills it is done."""
        self.loop.call_soon(self._unwind, process, context=contextvars.Context())

    def end(self) -> None:
        """The simulation is over: no thread is left behind."""
        for thread in list(self._threads):
            thread.process.is_alive = False
        self._unwind(None)

    def _unwind(self, process: LiveProcess | None) -> None:
        for thread in list(self._threads):
            if process is None or thread.process is process:
                thread.resume()

    def hand_over(self, thread: SimThread, go: threading.Lock) -> None:
        """On the loop's thread: until `thread` gives the baton back."""
        before, self.current = self.current, thread
        go.release()
        self._back.acquire()
        self.current = before

    def hand_back(self) -> None:
        self._back.release()

    def __contains__(self, thread: SimThread) -> bool:
        """Whether it has not ended."""
        return thread in self._threads

    def ended(self, thread: SimThread) -> None:
        self._threads.pop(thread, None)

    def describe(self) -> str:
        """Who waits where: one line for each."""
        return "\n".join(
            f"  {thread.process.name}: {thread.name}{thread.place()}" for thread in self._threads
        )


class SimThread:
    """One of them. Made by Baton.start."""

    def __init__(
        self, baton: Baton, process: LiveProcess, target: Callable[[], None], name: str, is_main: bool
    ) -> None:
        self.process = process
        self.name = name
        self.is_main = is_main
        self._baton = baton
        self._target = target
        self._go = threading.Lock()
        self._go.acquire()
        # Scheduled, or about to run.
        self._is_woken = False
        self._has_started = False
        self._num_killed = 0
        self._ident = 0
        self._failure: BaseException | None = None
        self._context = contextvars.Context()
        self._context.run(CURRENT_PROCESS.set, process)
        # Of what schedules it: its own is entered while it lives.
        self._outer = self._context.copy()
        # Signals that came and were not seen to, by whoever takes them.
        self._signals: list[Callable[[int, Any], None]] = []

    def place(self) -> str:
        """Where it is parked, for people: the innermost functions."""
        frame = sys._current_frames().get(self._ident)
        names: list[str] = []
        while frame is not None and len(names) < PLACES_MAX:
            file = os.path.basename(frame.f_code.co_filename)
            if file not in WAITING:
                names.append(f"{frame.f_code.co_qualname} ({file}:{frame.f_lineno})")
            frame = frame.f_back
        return "".join(f" < {name}" for name in names)

    # ---- on any thread that has the baton

    def wake(self) -> None:
        """It goes on, if it is parked, at this instant."""
        if not self._is_woken:
            self._is_woken = True
            self._baton.loop.call_soon(self.resume, context=self._outer)

    def strike(self, handler: Callable[[int, Any], None]) -> None:
        """A SIGINT: handler(signum, frame) runs where it waits."""
        self._signals.append(handler)
        self.wake()

    # ---- on the loop's thread

    def resume(self) -> None:
        """Runs it until it parks or ends. Raises what left it."""
        self._is_woken = False
        if self not in self._baton:
            return
        if not self._has_started:
            if not self.process.is_alive:
                self._baton.ended(self)
                return
            self._has_started = True
            threading.Thread(target=self._run, name=self.name, daemon=True).start()
        self._baton.hand_over(self, self._go)
        failure, self._failure = self._failure, None
        if failure is not None and self.process.is_alive:
            raise failure

    # ---- on this thread

    def park(self, until_s: float | None = None) -> None:
        """Until it is woken, or that time. It may be woken for nothing. Raises Killed, and what a signal's
        handler raises."""
        if not self.process.is_alive:
            self._die()
        loop = self._baton.loop
        timer: SimHandle | None = None
        if until_s is not None:
            timer = loop.call_at(until_s, self.wake, context=self._outer)
        self._baton.hand_back()
        self._go.acquire()
        if timer is not None:
            timer.cancel()
        if not self.process.is_alive:
            self._die()
        while self._signals:
            self._signals.pop(0)(signal.SIGINT, None)

    def _die(self) -> NoReturn:
        self._num_killed += 1
        if self._num_killed > UNWINDINGS_MAX:
            self._baton.loop.errors.append(f"{self.name} of {self.process.name} is dead and does not end")
            self._baton.ended(self)
            self._baton.hand_back()
            self._go.acquire()  # for ever
        raise Killed

    def sleep(self, seconds: float) -> None:
        """In virtual time."""
        end_s = self._baton.loop.time() + seconds
        self.park(end_s)
        while self._baton.loop.time() < end_s:
            self.park(end_s)

    def _run(self) -> None:
        self._ident = threading.get_ident()
        self._go.acquire()
        try:
            self._context.run(self._target)
        except Killed:
            pass
        except BaseException as error:
            self._failure = error
        del self._target
        self._baton.ended(self)
        self._baton.hand_back()
