"""Calls that come again: they failed and are retried, or their caller has lost its connection and sends all
again to an actor that lives on. A creation comes again where another GCS asks for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ray_mono.common.exceptions import TaskCancelledError
from tests.core_worker.task_execution.concurrent_actor import Group
from tests.core_worker.worker_scene import WAIT_S, Connection, Pushed, Worker


def test_a_retry_that_comes_while_its_first_attempt_ends_can_be_cancelled_and_gives_its_turn_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Group(monkeypatch, limit=2)
    is_on_loop, may_end = threading.Event(), threading.Event()

    def hold_the_loop() -> None:
        is_on_loop.set()
        may_end.wait(WAIT_S)

    first = worker.do(hold_the_loop)
    assert is_on_loop.wait(WAIT_S)
    # What has come by then starts before the loop puts away what has ended.
    worker.go["again"] = threading.Event()
    again = worker.ask(worker.method("wait"), "again", name=first.task_id)
    worker.run()
    may_end.set()
    assert first.value is None and worker.log.next() == "again"
    second, third = worker.start("second", "third")
    assert worker.log.next() == "second" and worker.cancel(again.task_id)
    assert isinstance(again.value.cause, TaskCancelledError)
    assert [worker.log.next(), worker.log.next()] == ["end of again", "third"]
    worker.let_go("second", "third")
    assert (second.value, third.value) == ("value of second", "value of third")
    worker.close()
    assert not worker.running.calls


def test_calls_that_are_sent_again_while_they_wait_run_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Group(monkeypatch)
    runs, waits = worker.start("runs", "waits")
    worker.go.update({name: threading.Event() for name in ("first", "waits again")})
    spec = worker.method("wait")
    first = worker.ask(spec, "first")
    again = worker.ask(spec, "waits again", name=waits.task_id)
    worker.run()
    worker.let_go("runs", "first", "waits again")
    assert [call.value for call in (runs, first, again)] == [
        "value of runs",
        "value of first",
        "value of waits again",
    ]
    assert [worker.log.next() for _ in range(3)] == ["runs", "end of runs", "first"]
    assert type(waits.value) is TaskCancelledError
    worker.close()
    assert not worker.running.calls


def test_two_attempts_of_a_call_that_run_both_count_and_a_cancel_stops_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Group(monkeypatch, limit=2)
    (first,) = worker.start("first")
    assert worker.log.next() == "first"
    worker.go["again"] = threading.Event()
    again = worker.ask(worker.method("wait"), "again", name=first.task_id)
    worker.run()
    (third,) = worker.start("third")
    assert worker.log.next() == "again" and worker.cancel(first.task_id)
    assert {worker.log.next() for _ in range(3)} == {"end of first", "end of again", "third"}
    assert [isinstance(call.value.cause, TaskCancelledError) for call in (first, again)] == [True, True]
    worker.let_go("third")
    assert third.value == "value of third"
    worker.close()
    assert not worker.running.calls


TASK_ID = b"task 2".ljust(24, b".")
"""Of a worker's first call."""


class Constructed:
    """What its constructors do is a test's."""

    does: list[Callable[[], object]] = []

    def __init__(self) -> None:
        self.does.pop()()


def test_a_creation_that_is_asked_for_again_runs_once_and_whoever_asked_is_answered_in_whatever_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    ran: list[int] = []
    again: list[Pushed] = []

    def construct() -> None:
        ran.append(1)
        again.append(worker.ask(worker.function(Constructed), name=TASK_ID, connection=Connection()))

    Constructed.does = [construct]
    first = worker.actor(Constructed)
    later = worker.ask(worker.function(Constructed), name=TASK_ID, connection=Connection())
    assert worker.run() and ran == [1]
    assert [first.value, again[0].value, later.value] == [None, None, None]
    assert again[0].answer.pid == later.answer.pid


def test_a_creation_is_answered_to_the_head_that_lives_though_what_one_asked_that_is_gone_comes_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    gone = Connection()

    def construct() -> None:
        worker.ask(worker.function(Constructed), name=TASK_ID, connection=gone)
        gone.close()

    Constructed.does = [construct]
    living = worker.actor(Constructed)
    assert living.value is None and len(living.replies) == 1


def test_a_creation_that_failed_has_failed_for_who_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    def fail() -> None:
        raise ValueError("no luck today")

    Constructed.does = [fail]
    first = worker.actor(Constructed)
    again = worker.ask(worker.function(Constructed), name=TASK_ID, connection=Connection())
    assert first.answer == again.answer and again.answer.is_application_error
