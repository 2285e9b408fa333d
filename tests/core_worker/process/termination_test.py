"""SIGTERM to a worker or a driver: whom it strikes, when, and how often."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.core_worker.process import termination
from ray_mono.core_worker.process.termination import DriverExit, SafeExit, Termination
from tests.core_worker.scene import Scene
from tests.core_worker.worker_scene import Worker

WAIT_S = 30.0


@pytest.fixture(autouse=True)
def nobody_is_struck_afterwards() -> Iterator[None]:
    before, threads = signal.signal(signal.SIGTERM, signal.SIG_DFL), _thread._count()
    yield
    # Who sends the signal again may be about to do so.
    while _thread._count() > threads:
        time.sleep(0.001)
    time.sleep(0.001)
    signal.signal(signal.SIGTERM, before)


class Process(Scene):
    """A driver, whose own code runs as long as `is_busy` says."""

    def __init__(self) -> None:
        super().__init__()
        self.is_busy = False
        self.num_asked = 0
        self.steps: list[Callable[[], None]] = []
        self.reactor.may_interrupt = self._may_interrupt  # type: ignore[method-assign]

    def _may_interrupt(self, frame: Any) -> bool:
        self.num_asked += 1
        return not self.is_busy

    def joins(self) -> DriverExit:
        return DriverExit(self.env, self.steps.append)

    def leaves(self) -> None:
        for step in self.steps:
            step()


def strike() -> bool:
    """Whether SIGTERM raises."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except SystemExit:
        return True
    return False


class Overtaken(SafeExit):
    """Between its look whether it has struck and its next signal, something happens."""

    meanwhile: Callable[[], None] | None = None
    _struck = False

    @property
    def has_struck(self) -> bool:
        seen, meanwhile, self.meanwhile = self._struck, self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return seen

    @has_struck.setter
    def has_struck(self, struck: bool) -> None:
        self._struck = struck


@pytest.mark.parametrize("strikes_again", [True, False])
def test_a_later_signal_strikes_again_where_the_program_may_have_gone_on(strikes_again: bool) -> None:
    exit_ = SafeExit(Process().env, 15, strikes_again)
    exit_.install()
    with pytest.raises(SystemExit) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 15
    assert strike() == strikes_again


def test_what_it_sent_itself_for_an_earlier_signal_does_not_strike_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process()
    insist: list[Callable[[], None]] = []
    monkeypatch.setattr(
        termination, "_thread", SimpleNamespace(start_new_thread=lambda run, args: insist.append(run))
    )
    sent: list[int] = []

    def send(signum: int) -> None:
        sent.append(signum)
        assert not strike(), "it is the echo"

    monkeypatch.setattr(termination, "strike_main_thread", send)
    exit_ = Overtaken(process.env, 15, strikes_again=True)
    exit_.install()
    process.is_busy = True
    assert not strike()
    process.is_busy = False
    # Another comes after the look, and has struck when the first one's is sent.
    exit_.meanwhile = lambda: sent.append(-1) if strike() else None
    insist[0]()
    assert sent == [-1, signal.SIGTERM]
    assert strike(), "the next is the user's"


def test_it_is_sent_again_until_it_may_be_raised() -> None:
    process = Process()
    process.is_busy = True
    begun: list[None] = []

    class Exit(SafeExit):
        def begin(self) -> None:
            begun.append(None)

    Exit(process.env, 1, strikes_again=False).install()
    signal.raise_signal(signal.SIGTERM)
    deadline_s = time.monotonic() + WAIT_S
    with pytest.raises(SystemExit):
        while time.monotonic() < deadline_s:
            process.is_busy = process.num_asked < 3
            time.sleep(0.001)
    assert len(begun) == 1


def test_a_driver_has_sigterm_while_it_is_connected_and_not_longer() -> None:
    process = Process()
    exit_ = process.joins()
    assert signal.getsignal(signal.SIGTERM) == exit_.on_signal
    process.leaves()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_driver_on_another_thread_leaves_the_signal_alone() -> None:
    process = Process()
    thread = threading.Thread(target=process.joins)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and not process.steps


def test_a_driver_that_was_told_to_end_is_not_killed_by_what_comes_while_it_leaves() -> None:
    process = Process()
    process.joins()
    assert strike()
    process.leaves()
    assert not strike()


def leave_on_main_thread(process: Process) -> None:
    assert strike()
    process.leaves()


def leave_on_another_thread(process: Process) -> None:
    thread = threading.Thread(target=process.leaves)
    thread.start()
    thread.join()


@pytest.mark.parametrize("leave", [leave_on_main_thread, leave_on_another_thread])
def test_a_program_that_goes_on_after_it_has_left_can_be_ended(
    leave: Callable[[Process], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[None] = []
    monkeypatch.setattr(termination, "die", lambda: ends.append(None))
    process = Process()
    process.joins()
    leave(process)
    assert not strike()
    assert not ends, "it leaves still"
    process.reactor.is_closed = True
    try:
        raise SystemExit
    except SystemExit:
        signal.raise_signal(signal.SIGTERM)
    assert not ends, "it ends already"
    signal.raise_signal(signal.SIGTERM)
    assert len(ends) == 1
    # And one that joins again is told, as before.
    Process().joins()
    assert strike()
    assert len(ends) == 1


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda signum, frame: None])
def test_a_program_that_handles_sigterm_goes_on_to_do_so(own: Any) -> None:
    signal.signal(signal.SIGTERM, own)
    process = Process()
    process.joins()
    assert signal.getsignal(signal.SIGTERM) is own
    process.leaves()
    assert signal.getsignal(signal.SIGTERM) is own


def test_a_handler_that_a_program_sets_later_stays() -> None:
    def own(signum: int, frame: Any) -> None: ...

    process = Process()
    process.joins()
    signal.signal(signal.SIGTERM, own)
    process.leaves()
    assert signal.getsignal(signal.SIGTERM) is own


def test_what_is_forked_has_no_handler_of_ours_and_one_of_the_users() -> None:
    def own(signum: int, frame: Any) -> None: ...

    def handler_of_child() -> bool:
        child = os.fork()
        if not child:
            os._exit(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

    Process().joins()
    assert handler_of_child()
    signal.signal(signal.SIGTERM, own)
    assert not handler_of_child()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("is_wanted", [True, False])
def test_calls_on_other_threads_are_waited_for_after_a_sigterm_only(
    is_wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Actor: ...

    worker = Worker(monkeypatch)
    worker.actor(Actor)
    worker.running.calls[b"call"] = worker.context.get()
    ending = Termination(worker.env, worker.running)
    ending.install()
    assert not worker.running.is_ending
    if is_wanted:
        assert strike() and worker.running.is_terminated and worker.running.was_struck
    assert worker.running.is_ending == worker.running.owes_answer == is_wanted
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            worker.running.calls.clear()

    monkeypatch.setattr(termination, "time", SimpleNamespace(sleep=sleep))
    ending.await_calls()
    assert len(waits) == 3 * is_wanted
    # The end itself is not struck.
    assert worker.running.was_struck and not strike()


def test_a_worker_that_is_struck_where_it_may_not_be_raised_begins_no_other_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    worker.reactor.may_interrupt = lambda frame: False  # type: ignore[method-assign]
    monkeypatch.setattr(termination, "_thread", SimpleNamespace(start_new_thread=lambda run, args: None))
    ending = Termination(worker.env, worker.running)
    ending.install()
    assert not strike() and worker.running.is_ending and not worker.running.was_struck
    call = worker.ask(worker.function(lambda: 1))
    assert not worker.run() and call.status == 3
