"""The user's signal handlers beside a reactor: when they run, and that none is late."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import asyncio
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.rpc import signal_handlers
from ray_mono.rpc.reactor import Reactor, Waiter
from tests.waiting import wait_until

WAIT_S = 30.0
SIGNAL = signal.SIGUSR2
# As a program has it that says `from signal import signal` before it connects.
set_handler = signal.signal


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor("test")
    before = [signal.getsignal(one) for one in (SIGNAL, signal.SIGINT)]
    uninstall = signal_handlers.install(reactor, interrupts=True)
    yield reactor
    uninstall()
    for one, handler in zip((SIGNAL, signal.SIGINT), before, strict=True):
        signal.signal(one, handler)
    reactor.close()


def test_a_handler_runs_when_the_runtime_has_let_go_of_its_lock(reactor: Reactor) -> None:
    owned: list[bool] = []
    signal.signal(SIGNAL, lambda *_: owned.append(reactor.lock._is_owned()))  # type: ignore[attr-defined]
    with reactor.lock:
        signal.raise_signal(SIGNAL)
        assert not owned
    wait_until(lambda: owned, "the handler")
    assert owned == [False]
    # In the user's code at once.
    signal.raise_signal(SIGNAL)
    assert owned == [False, False]


def test_each_that_waits_for_ever_is_called_in_the_end(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal_handlers, "LATE_S", 0.05)
    called: list[int] = []
    signal.signal(SIGNAL, lambda signum, frame: called.append(signum))
    with reactor.lock:
        signal.raise_signal(SIGNAL)
        wait_until(lambda: called, "the handler")
        # The next one waits anew.
        signal.raise_signal(SIGNAL)
        assert len(called) == 1
        wait_until(lambda: len(called) == 2, "the handler")


@pytest.mark.parametrize("leads", [True, False])
def test_a_signal_that_does_not_end_the_wait_is_handled_nevertheless(reactor: Reactor, leads: bool) -> None:
    # Another thread takes it: the system call of this one goes on, as where it comes just before that.
    reactor.look_for_signals(0.05)
    waiter, other = Waiter(reactor), Waiter(reactor)

    def on_signal(signum: int, frame: Any) -> None:
        with reactor.lock:
            waiter.set()

    signal.signal(SIGNAL, on_signal)
    leader = threading.Thread(target=reactor.wait, args=(other,))
    if not leads:
        leader.start()
        # The background may lead instead of it.
        wait_until(
            lambda: reactor._lead.leader == leader.ident or other in reactor._lead.sleepers,
            "the reactor to wait",
        )

    def strike() -> None:
        wait_until(lambda: reactor._is_at_rest, "the reactor to wait")
        time.sleep(0.01)
        signal.pthread_kill(threading.get_ident(), SIGNAL)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    striker = threading.Thread(target=strike)
    striker.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])
    try:
        assert reactor.wait(waiter, WAIT_S)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        striker.join()
        with reactor.lock:
            other.set()
        if not leads:
            leader.join()


@pytest.mark.parametrize(
    "end",
    [
        lambda: signal.signal(signal.SIGALRM, signal.SIG_DFL),
        lambda: signal.alarm(0),
        lambda: signal.setitimer(signal.ITIMER_REAL, 0),
    ],
)
def test_a_time_limit_that_came_is_told_before_its_end_and_not_after(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch, end: Callable[[], Any]
) -> None:
    again: list[Callable[[], None]] = []
    told: list[str] = []
    start = SimpleNamespace(start_new_thread=lambda function, args: again.append(partial(function, *args)))
    monkeypatch.setattr(signal_handlers, "_thread", start)
    monkeypatch.setattr(signal_handlers, "strike_main_thread", lambda signum: told.append("struck"))

    def limit(signum: int, frame: Any) -> None:
        told.append("limit")
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, limit)
    with reactor.lock:
        signal.raise_signal(signal.SIGALRM)
    try:
        with pytest.raises(TimeoutError):
            end()
        again.pop()()
        end()
        assert told == ["limit"]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_wait_goes_on_after_a_handler_that_waited_itself_and_the_next_is_not_deferred(
    reactor: Reactor,
) -> None:
    waiter, seen = Waiter(reactor), []

    def on_signal(signum: int, frame: Any) -> None:
        seen.append(reactor.wait(Waiter(reactor), 0.01))
        if len(seen) == 2:
            with reactor.lock:
                waiter.set()

    def strike() -> None:
        for number in range(2):
            wait_until(lambda: len(seen) == number and reactor._is_at_rest, "the handler")  # noqa: B023
            signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    signal.signal(SIGNAL, on_signal)
    striker = threading.Thread(target=strike)
    striker.start()
    assert reactor.wait(waiter, WAIT_S) and seen == [False, False]
    striker.join()


def test_an_event_loop_hears_of_a_signal_once(reactor: Reactor) -> None:
    heard: list[None] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(SIGNAL, heard.append, None)
        with reactor.lock:
            signal.raise_signal(SIGNAL)
            time.sleep(10 * signal_handlers.AGAIN_S)
        while not heard:
            await asyncio.sleep(0)
        await asyncio.sleep(10 * signal_handlers.AGAIN_S)

    asyncio.run(scene())
    assert len(heard) == 1


def test_what_the_user_set_is_what_the_user_sees(reactor: Reactor) -> None:
    def first(signum: int, frame: Any) -> None: ...

    def second(signum: int, frame: Any) -> None: ...

    before = signal.signal(SIGNAL, first)
    assert signal.getsignal(SIGNAL) is first and signal.signal(SIGNAL, second) is first
    assert signal.signal(SIGNAL, signal.SIG_IGN) is second and signal.getsignal(SIGNAL) is signal.SIG_IGN
    signal.signal(SIGNAL, before)
    assert signal.getsignal(SIGNAL) is before


def test_handlers_stay_as_they_were_set_before_and_meanwhile() -> None:
    came: list[int] = []

    def early(signum: int, frame: Any) -> None:
        came.append(signum)

    def meanwhile(signum: int, frame: Any) -> None: ...

    module = vars(signal)["_signal"]
    before = [signal.signal(one, early) for one in (signal.SIGUSR1, SIGNAL)]
    reactor = Reactor("test")
    try:
        uninstall = signal_handlers.install(reactor, interrupts=False)
        assert signal.getsignal(signal.SIGUSR1) is early
        with reactor.lock:
            signal.raise_signal(signal.SIGUSR1)
            assert not came
        wait_until(lambda: came, "the handler")
        signal.signal(SIGNAL, meanwhile)
        uninstall()
        assert vars(signal)["_signal"] is module
        assert signal.getsignal(signal.SIGUSR1) is early and signal.getsignal(SIGNAL) is meanwhile
    finally:
        reactor.close()
        for one, handler in zip((signal.SIGUSR1, SIGNAL), before, strict=True):
            signal.signal(one, handler)


def test_a_signal_that_strikes_a_handler_at_rest_waits_until_that_lets_go_of_the_lock(
    reactor: Reactor,
) -> None:
    waiter, owned = Waiter(reactor), []

    def nested(signum: int, frame: Any) -> None:
        owned.append(reactor.lock._is_owned())  # type: ignore[attr-defined]

    def on_signal(signum: int, frame: Any) -> None:
        # As a call of the API does.
        with reactor.lock:
            signal.raise_signal(signal.SIGUSR1)
            waiter.set()

    def strike() -> None:
        wait_until(lambda: reactor._is_at_rest, "the reactor to wait")
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    before = signal.signal(signal.SIGUSR1, nested)
    signal.signal(SIGNAL, on_signal)
    striker = threading.Thread(target=strike)
    striker.start()
    assert reactor.wait(waiter, WAIT_S)
    striker.join()
    wait_until(lambda: owned, "the handler")
    assert owned == [False]
    signal.signal(signal.SIGUSR1, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def ends_by_interrupt(steps: Callable[[], Any]) -> traceback.StackSummary:
    with pytest.raises(KeyboardInterrupt) as caught:
        steps()
    return traceback.extract_tb(caught.value.__traceback__)


@pytest.mark.parametrize("is_set_anew", [False, True])
def test_a_ctrl_c_in_the_users_code_raises_there_without_a_frame_of_ours(
    reactor: Reactor, is_set_anew: bool
) -> None:
    if is_set_anew:  # as a notebook's kernel does around each cell
        set_handler(signal.SIGINT, signal.SIG_IGN)
        assert set_handler(signal.SIGINT, signal.default_int_handler) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert ends_by_interrupt(interrupt)[-1].name == "interrupt"


@pytest.mark.parametrize("is_set_anew", [False, True])
def test_a_ctrl_c_in_our_code_is_noted_for_the_users_or_the_next_wait(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch, is_set_anew: bool
) -> None:
    if is_set_anew:
        set_handler(signal.SIGINT, signal.default_int_handler)

    def note_one_and(go_on: Callable[[], Any]) -> None:
        with reactor.lock:
            interrupt()
            assert reactor.interrupted
        go_on()

    names = ("wait_until", "<lambda>", "note_one_and")
    assert (
        ends_by_interrupt(lambda: note_one_and(lambda: wait_until(lambda: False, "never")))[-1].name in names
    )
    assert not reactor.interrupted
    monkeypatch.setattr(signal_handlers, "INTERRUPT_AGAIN_S", 0.1)
    ends_by_interrupt(lambda: note_one_and(lambda: reactor.wait(Waiter(reactor), WAIT_S)))
    # Where it is ignored from then on, it is over: a notebook's cell has ended.
    with reactor.lock:
        interrupt()
        set_handler(signal.SIGINT, set_handler(signal.SIGINT, signal.SIG_IGN))
    # It does not come again.
    waiter = Waiter(reactor)
    with reactor.lock:
        reactor.call_later(2 * signal_handlers.INTERRUPT_AGAIN_S, waiter.set)
    assert reactor.wait(waiter, WAIT_S)


def test_a_ctrl_c_that_a_wait_has_raised_is_not_raised_again_and_the_next_one_is(reactor: Reactor) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handler: Any = _signal.getsignal(signal.SIGINT)
    # Sent again for code that does not wait, and on its way when a wait raises it.
    handler._is_again = True
    interrupt()
    ends_by_interrupt(interrupt)


def test_a_handler_may_leave_the_cluster_while_a_wait_goes_on(reactor: Reactor) -> None:
    signal.signal(SIGNAL, lambda *_: reactor.close())

    def strike() -> None:
        wait_until(lambda: reactor._is_at_rest and reactor._lead.nap, "the reactor to wait")
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    striker = threading.Thread(target=strike)
    striker.start()
    assert not reactor.wait(Waiter(reactor), WAIT_S)
    striker.join()
    assert reactor.is_closed
    assert reactor._epoll.closed


def test_who_leaves_on_another_thread_and_joins_again_has_the_users_handlers(reactor: Reactor) -> None:
    called: list[None] = []

    def own(signum: int, frame: Any) -> None:
        called.append(None)

    set_handler(SIGNAL, own)
    earlier = Reactor("earlier")
    uninstall = signal_handlers.install(earlier, interrupts=True)
    leaving = threading.Thread(target=lambda: (uninstall(), earlier.close()))
    leaving.start()
    leaving.join()
    assert signal.getsignal(SIGNAL) is own
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    uninstall = signal_handlers.install(reactor, interrupts=True)
    assert signal.getsignal(SIGNAL) is own
    with reactor.lock:
        signal.raise_signal(SIGNAL)
        assert not called, "the reactor that is there now decides"
    wait_until(lambda: called, "the handler")
    uninstall()
    assert _signal.getsignal(SIGNAL) is own
    assert _signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert vars(signal)["_signal"] is _signal
