"""A cancel of a task that runs: whom its interrupt strikes, and that it is not left for the next task."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.core_worker.task_execution import process_title
from ray_mono.core_worker.task_execution.interrupter import AGAIN_S
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.core_worker.worker_scene import Pushed, Reply, Worker


class Running(Worker):
    """It runs one task, in which the test looks around; its main thread is the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.may_raise = True
        self.reactor.may_interrupt = lambda frame: self.may_raise  # type: ignore[method-assign]

    def within(self, look: Callable[[bytes], None]) -> Pushed:
        """Runs look(task id) as a task."""
        failures: list[BaseException] = []

        def task() -> int:
            try:
                look(self.context.task_id())
            except AssertionError as error:
                failures.append(error)
            return 1

        call = self.ask(self.function(task))
        assert self.run()
        if failures:
            raise failures[0]
        return call

    def signal(self) -> bool:
        """Whether SIGINT raises."""
        assert self.execution is not None
        try:
            self.execution.interrupter.on_signal(signal.SIGINT, None)
        except KeyboardInterrupt:
            return True
        return False


def test_a_cancel_strikes_its_task_once_and_again_only_until_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Running(monkeypatch)

    def look(task_id: bytes) -> None:
        assert not worker.signal(), "the terminal's is the driver's"
        assert worker.cancel(task_id) and worker.context.is_cancelled() and worker.struck == [signal.SIGINT]
        worker.pass_time(AGAIN_S)
        assert len(worker.struck) == 2
        assert worker.signal() and not worker.signal()
        worker.pass_time(AGAIN_S)
        assert len(worker.struck) == 2

    worker.within(look)


def test_what_may_not_be_raised_here_is_noted_for_the_next_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Running(monkeypatch)

    def look(task_id: bytes) -> None:
        worker.cancel(task_id)
        worker.may_raise = False
        assert not worker.signal() and worker.reactor.interrupted
        with pytest.raises(KeyboardInterrupt):
            worker.reactor.raise_if_interrupted()
        # What was sent meanwhile is the same one.
        worker.may_raise = True
        assert not worker.signal() and not worker.reactor.interrupted

    worker.within(look)


def test_what_was_noted_is_raised_by_a_later_signal_where_that_comes_before_a_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Running(monkeypatch)

    def look(task_id: bytes) -> None:
        worker.cancel(task_id)
        worker.may_raise = False
        worker.signal()
        worker.may_raise = True
        assert worker.signal() and not worker.reactor.interrupted, "and by no wait any more"

    worker.within(look)


def test_a_second_cancel_strikes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Running(monkeypatch)

    def look(task_id: bytes) -> None:
        worker.cancel(task_id)
        worker.may_raise = False
        worker.signal()
        with pytest.raises(KeyboardInterrupt):
            worker.reactor.raise_if_interrupted()
        worker.may_raise = True
        worker.cancel(task_id)
        assert worker.signal()

    worker.within(look)


def test_a_cancel_that_the_main_thread_reads_itself_is_raised_by_its_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Running(monkeypatch)

    def look(task_id: bytes) -> None:
        request = core_worker_pb2.CancelTaskRequest(task_id=task_id)
        worker.meanwhile(lambda: worker.execution.interrupter.cancel(request) and None)
        with pytest.raises(KeyboardInterrupt):
            worker.core.wait([worker.submit()], 1, 1.0, True)
        assert not worker.struck

    worker.within(look)


