"""Before the next call begins, which may end the process, the answers of those before it have left."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.start_board import cell_of
from ray_mono.protobuf import common_pb2
from tests.core_worker.worker_scene import CALLER, OTHER_OWNER, Arriving, Worker


@pytest.mark.parametrize("num_returns", [1, 2])
def test_before_the_next_call_begins_a_caller_that_does_not_read_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch, num_returns: int
) -> None:
    class Actor:
        def method(self) -> Any:
            seen.append(list(worker.connection.drains_s))
            return "value" if num_returns == 1 else (1, 2)

    seen: list[Any] = []
    worker = Worker(monkeypatch)
    worker.actor(Actor)
    worker.connection.drains_s.clear()
    spec = worker.method("method", num_returns=num_returns)

    def call() -> None:
        worker.ask(spec)
        worker.run()

    call()
    worker.connection.has_unsent = True
    for _ in range(3):
        call()
    bound_s = worker.config.unread_answer_s
    assert seen == [[], [], [bound_s], [bound_s]]
    worker.reactor.now_s += worker.config.unread_again_s
    call()
    assert worker.connection.drains_s == [bound_s] * 2


@pytest.mark.parametrize("reason", ["it does not read", "an owner does not answer"])
def test_a_caller_that_is_not_waited_for_any_more_is_on_the_board_since_its_answers_may_be_lost(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    class Actor:
        def keep(self, *given: Any) -> None:
            kept.extend(given)

    kept: list[Any] = []
    worker = Worker(monkeypatch)
    worker.actor(Actor)
    raylet, keep = worker.as_raylet(), worker.method("keep")
    worker.ask(keep)
    worker.run()
    assert raylet.lost_callers() == []
    worker.connection.has_unsent = reason == "it does not read"
    worker.ask(keep, *[Arriving(b"1" * 28, OTHER_OWNER)] * (reason != "it does not read"))
    worker.run()
    assert raylet.lost_callers() == [cell_of(CALLER.worker_id)]
    worker.ask(keep)
    worker.run()
    assert raylet.lost_callers() == [cell_of(CALLER.worker_id)]


def test_the_next_call_gives_owners_a_moment_and_one_that_is_stopped_is_not_waited_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def acknowledge() -> None:
        with worker.env.lock:
            worker.wire.last("AddBorrower").answer(common_pb2.Empty())

    worker = Worker(monkeypatch)
    kept: list[Any] = []
    seen: list[Any] = []
    next_one = worker.function(lambda: seen.append((len(call.replies), worker.reactor.now_s)))
    began_s = worker.reactor.now_s
    for number, owner_answers in enumerate((True, False, False)):
        call = worker.ask(worker.function(kept.append), Arriving(b"%028d" % number, OTHER_OWNER))
        worker.ask(next_one)
        worker.run(*[acknowledge] * owner_answers)
    late_s = began_s + worker.config.unread_answer_s
    assert seen == [(1, began_s), (0, late_s), (0, late_s)]
