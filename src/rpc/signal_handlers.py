"""The user's handlers of signals, kept out of the runtime's own steps.

Python runs a handler between any two steps of the main thread. One that raises there (a time-out made of SIGALRM) or that calls the
API (a SIGTERM that saves something) would meet a table half changed or a frame half sent: a connection breaks, and calls are lost. In
Ray that cannot happen, since its steps are not Python's. So while a core worker lives, every handler is called through Deferred:

    the main thread is in the user's code, or at rest in a wait ──► at once
    it is in the runtime's code (interruption.py) ──► the same signal again, AGAIN_S later; after LATE_S at once, whatever that breaks

The standard library has no place that hears of new handlers: so signal.signal and signal.getsignal are replaced meanwhile. What they
take and give is what the user set. What was imported from there before (`from signal import signal`) sets handlers as ever. Handlers
that were set before `install` are called through Deferred as well, but for our own, which know what they do.

A signal that arrives after the interpreter's last look for one and before the system call of a wait does not end that call (another
thread may have taken it, too). A wake-up descriptor would; but there is one in a process, and it is asyncio's, or the user's. So a
driver's main thread looks every LOOK_S where it waits for longer (Reactor.look_s): nothing for short waits, two looks a second else.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from ray_mono.rpc.interruption import strike_main_thread
from ray_mono.rpc.reactor import Reactor

Handler = Callable[[int, FrameType | None], Any]

AGAIN_S: Final = 0.002
LATE_S: Final = 2.0
LOOK_S: Final = 0.5
_HARMLESS: Final = ("ray_mono.core_worker.", "asyncio.unix_events")


class DecidingHandler:
    """The interpreter looks up a handler's `__call__`, which decides here, and calls what that gives: so no frame of ours stands in the
    traceback of what that raises."""

    @property
    def __call__(self) -> Handler:
        return self.decide(sys._getframe(1))

    def decide(self, frame: FrameType | None) -> Handler:
        """What handles a signal that came while `frame` ran."""
        raise NotImplementedError


class Deferred(DecidingHandler):
    """Stands in a handler's place."""

    def __init__(self, handler: Handler, reactor: Reactor) -> None:
        self.handler = handler
        self._reactor = reactor
        # Since when it waits for its time; None while it does not.
        self._since_s: float | None = None

    def decide(self, frame: FrameType | None) -> Handler:
        reactor, now_s = self._reactor, time.monotonic()
        if not (reactor.is_closed or reactor.may_run_handler(frame)):
            if self._since_s is None:
                self._since_s = now_s
            if now_s - self._since_s < LATE_S:
                return _again
        self._since_s = None
        return self._run_at_rest if reactor.is_at_rest else self.handler

    def _run_at_rest(self, signum: int, frame: FrameType | None) -> None:
        self._reactor.run_at_rest(lambda: self.handler(signum, frame))


def _again(signum: int, frame: FrameType | None) -> None:
    # Not by a timer of ours, whose table may be half changed, nor by a thread of threading's, which may hold its locks.
    _thread.start_new_thread(_send_again, (signum,))


def _send_again(signum: int) -> None:
    time.sleep(AGAIN_S)
    with contextlib.suppress(ProcessLookupError):
        strike_main_thread(signum)


def _is_users(handler: Any) -> bool:
    """Whether it is code, and not ours, which knows when it may raise; nor an event loop's, which does nothing: the loop hears of the
    signal by its wake-up descriptor, and of one that is sent again a second time."""
    is_known = (getattr(handler, "__module__", None) or "").startswith(_HARMLESS)
    return callable(handler) and not isinstance(handler, signal.Handlers | Deferred) and not is_known


def _users(handler: Any) -> Any:
    return handler.handler if isinstance(handler, Deferred) else handler


def install(reactor: Reactor) -> Callable[[], None]:
    """From now on handlers are deferred. Returns what undoes it: those that are set then stay, as the user set them."""
    set_handler, get_handler = signal.signal, signal.getsignal

    @functools.wraps(set_handler)
    def set_deferred(signalnum: Any, handler: Any) -> Any:
        return _users(set_handler(signalnum, Deferred(handler, reactor) if _is_users(handler) else handler))

    @functools.wraps(get_handler)
    def get_users(signalnum: Any) -> Any:
        return _users(get_handler(signalnum))

    def uninstall() -> None:
        if signal.signal is set_deferred:
            signal.signal, signal.getsignal = set_handler, get_handler
        if threading.current_thread() is threading.main_thread():
            for signum in signal.valid_signals():
                handler = get_handler(signum)
                if isinstance(handler, Deferred) and handler._reactor is reactor:
                    set_handler(signum, handler.handler)

    if threading.current_thread() is threading.main_thread():
        for signum in signal.valid_signals():
            handler = get_handler(signum)
            if _is_users(handler):
                set_deferred(signum, handler)
    signal.signal, signal.getsignal = set_deferred, get_users
    return uninstall
