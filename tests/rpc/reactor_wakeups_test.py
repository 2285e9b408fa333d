"""Whoever leaves something to the thread that reads the sockets ends its sleep.
See lead_test.py for all interleavings.
"""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ray_mono.protobuf import gcs_pb2
from ray_mono.rpc.reactor import Reactor, Waiter
from ray_mono.rpc.reactor_channel import ReactorChannel
from tests.rpc.reactor_pair import WAIT_S, caller


def asleep(reactor: Reactor) -> None:
    """Until the background thread polls without an end."""
    for _ in range(3000):
        if reactor._lead.nap and reactor._lead.leader == reactor._thread.ident:
            return
        threading.Event().wait(0.01)
    raise AssertionError("nobody reads the sockets")


def in_flight(reactor: Reactor, channel: ReactorChannel) -> None:
    """Until the answer to a held call is all that this channel waits for, and the background sleeps."""
    asleep(reactor)
    assert channel.num_pending == 1


def test_what_is_sent_beside_a_call_in_flight_goes_though_nobody_waits(both: Any) -> None:
    store, _, address = both
    with caller(address) as (reactor, channel, stub):
        stub.KvGet.start(gcs_pb2.KvGetRequest(key=b"held"), lambda reply, error: None)
        for send in (
            lambda heard: stub.KvPut.start(gcs_pb2.KvPutRequest(), lambda reply, error: heard.set()),
            lambda heard: stub.Subscribe.start(gcs_pb2.SubscribeRequest(), print, lambda error: heard.set()),
        ):
            in_flight(reactor, channel)
            heard = threading.Event()
            send(heard)
            assert heard.wait(WAIT_S)


def test_an_answer_of_another_thread_goes_though_nobody_waits(both: Any) -> None:
    store, server, address = both
    with caller(address) as (_, _, stub):
        for rings in (True, False):
            heard = threading.Event()
            told = heard.set
            stub.KvGet.start(gcs_pb2.KvGetRequest(), lambda *answer, told=told: told())  # type: ignore[misc]
            stub.KvPut(gcs_pb2.KvPutRequest(), timeout_s=WAIT_S)
            asleep(server.reactor)
            with server.reactor.lock:
                store.held.pop()[1].reply(gcs_pb2.KvGetReply(), rings=rings)
                if not rings:
                    server.reactor.flush_soon()
            assert heard.wait(WAIT_S)


def test_a_ring_while_an_earlier_one_is_read_does_not_silence_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reactor = Reactor("alone")
    read = os.eventfd_read
    left: list[Waiter] = []
    reactor.serve_queues((left,), lambda: [waiter.set() for waiter in left] and left.clear())

    def read_late(fd: int) -> int:
        another = threading.Thread(target=reactor.wake)
        another.start()
        another.join()
        return read(fd)

    monkeypatch.setattr(os, "eventfd_read", read_late)
    for _ in range(3):
        asleep(reactor)
        waiter = Waiter(reactor)
        waiter.fall_asleep(set())
        left.append(waiter)
        reactor.wake()
        waiter.sleep(time.monotonic() + WAIT_S, math.inf)
        assert waiter.done
    reactor.close()


def test_a_nap_is_rung_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reactor = Reactor("alone")
    rings: list[int] = []
    ring = os.eventfd_write
    monkeypatch.setattr(os, "eventfd_write", lambda fd, value: rings.append(fd) or ring(fd, value))
    asleep(reactor)
    with reactor.lock:
        nap = reactor._lead.nap
        reactor.wake()
        if reactor._lead.nap == nap:
            reactor.wake()
        assert len(rings) == 1
    reactor.close()


def test_a_wait_that_gave_up_asleep_may_lead_the_next_time() -> None:
    reactor = Reactor("alone")
    first, again = Waiter(reactor), Waiter(reactor)
    leading = threading.Thread(target=reactor.wait, args=(first, WAIT_S))
    leading.start()
    while not reactor._lead.nap:
        threading.Event().wait(0.001)
    assert not reactor.wait(again, 0.001)
    with reactor.lock:
        assert again not in reactor._lead.sleepers
        first.set()
    leading.join(WAIT_S)
    waiting = threading.Thread(target=reactor.wait, args=(again,), daemon=True)
    waiting.start()
    while not reactor._lead.nap:
        threading.Event().wait(0.001)
    with reactor.lock:
        again.set()
    waiting.join(WAIT_S)
    assert not waiting.is_alive()
    reactor.close()


