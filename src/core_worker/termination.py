"""SIGTERM to a worker: it ends in order, as in Ray, and for its cluster it is killed by that signal, which is a crash.

    user code on the main thread       SystemExit is raised in it, once; its call is not answered
    nothing to do                      the worker ends
    calls of an actor beside others    run to their end, however long that takes, and are answered
    the end itself, a second SIGTERM   nothing: the end goes on

From the first signal on no other call begins. Where our own state may be half changed nothing is raised (rpc/interruption.py): the
signal is sent again after AGAIN_S, by a thread, until it strikes user code or rest.

A process that user code forks dies of SIGTERM, as if it had no handler. Python forgets the signals that come to a child before it has
set itself up, so SIGTERM waits in the kernel until the child has the default action.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.core_worker.executor import Executor

logger = logging.getLogger(__name__)

AGAIN_S = 0.01
CALLS_POLL_S = 0.01


class Termination:
    """Of one worker. On the main thread."""

    def __init__(self, core: CoreWorker, executor: Executor) -> None:
        self._core = core
        self._executor = executor
        self.is_wanted = False
        self.has_struck = False

    def install(self) -> None:
        """Once, where workers run. From here on SIGTERM comes here."""
        signal.signal(signal.SIGTERM, self.on_signal)
        os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=self._in_child)

    def _in_child(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self.on_signal:  # no handler of the user's
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _let_go()

    def on_signal(self, signum: int, frame: Any) -> None:
        """The handler. Raises SystemExit."""
        if not self.is_wanted:
            self.is_wanted = True
            self._executor.end_after_this()
            _thread.start_new_thread(self._insist, ())  # threading's own may hold its locks right now
        if not self.has_struck and self._core.reactor.may_interrupt(frame):
            self.has_struck = True
            raise SystemExit(1)

    def _insist(self) -> None:
        main = threading.main_thread().ident or 0
        while not self.has_struck:
            time.sleep(AGAIN_S)
            signal.pthread_kill(main, signal.SIGTERM)

    def await_calls(self) -> None:
        """No call begins any more: those that an actor runs on other threads end."""
        self.has_struck = True
        actor = self._executor.actor
        if self.is_wanted and actor is not None:
            logger.info("SIGTERM: ends after the %d calls that run", len(actor.calls))
            while actor.calls:
                time.sleep(CALLS_POLL_S)


# Of each thread that forks: what it blocked before.
_held = threading.local()


def _hold() -> None:
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_go() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def die() -> NoReturn:
    """What SIGTERM does where nobody handles it: whoever waits for this process sees the signal."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(1)
