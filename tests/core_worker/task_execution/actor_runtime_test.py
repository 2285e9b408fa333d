"""An actor in its worker: how its calls run beside each other, what every actor can do, and its end."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.core_worker.task_errors import ActorExit
from ray_mono.core_worker.task_execution.before_blocking import VARIABLE
from tests.core_worker.task_execution.concurrent_actor import Concurrent
from tests.core_worker.worker_scene import CODE, WAIT_S, Code, Worker
from tests.no_threads import no_threads


class Threaded(Concurrent):
    """A threaded actor, whose calls wait until they are let go by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int = 2, **creation: Any) -> None:
        super().__init__(monkeypatch)
        self.log: queue.Queue[str] = queue.Queue()
        log, go = self.log, self.go

        class Actor:
            def wait(self, name: str) -> str:
                log.put(name)
                assert go[name].wait(WAIT_S)
                return threading.current_thread().name

            def do(self, function: Callable[[], Any]) -> Any:
                return function()

        self.actor(Actor, max_concurrency=limit, **creation)

    def next(self) -> str:
        return self.log.get(timeout=WAIT_S)

    def ends(self) -> None:
        """Runs until its main thread hears of the end."""
        while self.run():
            pass


def test_calls_start_in_order_on_so_many_threads_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Threaded(monkeypatch)
    first, second, third = worker.start("1", "2", "3")
    assert {worker.next(), worker.next()} == {"1", "2"} and worker.log.empty()
    worker.go["2"].set()
    assert second.value == "actor-calls-2" and worker.next() == "3"
    worker.go["3"].set()
    worker.go["1"].set()
    assert (first.value, third.value) == ("actor-calls-1", "actor-calls-2")


def test_a_thread_that_is_free_takes_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Threaded(monkeypatch, limit=3)
    names = set()
    for number in range(3):
        (call,) = worker.start(str(number))
        worker.go[str(number)].set()
        names.add(call.value)
    # One that has answered may not be free yet.
    assert len(names) <= 2


def test_where_no_thread_may_be_made_calls_fail_or_wait_for_one_that_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Threaded(monkeypatch, limit=3)
    with no_threads():
        (refused,) = worker.start("0")
    assert isinstance(refused.value.cause, OSError) and "can't start new thread" in str(refused.value)
    (first,) = worker.start("1")
    assert worker.next() == "1"
    with no_threads():
        late = worker.start("2", "3")
    for name in "123":
        worker.go[name].set()
    assert [call.value for call in (first, *late)] == ["actor-calls-1"] * 3
    assert (worker.next(), worker.next()) == ("2", "3")
    # As many as may run beside each other do so again.
    calls = worker.start("4", "5", "6")
    assert {worker.next(), worker.next(), worker.next()} == {"4", "5", "6"}
    for name in "456":
        worker.go[name].set()
    assert len({call.value for call in calls}) == 3