def test_no_other_task_is_struck(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Running(monkeypatch)
    first: list[bytes] = []

    def cancelled(task_id: bytes) -> None:
        assert not worker.cancel(b"another") and not worker.struck
        worker.cancel(task_id)
        first.append(task_id)

    def next_one(task_id: bytes) -> None:
        assert not worker.cancel(first[0])
        assert not worker.signal() and not worker.reactor.interrupted
        worker.pass_time(AGAIN_S)
        assert len(worker.struck) == 1

    worker.within(cancelled)
    worker.within(next_one)


def test_what_was_not_raised_before_a_task_ended_is_not_left_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Running(monkeypatch)

    def cancelled_meanwhile(task_id: bytes) -> None:
        worker.cancel(task_id)
        worker.may_raise = False
        worker.signal()
        assert worker.reactor.interrupted

    call = worker.within(cancelled_meanwhile)
    assert call.value == 1 and not worker.reactor.interrupted
    worker.may_raise = True
    assert not worker.signal()


def test_a_task_whose_code_has_run_is_not_interrupted_any_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Its large value is on its way to the store. The main thread waits for that, and reads the cancel."""
    worker = Worker(monkeypatch, store_file=tmp_path / "store")
    create = worker.wire.replies["Create"]
    found: list[bool] = []

    def cancelled_meanwhile(request: Any) -> Any:
        found.append(
            worker.execution.interrupter.cancel(core_worker_pb2.CancelTaskRequest(task_id=call.task_id))
        )
        worker.execution.interrupter.on_signal(signal.SIGINT, None)
        return create(request)

    worker.wire.replies["Create"] = cancelled_meanwhile
    call = worker.ask(worker.function(lambda: b"x" * (INLINE_BYTES_MAX + 1)))
    worker.run()
    assert found == [True] and call.answer.returns[0].in_plasma
    assert not worker.struck and not worker.reactor.interrupted


def test_code_that_is_interrupted_says_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Running(monkeypatch)

    def stopped_here() -> None:
        worker.cancel(worker.context.task_id())
        worker.execution.interrupter.on_signal(signal.SIGINT, None)

    call = worker.ask(worker.function(stopped_here))
    worker.run()
    assert isinstance(call.value.cause, TaskCancelledError) and "stopped_here" in str(call.value)
    assert call.task_id.hex() in str(call.value.cause)


def test_a_task_that_was_interrupted_before_its_code_ran_is_cancelled_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Running(monkeypatch)
    arguments = Interrupting(worker)
    call = worker.ask(worker.function(lambda argument: 1), arguments)
    after = worker.ask(worker.function(lambda: 1))
    worker.run()
    assert isinstance(call.value, TaskCancelledError) and after.value == 1


def test_a_cancel_that_strikes_when_its_task_has_begun_and_its_code_has_not_leaves_nothing_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes twice: the second may not be raised any more, and is noted for the next wait."""
    worker = Running(monkeypatch)

    def cancelled_twice(title: str) -> None:
        monkeypatch.setattr(process_title, "setproctitle", worker.titles.append)
        task_id = worker.running.task.task_id if worker.running.task is not None else b""
        assert worker.cancel(task_id)
        try:
            worker.execution.interrupter.on_signal(signal.SIGINT, None)
        finally:
            worker.cancel(task_id)
            worker.may_raise = False
            worker.signal()

    monkeypatch.setattr(process_title, "setproctitle", cancelled_twice)
    call = worker.ask(worker.function(lambda: 1))
    after = worker.ask(worker.function(lambda: worker.reactor.raise_if_interrupted() or 2))
    worker.run()
    assert isinstance(call.value, TaskCancelledError) and after.value == 2
    assert len(worker.struck) == 2


class Interrupting:
    """An argument that is read when its task is cancelled."""

    worker: Running

    def __init__(self, worker: Running) -> None:
        type(self).worker = worker

    def __reduce__(self) -> Any:
        return strike, ()


def strike() -> None:
    worker = Interrupting.worker
    worker.cancel(worker.running.task.task_id)
    worker.execution.interrupter.on_signal(signal.SIGINT, None)


def test_a_task_whose_code_has_not_begun_is_not_struck_and_never_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, ran = Running(monkeypatch), list[int]()
    worker.before_next_call(lambda: worker.cancel(worker.running.task.task_id))  # type: ignore[union-attr]
    call = worker.ask(worker.function(lambda: ran.append(1)))
    worker.run()
    assert type(call.value) is TaskCancelledError and not worker.struck and not ran


def test_with_force_the_process_ends_and_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Running(monkeypatch)
    ends: list[Any] = []

    def end(status: int) -> None:
        assert worker.wire.all("ReportWorkerDeath")
        ends.append((status, worker.reactor.num_flushes))

    monkeypatch.setattr(os, "_exit", end)
    flushes: list[int] = []

    def look(task_id: bytes) -> None:
        flushes.append(worker.reactor.num_flushes)
        worker.cancel(task_id, force=True)

    worker.within(look)
    (cause,) = worker.deaths()
    assert cause.kind == common_pb2.DeathCause.KILLED and "force=True" in cause.message
    ((status, num_flushes),) = ends
    assert status == 1 and num_flushes > flushes[0]


def test_what_the_task_submitted_is_cancelled_with_it_if_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Running(monkeypatch)
    children: list[Any] = []

    def look(task_id: bytes) -> None:
        children.append(worker.submit())
        worker.cancel(task_id)
        assert worker.state_of(children[0]).__class__.__name__ != "TaskCancelledError"
        worker.cancel(task_id, recursive=True)
        assert isinstance(worker.state_of(children[0]), TaskCancelledError)

    worker.within(look)


def test_an_actors_call_is_told_and_not_struck(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Running(monkeypatch)

    class Actor:
        def method(self) -> None:
            assert worker.cancel(worker.context.task_id())
            assert worker.context.is_cancelled() and not worker.signal()

    worker.actor(Actor)
    call = worker.ask(worker.method("method"))
    worker.run()
    assert type(call.value) is TaskCancelledError and not worker.struck


def test_a_task_that_waits_is_dropped_and_one_that_is_over_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Running(monkeypatch)
    over = worker.ask(worker.function(lambda: 1))
    worker.run()
    waits = worker.ask(worker.function(lambda: 1))
    assert not worker.cancel(over.task_id) and worker.cancel(waits.task_id)
    assert waits.status == Reply.CANCELLED


def test_a_task_that_waits_in_two_attempts_is_dropped_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their caller has lost its connection in between."""
    worker = Running(monkeypatch)
    ran: list[int] = []
    function = worker.function(lambda: ran.append(1))
    first = worker.ask(function)
    again = worker.ask(function, name=first.task_id)
    assert worker.cancel(first.task_id)
    assert [first.status, again.status] == [Reply.CANCELLED, Reply.CANCELLED]
    worker.run()
    assert not ran