def test_nobody_looks_for_late_answers_when_there_are_none_any_more() -> None:
    reactor = Reactor("alone")
    asleep(reactor)
    with reactor.lock:
        reactor.flush_soon()
        assert reactor._late_flush is not None
    for _ in range(3000):
        if reactor._late_flush is None:
            break
        threading.Event().wait(0.01)
    assert reactor._late_flush is None
    reactor.close()


@contextmanager
def handled(signum: int, handler: Any) -> Iterator[threading.Event]:
    """Runs handler() at the first signal; the event says that it has begun."""
    begun = threading.Event()

    def once(signum: int, frame: Any) -> None:
        if not begun.is_set():
            begun.set()
            handler()

    before = signal.signal(signum, once)
    try:
        yield begun
    finally:
        signal.signal(signum, before)


def strike_when_asleep(reactor: Reactor, signum: int, begun: threading.Event) -> threading.Thread:
    """A signal for the main thread, once that waits. Again where it came just before the system call:
    its handler runs after that.
    """

    def strike() -> None:
        for _ in range(3000):
            # It leads, or sleeps where the background had taken the lead before.
            if reactor._lead.nap and (
                reactor._lead.leader == threading.main_thread().ident or reactor._lead.sleepers
            ):
                break
            threading.Event().wait(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signum)
        while not begun.wait(0.05):
            signal.pthread_kill(threading.main_thread().ident or 0, signum)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


def ends_before_its_time(reactor: Reactor, waiter: Waiter) -> bool:
    """A wait whose time is over looks as well, so that its result says nothing."""
    deadline_s = time.monotonic() + WAIT_S
    return reactor.wait(waiter, WAIT_S) and time.monotonic() < deadline_s


def test_what_a_signal_handler_leaves_on_the_thread_that_polls_is_seen_to() -> None:
    reactor = Reactor("alone")
    waiter = Waiter(reactor)
    left: list[Waiter] = []
    reactor.serve_queues((left,), lambda: [waiter.set() for waiter in left] and left.clear())

    def collect() -> None:
        left.append(waiter)  # as a finalizer does
        reactor.wake()

    with handled(signal.SIGUSR1, collect) as begun:
        striker = strike_when_asleep(reactor, signal.SIGUSR1, begun)
        assert ends_before_its_time(reactor, waiter)
        striker.join()
    reactor.close()


def test_a_signal_handler_that_waits_takes_no_answer_from_the_wait_below(both: Any) -> None:
    _, _, address = both
    with caller(address) as (reactor, _, stub):
        waiter = Waiter(reactor)

        def call() -> None:
            with reactor.lock:
                waiter.set()
            assert stub.KvPut(gcs_pb2.KvPutRequest(key=b"k"), timeout_s=WAIT_S).added

        with handled(signal.SIGUSR1, call) as begun:
            striker = strike_when_asleep(reactor, signal.SIGUSR1, begun)
            assert ends_before_its_time(reactor, waiter)
            striker.join()


def test_what_a_poll_says_of_a_closed_socket_is_not_told_to_the_next_one_of_its_number() -> None:
    reactor = Reactor("alone")
    asleep(reactor)
    told: list[str] = []
    heard = threading.Event()

    class End:
        def __init__(self, name: str, fd: int) -> None:
            self.name = name
            self.fd = fd

        def fileno(self) -> int:
            return self.fd

        def on_events(self, events: int) -> None:
            told.append(self.name)
            os.read(self.fd, 1)
            heard.set()

        def abandon(self) -> None: ...

    read_end, write_end = os.pipe()
    first = End("first", read_end)
    with reactor.lock:
        reactor.add(first, select.EPOLLIN)
        os.write(write_end, b"x")
        # The poll ends now, and waits for the lock.
        while reactor._lead.nap:
            threading.Event().wait(0.01)
        reactor.remove(read_end)
        second_read, second_write = os.pipe()
        os.dup2(second_read, read_end)
        reactor.add(End("second", read_end), select.EPOLLIN)
    asleep(reactor)
    assert not told
    os.write(second_write, b"y")
    assert heard.wait(WAIT_S) and told == ["second"]
    reactor.close()
    for fd in (read_end, write_end, second_read, second_write):
        os.close(fd)
