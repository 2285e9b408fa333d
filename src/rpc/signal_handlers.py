"""The user's handlers of signals, kept out of the runtime's own steps.

Python runs a handler between any two steps of the main thread. One that raises there (a time-out made of
SIGALRM) or that calls the API (a SIGTERM that saves something) would meet a table half changed or a frame
half sent: a connection breaks, and calls are lost. In Ray that cannot happen, since its steps are not
Python's. So while a core worker lives, every handler is called through Deferred:

    the main thread is in the user's code, or at rest in a wait ──► at once
    it is in the runtime's code (interruption.py)               ──► the same signal again, AGAIN_S later;
                                                                    after LATE_S at once, whatever that breaks

A driver's SIGINT without a handler of the user's, which raises KeyboardInterrupt, is never late:
Interrupts notes it for the next wait.

The standard library has no place that hears of new handlers. But its `signal` module is Python around the C
module `_signal`, which it looks up at each call: that is replaced in it meanwhile. So also who imported
`signal.signal` before sets handlers through here (a notebook's kernel does, around each cell). What it takes
and gives is what the user set. Handlers that were set before `install` are called through here as well, but
for our own, which know what they do.

A time limit ends with `alarm(0)` or `setitimer`, or with `signal`, which gives what was there before its
handler back. A signal that came before that was meant for the handler, as in Python: so these three call
first what waits. Else it would strike what follows, or, with no handler any more, end the process.

A signal that arrives after the interpreter's last look for one and before the system call of a wait does not
end that call (another thread may have taken it, too). A wake-up descriptor would; but there is one in a
process, and it is asyncio's, or the user's. So a driver's main thread looks every LOOK_S where it waits for
longer (Reactor.look_s): nothing for short waits, two looks a second else.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import contextlib
import functools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType, SimpleNamespace
from typing import Any, Final, TypeGuard

from ray_mono.rpc.interruption import strike_main_thread
from ray_mono.rpc.reactor import Reactor

Handler = Callable[[int, FrameType | None], object]
Setting = Handler | int | None
"""What a signal is set to: code, SIG_DFL or SIG_IGN, or what no Python has set."""

AGAIN_S: Final = 0.002
INTERRUPT_AGAIN_S: Final = 0.01
LATE_S: Final = 2.0
LOOK_S: Final = 0.5
_HARMLESS: Final = ("ray_mono.core_worker.", "asyncio.unix_events")
_OF_TIMERS: Final = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
# Held where a signal is sent again, and where it is decided that it is not.
# A handler may set handlers itself.
_sending = threading.RLock()


class DecidingHandler:
    """The interpreter looks up a handler's `__call__`, which decides here, and calls what that gives:
    so no frame of ours stands in the traceback of what that raises."""

    handler: Handler
    """What the user set, and sees."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor

    @property
    def __call__(self) -> Handler:
        return self.decide(sys._getframe(1))

    def decide(self, frame: FrameType | None) -> Handler:
        """What handles a signal that came while `frame` ran."""
        raise NotImplementedError


class Deferred(DecidingHandler):
    """Stands in the place of a handler of the user's."""

    def __init__(self, handler: Handler, reactor: Reactor) -> None:
        super().__init__(reactor)
        self.handler = handler
        # Since when it waits for its time; None while it does not.
        self._since_s: float | None = None

    def decide(self, frame: FrameType | None) -> Handler:
        while frame is not None and frame.f_globals is globals():
            frame = frame.f_back  # who sets a handler, or a timer, is the user
        reactor, now_s = self.reactor, time.monotonic()
        if not (reactor.is_closed or reactor.may_run_handler(frame)):
            if self._since_s is None:
                self._since_s = now_s
            if now_s - self._since_s < LATE_S:
                return self._again
        self._since_s = None
        return self._run_at_rest if reactor.is_at_rest else self.handler

    def run_waiting(self, signum: int) -> None:
        """Calls the handler now, if it waits. On the main thread, in the user's code."""
        with _sending:
            is_waiting, self._since_s = self._since_s is not None, None
        if is_waiting:
            self.handler(signum, sys._getframe())

    def _run_at_rest(self, signum: int, frame: FrameType | None) -> None:
        self.reactor.run_at_rest(lambda: self.handler(signum, frame))

    def _again(self, signum: int, frame: FrameType | None) -> None:
        # Not by a timer of ours, whose table may be half changed, nor by a thread of threading's, which may
        # hold its locks. Where no thread may be made the handler waits for the user's code, or the
        # next signal.
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(self._send_again, (signum,))

    def _send_again(self, signum: int) -> None:
        time.sleep(AGAIN_S)
        with _sending, contextlib.suppress(ProcessLookupError):
            if self._since_s is not None:
                strike_main_thread(signum)


