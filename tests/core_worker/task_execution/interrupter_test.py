"""A cancel of a task that runs: whom its interrupt strikes, and that it is not left for the next task."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.task_execution.interrupter import Interrupter
from ray_mono.protobuf import core_worker_pb2
from tests.core_worker.queued_calls import executor_of, push


def a_task(name: bytes) -> TaskContext:
    return TaskContext(name * 24, b"job")


class Worker:
    """It runs one task, whose main thread is the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_raise = True
        self.timers: list[Any] = []
        self.struck: list[int] = []
        self.reactor = SimpleNamespace(
            interrupted=False,
            may_interrupt=lambda frame: self.may_raise,
            call_later=lambda delay_s, callback: self.timers.append(callback),
        )
        self.task = a_task(b"a")
        self._executor: Any = SimpleNamespace(running=self.task, actor=None, take_queued=lambda task_id: None)
        self.interrupts = Interrupter(self, self._executor)  # type: ignore[arg-type]
        self.interrupts.interruptible = self.task
        monkeypatch.setattr(
            "ray_mono.core_worker.task_execution.interrupter.strike_main_thread", self.struck.append
        )

    def cancel(self, name: bytes = b"a") -> bool:
        """As the background thread does, which hears of it."""
        found: list[bool] = []
        request = core_worker_pb2.CancelTaskRequest(task_id=name * 24)
        thread = threading.Thread(target=lambda: found.append(self.interrupts.cancel(request)))
        thread.start()
        thread.join()
        return found[0]

    def signal(self) -> bool:
        """Whether it raises."""
        try:
            self.interrupts.on_signal(signal.SIGINT, None)
        except KeyboardInterrupt:
            return True
        return False


def test_a_cancel_strikes_its_task_once_and_again_only_until_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    assert not worker.signal(), "the terminal's is the driver's"
    assert worker.cancel() and worker.task.is_cancelled and worker.struck == [signal.SIGINT]
    worker.timers.pop()()
    assert len(worker.struck) == 2
    assert worker.signal() and not worker.signal()
    worker.timers.pop()()
    assert len(worker.struck) == 2 and not worker.timers


def test_what_may_not_be_raised_here_is_noted_for_the_next_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    worker.cancel()
    worker.may_raise = False
    assert not worker.signal() and worker.reactor.interrupted
    # The wait has raised it; what was sent meanwhile is the same one.
    worker.reactor.interrupted = False
    worker.may_raise = True
    assert not worker.signal()


def test_no_other_task_is_struck(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    assert not worker.cancel(b"b") and not worker.struck
    worker.cancel()
    worker.interrupts.interruptible = a_task(b"b")
    assert not worker.signal() and not worker.reactor.interrupted
    worker.timers.pop()()
    assert len(worker.struck) == 1


def test_what_was_not_raised_before_a_task_ended_is_not_left_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor: Any = executor_of()
    push(executor, SimpleNamespace(state={}), b"a")
    call, task = executor.take_queued(b"a"), a_task(b"a")
    executor.core.context = SimpleNamespace(enter=lambda task: None, leave=lambda token: None)
    executor.core.reactor.interrupted = False
    monkeypatch.setattr(executor.events, "add", lambda task, started_s: None)
    monkeypatch.setattr(executor.answers, "finish", lambda call, task, value: None)

    def cancelled_meanwhile() -> None:
        task.is_cancelled = True
        executor.interrupts._wanted = task
        executor.core.reactor.interrupted = True

    executor.interrupts.interruptible = task
    executor.run_here(call, task, [cancelled_meanwhile, [], {}])
    assert executor.interrupts._wanted is None and executor.interrupts.interruptible is None
    assert not executor.core.reactor.interrupted
