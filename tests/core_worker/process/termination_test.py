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


class Core:
    """Whose own code runs as long as `is_busy` says."""

    def __init__(self) -> None:
        self.is_busy = False
        self.num_asked = 0
        self.reactor = SimpleNamespace(may_interrupt=self._may_interrupt, is_closed=False)
        self.on_shutdown: list[Any] = []

    def _may_interrupt(self, frame: Any) -> bool:
        self.num_asked += 1
        return not self.is_busy


def leave(core: Core) -> None:
    for callback in core.on_shutdown:
        callback()


@pytest.mark.parametrize("strikes_again", [True, False])
def test_a_later_signal_strikes_again_where_the_program_may_have_gone_on(strikes_again: bool) -> None:
    exit_ = SafeExit(Core(), 15, strikes_again)  # type: ignore[arg-type]
    exit_.install()
    with pytest.raises(SystemExit) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 15
    # Sent by ourselves for the first one, and late.
    exit_._is_echo = True
    signal.raise_signal(signal.SIGTERM)
    if strikes_again:
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
    else:
        signal.raise_signal(signal.SIGTERM)


def test_it_is_sent_again_until_it_may_be_raised() -> None:
    core = Core()
    core.is_busy = True
    exit_: Any = SafeExit(core, 1, strikes_again=False)  # type: ignore[arg-type]
    begun: list[None] = []
    exit_.begin = lambda: begun.append(None)
    exit_.install()
    signal.raise_signal(signal.SIGTERM)
    deadline_s = time.monotonic() + WAIT_S
    with pytest.raises(SystemExit):
        while time.monotonic() < deadline_s:
            core.is_busy = core.num_asked < 3
            time.sleep(0.001)
    assert len(begun) == 1


def test_a_driver_has_sigterm_while_it_is_connected_and_not_longer() -> None:
    core = Core()
    exit_ = DriverExit(core)  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGTERM) == exit_.on_signal
    leave(core)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_driver_that_was_told_to_end_is_not_killed_by_what_comes_while_it_leaves() -> None:
    core = Core()
    DriverExit(core)  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    leave(core)
    signal.raise_signal(signal.SIGTERM)


def leave_on_main_thread(core: Core) -> None:
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    leave(core)


def leave_on_another_thread(core: Core) -> None:
    thread = threading.Thread(target=leave, args=(core,))
    thread.start()
    thread.join()


@pytest.mark.parametrize("leave", [leave_on_main_thread, leave_on_another_thread])
def test_a_program_that_goes_on_after_it_has_left_can_be_ended(
    leave: Callable[[Core], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[None] = []
    monkeypatch.setattr(termination, "die", lambda: ends.append(None))
    core = Core()
    DriverExit(core)  # type: ignore[arg-type]
    leave(core)
    signal.raise_signal(signal.SIGTERM)
    assert not ends, "it leaves still"
    core.reactor.is_closed = True
    try:
        raise SystemExit
    except SystemExit:
        signal.raise_signal(signal.SIGTERM)
    assert not ends, "it ends already"
    signal.raise_signal(signal.SIGTERM)
    assert len(ends) == 1
    # And one that joins again is told, as before.
    DriverExit(Core())  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    assert len(ends) == 1


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda signum, frame: None])
def test_a_program_that_handles_sigterm_goes_on_to_do_so(own: Any) -> None:
    signal.signal(signal.SIGTERM, own)
    core = Core()
    DriverExit(core)  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGTERM) is own
    leave(core)
    assert signal.getsignal(signal.SIGTERM) is own


def test_a_handler_that_a_program_sets_later_stays() -> None:
    def own(signum: int, frame: Any) -> None: ...

    core = Core()
    DriverExit(core)  # type: ignore[arg-type]
    signal.signal(signal.SIGTERM, own)
    leave(core)
    assert signal.getsignal(signal.SIGTERM) is own


def test_what_is_forked_has_no_handler_of_ours_and_one_of_the_users() -> None:
    def own(signum: int, frame: Any) -> None: ...

    def handler_of_child() -> bool:
        child = os.fork()
        if not child:
            os._exit(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

    DriverExit(Core())  # type: ignore[arg-type]
    assert handler_of_child()
    signal.signal(signal.SIGTERM, own)
    assert not handler_of_child()


@pytest.mark.parametrize("is_wanted", [True, False])
def test_calls_on_other_threads_are_waited_for_after_a_sigterm_only(
    is_wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"call": None}
    ended: list[None] = []
    executor = SimpleNamespace(actor=SimpleNamespace(calls=calls), end_after_this=lambda: ended.append(None))
    ending: Any = Termination(Core(), executor)  # type: ignore[arg-type]
    ending.install()
    if is_wanted:
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
    assert len(ended) == is_wanted
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            calls.clear()

    monkeypatch.setattr(termination, "time", SimpleNamespace(sleep=sleep))
    ending.await_calls()
    assert len(waits) == 3 * is_wanted
    # The end itself is not struck.
    signal.raise_signal(signal.SIGTERM)