class InterruptHandler(DecidingHandler):
    """Stands in the place of the interpreter's own handler of SIGINT, which raises KeyboardInterrupt."""

    handler = staticmethod(signal.default_int_handler)

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(reactor)
        self._is_again = False

    def decide(self, frame: FrameType | None) -> Handler:
        reactor = self.reactor
        is_repeated, self._is_again = self._is_again, False
        if is_repeated and not reactor.interrupted:
            return _has_come  # a wait has raised it
        if reactor.is_closed or reactor.takes_interrupt(frame):
            return self.handler
        with reactor.lock:
            reactor.call_later(INTERRUPT_AGAIN_S, self._again)
        return _has_come

    def _again(self) -> None:
        """For code that does not wait."""
        if self.reactor.interrupted and _signal.getsignal(signal.SIGINT) is self:
            self._is_again = True
            strike_main_thread(signal.SIGINT)


def _has_come(signum: int, frame: FrameType | None) -> None: ...


def _is_users(handler: Setting) -> TypeGuard[Handler]:
    """Whether it is code, and not ours, which knows when it may raise; nor an event loop's, which does
    nothing: the loop hears of the signal by its wake-up descriptor, and of one that is sent again a second
    time."""
    is_known = (getattr(handler, "__module__", None) or "").startswith(_HARMLESS)
    return callable(handler) and not isinstance(handler, signal.Handlers | DecidingHandler) and not is_known


def _as_user_set(handler: Setting) -> Setting:
    return handler.handler if isinstance(handler, DecidingHandler) else handler


def install(reactor: Reactor, *, interrupts: bool) -> Callable[[], None]:
    """From now on handlers are deferred. interrupts: SIGINT's own as well. Returns what undoes it: those that
    are set then stay, as the user set them. On another thread than the main one, which may set no handler, it
    leaves them: the user sees his own nevertheless, and who installs next takes them over.
    """
    library = vars(signal)

    def stand_in(signum: int, handler: Setting) -> Setting:
        handler = _as_user_set(handler)
        if interrupts and signum == signal.SIGINT and handler is signal.default_int_handler:
            return InterruptHandler(reactor)
        return Deferred(handler, reactor) if _is_users(handler) else handler

    def handle_waiting(signums: Iterable[int]) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in signums:
                handler = _signal.getsignal(signum)
                if isinstance(handler, Deferred):
                    handler.run_waiting(signum)

    @functools.wraps(_signal.signal)
    def set_handler(signum: int, handler: Setting, /) -> Setting:
        if signum in signal.valid_signals():
            handle_waiting((signum,))
        replaced = _signal.signal(signum, stand_in(signum, handler))
        if isinstance(replaced, InterruptHandler) and handler == signal.SIG_IGN:
            reactor.note_interrupt(False)
        return _as_user_set(replaced)

    @functools.wraps(_signal.getsignal)
    def get_handler(signum: int, /) -> Setting:
        return _as_user_set(_signal.getsignal(signum))

    def handling_first(set_timer: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(set_timer)
        def set_later(*args: Any) -> Any:
            handle_waiting(_OF_TIMERS)
            return set_timer(*args)

        return set_later

    module = SimpleNamespace(**{**vars(_signal), "signal": set_handler, "getsignal": get_handler})
    replacements = {
        "_signal": module,
        "alarm": handling_first(signal.alarm),
        "setitimer": handling_first(signal.setitimer),
    }
    before = {**{name: library[name] for name in replacements}, "_signal": _signal}

    def uninstall() -> None:
        is_main = threading.current_thread() is threading.main_thread()
        for name, replacement in replacements.items():
            if library[name] is replacement and (is_main or name != "_signal"):
                library[name] = before[name]
        if is_main:
            for signum in signal.valid_signals():
                handler = _signal.getsignal(signum)
                if isinstance(handler, DecidingHandler) and (
                    handler.reactor is reactor or handler.reactor.is_closed
                ):
                    _signal.signal(signum, handler.handler)

    if threading.current_thread() is threading.main_thread():
        for signum in signal.valid_signals():
            handler = _signal.getsignal(signum)
            if stand_in(signum, handler) is not handler:
                set_handler(signum, handler)
    library.update(replacements)
    if interrupts:
        reactor.look_for_signals(LOOK_S)
    return uninstall
