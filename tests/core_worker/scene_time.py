"""Time that passes when a test says so: the reactor and the clock of a scene (scene.py)."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from typing import Any


class WouldHang(Exception):
    """A wait that nothing in the scene could end."""


FUTURES_S = 30.0


def ended(future: concurrent.futures.Future[Any]) -> concurrent.futures.Future[Any]:
    """Waits for the thread of futures, since no time of a scene passes meanwhile."""
    assert concurrent.futures.wait([future], FUTURES_S).done, "a future does not end"
    return future


class SceneTimer:
    def __init__(self, time_s: float, callback: Callable[[], None]) -> None:
        self.time_s = time_s
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class SceneReactor:
    """An environment.ReactorInterface whose time passes when a test says so, and its Clock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_closed = False
        self.interrupted = False
        self.has_hung = False
        """Something would have waited for ever, whatever became of the error."""
        self.now_s = 1000.0
        self.timers: list[SceneTimer] = []
        self.num_flushes = 0
        self.is_flushed_later = False
        self._dirty: list[Any] = []
        self._served: list[tuple[Sequence[Any], Callable[[], None]]] = []
        # Given to a wait: what happens meanwhile. Runs once; the next wait has the next.
        self.meanwhile: list[Callable[[], None]] = []

    # ---- the clock

    def time_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return 1e9 + self.now_s

    def awake_or_asleep_s(self) -> float:
        return self.now_s

    # ---- the reactor

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> SceneTimer:
        timer = SceneTimer(self.now_s + delay_s, callback)
        self.timers.append(timer)
        return timer

    def mark_dirty(self, connection: Any, rings: bool = True) -> None:
        assert self.lock._is_owned()  # type: ignore[attr-defined]
        self._dirty.append(connection)

    def flush(self) -> None:
        self.num_flushes += 1
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            connection.flush()

    def flush_soon(self) -> None:
        self.is_flushed_later = True

    def wake(self) -> None: ...

    def take_turn(self) -> None:
        self.flush()

    def hand_over(self) -> None: ...

    def serve_queues(self, queues: Sequence[Any], drain: Callable[[], None]) -> None:
        self._served.append((queues, drain))

    def turn(self) -> None:
        """The end of a turn: what was left in the queues is seen to, what is buffered goes."""
        with self.lock:
            for queues, drain in self._served:
                if any(queues):
                    drain()
            self.flush()

    def fire(self, until_s: float) -> None:
        """Every timer until then, in the order of their times."""
        while due := [
            timer for timer in self.timers if timer.callback is not None and timer.time_s <= until_s
        ]:
            first = min(due, key=lambda timer: timer.time_s)
            self.timers.remove(first)
            self.now_s = max(self.now_s, first.time_s)
            callback, first.callback = first.callback, None
            with self.lock:
                assert callback is not None
                callback()
            self.turn()
        self.timers = [timer for timer in self.timers if timer.callback is not None]
        self.now_s = max(self.now_s, until_s)

    def wait(self, waiter: Any, timeout_s: float | None = None) -> bool:
        """Plays what the test said happens meanwhile, then lets time pass until the time-out. Raises
        WouldHang without one."""
        return self._pass(lambda: bool(waiter.done), timeout_s)

    def rest_in(self, wait: Callable[[float | None], bool], timeout_s: float | None) -> bool:
        """The same for a wait of Python's. What other threads do, time does not wait for."""
        return self._pass(lambda: wait(0.0), timeout_s)

    def _pass(self, is_done: Callable[[], bool], timeout_s: float | None) -> bool:
        self.turn()
        while not is_done() and self.meanwhile and not self.is_closed:
            self.meanwhile.pop(0)()
            self.turn()
        self.raise_if_interrupted()
        if not is_done() and not self.is_closed:
            if timeout_s is None:
                self.has_hung = True
                raise WouldHang
            self.fire(self.now_s + timeout_s)
        return is_done()

    def raise_if_interrupted(self) -> None:
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt

    def may_interrupt(self, frame: Any) -> bool:
        return True

    def note_interrupt(self, is_wanted: bool = True) -> None:
        self.interrupted = is_wanted

    def close(self) -> None:
        self.is_closed = True

    def abandon(self) -> None:
        self.is_closed = True
