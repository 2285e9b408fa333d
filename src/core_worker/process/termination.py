"""SIGTERM to a worker or a driver: it ends in order, as in Ray.

In a worker it depends on what the worker does when the signal comes:

    user code on the main thread       SystemExit is raised in it, once; its call is not answered
    nothing                            the worker ends
    calls of an actor beside others    these run to their end, however long that takes, and are answered
    it ends already                    the signal has no effect: the end goes on

From the first signal on no other call begins. At its end the worker dies of the signal, which its cluster
takes for a crash.

In a driver SystemExit(15) is raised on the main thread, unless the program handles the signal. If the program
catches it and goes on, the next signal raises it again. Signals have no effect while the driver leaves its
cluster, nor while the process ends. A program that goes on after it has left is ended by a signal as if it
had never joined.

In a process that user code forks, SIGTERM does what it does where nobody handles it. That holds also for a
signal that comes before the fork has returned; Python would forget it, since it has a handler for it.

Where our own state may be half changed nothing is raised (rpc/interruption.py). A thread sends the signal
again each AGAIN_S, until it strikes user code, or a wait of ours.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ray_mono.common.raw_error import is_a, with_contexts
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_execution.interrupter import AGAIN_S
from ray_mono.core_worker.task_execution.running import CALLS_POLL_S, Running
from ray_mono.rpc.interruption import strike_main_thread

logger = logging.getLogger(__name__)


# By thread that forks: the signals that it blocked before.
_held = threading.local()


def _hold() -> None:
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_go() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _let_go_in_child() -> None:
    if isinstance(
        getattr(signal.getsignal(signal.SIGTERM), "__self__", None), SafeExit
    ):  # the user has set no handler
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_go()


@functools.cache
def _see_to_forks() -> None:
    os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go_in_child)


def _is_ending() -> bool:
    """Whether the program is in its last steps: a SystemExit passes through it, or its main thread ended."""
    passing = with_contexts(sys.exception())
    return any(is_a(error, SystemExit) for error in passing) or not threading.main_thread().is_alive()


class SafeExit:
    """A handler of SIGTERM for the main thread. It raises SystemExit(status) where it may: once, or with
    strikes_again once for each signal."""

    def __init__(self, env: Environment, status: int, strikes_again: bool) -> None:
        self._env = env
        self._status = status
        self._strikes_again = strikes_again
        self.is_wanted = False
        self.has_struck = False
        # The next signal is no new one: _insist sends the last one again.
        self._is_echo = False

    def install(self) -> None:
        """From now on SIGTERM comes here."""
        signal.signal(signal.SIGTERM, self.on_signal)
        _see_to_forks()

    def on_signal(self, signum: int, frame: Any) -> None:
        """The handler. Raises SystemExit."""
        is_echo, self._is_echo = self._is_echo, False
        is_first = not self.is_wanted
        if is_first:
            self.is_wanted = True
            self.begin()
        if self.has_struck and self._strikes_again and not is_echo:
            is_first, self.has_struck = True, False
        if self.has_struck:
            return
        if self._env.reactor.may_interrupt(frame):
            self.strike()
            raise SystemExit(self._status)
        if is_first:
            # Not by threading: the interrupted code may hold its locks right now. Where no thread may be made
            # the end waits for the next signal, or is a SIGKILL.
            with contextlib.suppress(RuntimeError):
                _thread.start_new_thread(self._insist, ())

    def begin(self) -> None:
        """Called at the first signal."""

    def strike(self) -> None:
        """Called when it raises SystemExit, or will not raise it any more."""
        self.has_struck = True

    def _insist(self) -> None:
        time.sleep(AGAIN_S)
        while not self.has_struck:
            self._is_echo = True
            strike_main_thread(signal.SIGTERM)
            time.sleep(AGAIN_S)


class Termination(SafeExit):
    """The end of one worker by SIGTERM."""

    def __init__(self, env: Environment, running: Running) -> None:
        super().__init__(env, status=1, strikes_again=False)
        self._running = running

    def begin(self) -> None:
        self._running.terminate()

    def strike(self) -> None:
        super().strike()
        self._running.strike()

    def await_calls(self) -> None:
        """No call begins any more. After SIGTERM, waits for the calls that an actor runs on other threads."""
        self.strike()
        calls = self._running.calls
        if self.is_wanted and self._running.actor is not None:
            logger.info("SIGTERM: ends after the %d calls that run", len(calls))
            while calls:
                time.sleep(CALLS_POLL_S)


class DriverExit(SafeExit):
    """The end of one driver by SIGTERM, until it leaves. Does nothing if its program handles the signal, or
    if it connects on another thread than the main one."""

    def __init__(self, env: Environment, at_shutdown: Callable[[Callable[[], None]], None]) -> None:
        """at_shutdown(step) has a step run when the driver leaves, before all others."""
        super().__init__(env, status=int(signal.SIGTERM), strikes_again=True)
        before = signal.getsignal(signal.SIGTERM)
        earlier = getattr(before, "__self__", None)
        is_free = before is signal.SIG_DFL or (isinstance(earlier, DriverExit) and earlier.has_left)
        if is_free and threading.current_thread() is threading.main_thread():
            self.install()
            at_shutdown(self._restore)

    @property
    def has_left(self) -> bool:
        """Whether the driver has left. The handler may still be there, where _restore could not take it
        away."""
        return self._env.reactor.is_closed

    def on_signal(self, signum: int, frame: Any) -> None:
        """The handler. Raises SystemExit, or ends the process."""
        if self.has_left and not self._is_echo and not _is_ending():
            die()
        super().on_signal(signum, frame)

    def _restore(self) -> None:
        """Takes the handler away. Not after a signal, since _insist may have sent another. Nor on another
        thread, which may not set handlers."""
        self.has_struck, self._strikes_again = True, False
        is_ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) == self.on_signal
        )
        if is_ours and not self.is_wanted:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def die() -> NoReturn:
    """Dies of SIGTERM as if nobody handled it, so that whoever waits for this process sees the signal."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(1)
