"""SIGTERM to a worker or a driver: its end is in order, as in Ray.

A worker, for its cluster, is then killed by that signal, which is a crash:

    user code on the main thread       SystemExit is raised in it, once; its call is not answered
    nothing to do                      the worker ends
    calls of an actor beside others    run to their end, however long that takes, and are answered
    the end itself, a second SIGTERM   nothing: the end goes on

From the first signal on no other call begins.

In a driver SystemExit(15) is raised on the main thread, unless the program handles the signal. If the program
catches it and goes on, the next signal strikes again. While the driver leaves its cluster they have no
effect, nor while the process ends. A program that goes on after it has left is ended by them as if it had
never joined.

A process that user code forks is not meant: there SIGTERM does what it does where nobody handles it, also
when it comes before the fork has returned, when Python forgets signals that it has a handler for.

Where our own state may be half changed nothing is raised (rpc/interruption.py): the signal is sent again
after AGAIN_S, by a thread, until it strikes user code or rest.
"""

from __future__ import annotations

import _thread
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
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.rpc.interruption import strike_main_thread

logger = logging.getLogger(__name__)

CALLS_POLL_S = 0.01


# Of each thread that forks: what it blocked before.
_held = threading.local()


def _hold() -> None:
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_go() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _let_go_in_child() -> None:
    if isinstance(
        getattr(signal.getsignal(signal.SIGTERM), "__self__", None), SafeExit
    ):  # no handler of the user's
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_go()


@functools.cache
def _see_to_forks() -> None:
    os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go_in_child)


def _is_ending() -> bool:
    """Whether the program is in its last steps: what it does while a SystemExit passes through it, or at
    exit."""
    passing = with_contexts(sys.exception())
    return any(is_a(error, SystemExit) for error in passing) or not threading.main_thread().is_alive()


class SafeExit:
    """A handler of SIGTERM for the main thread. Raises SystemExit(status) where it may: once, or once a
    signal."""

    def __init__(self, env: Environment, status: int, strikes_again: bool) -> None:
        self._env = env
        self._status = status
        self._strikes_again = strikes_again
        self.is_wanted = False
        self.has_struck = False
        # The next signal is the last one, sent again.
        self._is_echo = False

    def install(self) -> None:
        """From here on SIGTERM comes here."""
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
            _thread.start_new_thread(self._insist, ())  # threading's own may hold its locks right now

    def begin(self) -> None:
        """At the first signal."""

    def strike(self) -> None:
        """It raises SystemExit, or will not any more."""
        self.has_struck = True

    def _insist(self) -> None:
        time.sleep(AGAIN_S)
        while not self.has_struck:
            self._is_echo = True
            strike_main_thread(signal.SIGTERM)
            time.sleep(AGAIN_S)


class Termination(SafeExit):
    """Of one worker."""

    def __init__(self, env: Environment, running: Running) -> None:
        super().__init__(env, status=1, strikes_again=False)
        self._running = running

    def begin(self) -> None:
        self._running.terminate()

    def strike(self) -> None:
        super().strike()
        self._running.strike()

    def await_calls(self) -> None:
        """No call begins any more: those that an actor runs on other threads end."""
        self.strike()
        calls = self._running.calls
        if self.is_wanted and self._running.actor is not None:
            logger.info("SIGTERM: ends after the %d calls that run", len(calls))
            while calls:
                time.sleep(CALLS_POLL_S)


class DriverExit(SafeExit):
    """Of a driver, until it leaves. Nothing where its program handles the signal, or this is not the main
    thread."""

    def __init__(self, env: Environment, at_shutdown: Callable[[Callable[[], None]], None]) -> None:
        """at_shutdown(step): has a step run when the driver leaves, before all others."""
        super().__init__(env, status=int(signal.SIGTERM), strikes_again=True)
        before = signal.getsignal(signal.SIGTERM)
        earlier = getattr(before, "__self__", None)
        is_free = before is signal.SIG_DFL or (isinstance(earlier, DriverExit) and earlier.has_left)
        if is_free and threading.current_thread() is threading.main_thread():
            self.install()
            at_shutdown(self._restore)

    @property
    def has_left(self) -> bool:
        """The handler stays where it could not be taken away: see _restore."""
        return self._env.reactor.is_closed

    def on_signal(self, signum: int, frame: Any) -> None:
        """The handler. Raises SystemExit, or ends the process."""
        if self.has_left and not self._is_echo and not _is_ending():
            die()
        super().on_signal(signum, frame)

    def _restore(self) -> None:
        """Not after a signal: _insist may have sent another. Nor on another thread, which may set no handler."""
        self.has_struck, self._strikes_again = True, False
        is_ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) == self.on_signal
        )
        if is_ours and not self.is_wanted:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def die() -> NoReturn:
    """What SIGTERM does where nobody handles it: whoever waits for this process sees the signal."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(1)
