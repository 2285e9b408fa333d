"""Answers of a concurrent actor that wait for others: they are on the board, and whoever flushes next sends
them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from ray_mono.common.start_board import BoardOfAnother, StartBoard
from ray_mono.core_worker.task_execution.actor_runtime import ThreadGroup
from ray_mono.core_worker.task_execution.call import NO_EXTRAS, Call, KnownSpec
from ray_mono.core_worker.task_execution.kept_answers import KeptAnswers
from tests.core_worker.scene import Connection, Served
from tests.core_worker.worker_scene import WAIT_S, Pushed, Worker
from tests.waiting import wait_until


class Pool(Worker):
    """A threaded actor. An answer that looks whether others follow calls `look`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.look: Callable[[], bool] = lambda: False
        # Set while the main thread has nothing to do: it would send what is collected.
        self._rests = rests = threading.Event()
        self.looks: list[list[bytes]] = []
        """What was on the board at each of these."""
        self._short = self.method("short")

        def has_waiting(group: ThreadGroup) -> bool:
            is_followed = self.look()
            self.looks.append(self.on_board)
            return is_followed

        class Actor:
            def short(self) -> str:
                assert rests.wait(WAIT_S)
                return "value"

        monkeypatch.setattr(ThreadGroup, "has_waiting", has_waiting)
        self.actor(Actor, max_concurrency=2)
        self.call()  # what a method has not done yet is taken for long
        self.until_all_left()

    def call(self) -> Pushed:
        self._rests.clear()
        call = self.ask(self._short)
        self.run()
        self._rests.set()
        return call

    def collect(self) -> Pushed:
        """A call whose answer waits for others."""
        self.look, num_looks = lambda: True, len(self.looks)
        call = self.call()
        wait_until(lambda: len(self.looks) > num_looks, "its look at what follows")
        self.look = lambda: False
        return call

    def until_all_left(self) -> None:
        wait_until(lambda: self.looks and not self.on_board, "all answers to leave")

    @property
    def on_board(self) -> list[bytes]:
        """The calls whose answers its raylet would find if it died now."""
        return [task_id for task_id, _ in self.as_raylet().kept_calls()]


def test_an_answer_is_on_the_board_before_it_looks_whether_another_sends_it_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Else the call that follows could end between the look and then, and nobody would send this one's.
    worker = Pool(monkeypatch)
    call = worker.collect()
    assert worker.looks[-1] == [call.task_id] and not call.replies


def test_the_next_answer_that_is_sent_takes_those_along_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Pool(monkeypatch)
    calls = [worker.collect(), worker.collect()]
    assert worker.on_board == [call.task_id for call in calls]
    last = worker.call()
    worker.until_all_left()
    assert [call.value for call in (*calls, last)] == ["value"] * 3
    assert all(call.is_flushed for call in (*calls, last))


def test_a_leader_sends_at_the_end_of_its_turn_what_nobody_takes_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Pool(monkeypatch)
    call = worker.collect()
    assert worker.reactor.is_flushed_later
    worker.reactor.turn()
    assert call.is_flushed


def some_calls(worker: Worker) -> tuple[Call, Call]:
    spec, answer_to = KnownSpec(worker.method("short")), Served(Connection())
    return (
        Call(spec, b"1" * 24, 1, b"", NO_EXTRAS, answer_to),
        Call(spec, b"2" * 24, 1, b"", NO_EXTRAS, answer_to),
    )


def test_what_is_not_written_yet_stays_on_the_board_when_what_was_written_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    kept = KeptAnswers(worker.env, worker.board)
    written, collected = some_calls(worker)
    assert kept.keep(written, b"left") and kept.keep(collected, b"not written", is_written=False)
    kept.flushed()
    assert (collected.task_id, b"not written") in worker.as_raylet().kept_calls()
    kept.collected.clear()
    kept.flushed()
    assert worker.as_raylet().kept_calls() == []


def test_what_is_answered_while_the_board_is_in_use_leaves_at_once_and_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(StartBoard):
        """A finalizer of the user's runs while an answer is kept, and makes a call that is answered here."""

        def keep_call(self, task_id: bytes, answer: bytes) -> bool:
            seen.append(kept.keep(inner, b"in between"))
            kept.flushed()
            return super().keep_call(task_id, answer)

    worker = Worker(monkeypatch)
    seen: list[bool] = []
    board = Interrupted(b"w" * 28)
    kept = KeptAnswers(worker.env, board)
    outer, inner = some_calls(worker)
    assert kept.keep(outer, b"value", is_written=False) and seen == [False]
    assert BoardOfAnother(os.getpid(), board.fd, b"w" * 28).kept_calls() == [(outer.task_id, b"value")]