def test_each_group_has_threads_of_its_own_by_method_and_by_call(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Threaded(monkeypatch, limit=1, groups=[("io", 1, "do")])
    (waits,) = worker.start("1")
    assert worker.next() == "1"
    assert worker.do(lambda: threading.current_thread().name).value == "actor-io-1"
    (other,) = worker.start("2", group="io")
    assert worker.next() == "2" and not waits.replies
    worker.go["1"].set()
    worker.go["2"].set()
    assert (waits.value, other.value) == ("actor-calls-1", "actor-io-1")


def test_a_plain_actors_calls_run_on_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Threaded(monkeypatch, limit=1)
    assert worker.do(lambda: threading.current_thread() is threading.main_thread()).value is True


def test_calls_that_are_over_are_not_found_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Threaded(monkeypatch)
    (call,) = worker.start("1")
    worker.next()
    assert worker.cancel(call.task_id) and not call.replies
    worker.go["1"].set()
    assert type(call.value) is TaskCancelledError
    end = worker.ask(worker.method("__ray_terminate__"))
    worker.ends()
    assert not end.replies and not worker.cancel(call.task_id)


def test_terminate_waits_for_the_calls_before_it_and_not_for_later_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray_mono.core_worker.task_execution.actor_runtime.CALLS_POLL_S", 0.001)
    worker = Threaded(monkeypatch, limit=3)
    told = threading.Event()
    worker.wire.replies["ReportWorkerDeath"] = lambda request: told.set() or request
    (first,) = worker.start("1")
    worker.ask(worker.method("__ray_terminate__"))
    (later,) = worker.start("2")
    assert {worker.next(), worker.next()} == {"1", "2"} and not told.is_set()
    worker.go["1"].set()
    assert first.value and told.wait(WAIT_S) and not later.replies
    worker.ends()
    assert worker.deaths()[0].message == "exit_actor() was called"
    worker.go["2"].set()


def test_an_exit_on_another_thread_wakes_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Threaded(monkeypatch)

    def leave() -> None:
        raise ActorExit

    call = worker.do(leave)
    worker.ends()
    assert len(worker.deaths()) == 1 and not call.replies


def test_a_call_on_a_thread_whose_answer_fails_is_answered_anyhow(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Threaded(monkeypatch)
    worker.go["1"] = threading.Event()
    worker.go["1"].set()
    call = worker.ask(worker.method("wait"), "1")
    call.reply_failures = [LookupError("no")]
    worker.run()
    assert "answering wait() failed" in str(call.value)


# ---- what every actor can do


class Plain:
    def method(self) -> int:
        return 1


def test_every_actor_can_be_asked_whether_it_is_ready_and_given_a_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    worker.actor(Plain)
    CODE[b"look"] = lambda instance, *args, **kwargs: (type(instance).__name__, args, kwargs)
    calls = [
        worker.ask(worker.method("__ray_ready__")),
        worker.ask(worker.method("__ray_call__"), Code(b"look"), 1, keywords={"key": 2}),
        worker.ask(worker.method("missing")),
        worker.ask(worker.method("__ray_terminate__")),
        worker.ask(worker.method("method")),
    ]
    assert not worker.run()
    assert calls[0].value is True and calls[1].value == ("Plain", (1,), {"key": 2})
    assert isinstance(calls[2].value.cause, AttributeError)
    assert (
        not calls[3].replies
        and not calls[4].replies
        and worker.deaths()[0].message == "exit_actor() was called"
    )


def test_a_repr_that_utf8_does_not_have_can_be_told_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader:
        def __repr__(self) -> str:
            return "Reader(caf\udce9.txt)"

    assert Worker(monkeypatch).actor(Reader).answer.repr_name == "Reader(caf\\udce9.txt)"


def test_the_repr_of_an_actor_is_its_classs_name_where_that_defines_none_or_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing:
        def __repr__(self) -> str:
            raise SystemExit

    assert Worker(monkeypatch).actor(Plain).answer.repr_name == "Plain"
    assert Worker(monkeypatch).actor(Failing).answer.repr_name == "Failing"


def test_output_is_known_by_the_actors_repr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Named:
        def __repr__(self) -> str:
            return "one\nof many"

        def method(self) -> None: ...

    worker = Worker(monkeypatch)
    worker.actor(Named)
    worker.ask(worker.method("method"))
    worker.ask(worker.method("method", task_name="shown"))
    worker.run()
    worker.idle()
    said = capsys.readouterr()
    assert said.out == said.err == ":actor_name:Named\n:actor_name:one of many\n"
    assert worker.titles == [f"ray_mono::{name}" for name in ("Named", "Named.method", "shown", "Named")]


def test_the_constructor_may_be_asked_for_by_its_own_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    seen: list[Any] = []

    class Actor:
        def __init__(self) -> None:
            seen.append((worker.context.actor_id(), worker.context.assigned_resources()))

    worker.actor(Actor)
    assert seen == [(b"a" * 16, {})]


# ---- the end


def test_the_end_runs_the_actors_own_and_lets_the_instance_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[str] = []

    class Actor:
        def __ray_shutdown__(self) -> None:
            steps.append("shutdown")
            raise LookupError("of the user's")

        def __del__(self) -> None:
            steps.append("gone")

        def method(self) -> None: ...

    worker = Worker(monkeypatch)
    worker.actor(Actor)
    worker.ask(worker.method("method"))
    worker.run()
    worker.execution.close_actor()
    assert steps == ["shutdown", "gone"]
    assert "__ray_shutdown__ of Actor failed" in caplog.text and "of the user's" in caplog.text


def test_a_worker_without_an_actor_has_none_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    Worker(monkeypatch).execution.close_actor()


# ---- waits


@pytest.mark.parametrize(("hidden", "told"), [("1", 1), ("", 1), ("0", 0), ("false", 0)])
def test_who_blocks_an_event_loop_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hidden: str, told: int
) -> None:
    monkeypatch.setenv(VARIABLE, hidden)
    caplog.set_level(logging.WARNING, "ray_mono")
    worker = Worker(monkeypatch)

    class Actor:
        async def block(self) -> None:
            worker.core.wait([worker.submit()], 1, 0.001, True)

    worker.actor(Actor, is_asyncio=True)
    for _ in range(2):
        call = worker.ask(worker.method("block"))
        worker.run()
        call.wait()
    assert caplog.text.count("A coroutine of actor Actor blocks its event loop") == told
    worker.execution.close_actor()


@pytest.mark.parametrize("is_asyncio", [True, False])
def test_nobody_is_told_who_blocks_no_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_asyncio: bool
) -> None:
    caplog.set_level(logging.WARNING, "ray_mono")
    worker = Worker(monkeypatch)
    CODE[b"block"] = lambda instance: worker.core.wait([worker.submit()], 1, 0.001, True) and None
    worker.actor(Plain, is_asyncio=is_asyncio)
    call = worker.ask(worker.method("__ray_call__"), Code(b"block"))
    worker.run()
    call.wait()
    assert "blocks its event loop" not in caplog.text
    worker.execution.close_actor()
