"""What ends a worker: which call is the last, which are not answered, and what the GCS is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.core_worker.task_errors import ActorExit
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.worker_scene import Reply, Worker


def nothing() -> None: ...


def test_no_call_begins_after_a_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    task = worker.function(lambda: 1)
    before = worker.ask(task)
    worker.running.terminate()
    after = worker.ask(task)
    assert not worker.run()
    assert (before.status, after.status) == (None, Reply.WRONG_WORKER)


def test_no_call_begins_when_the_worker_ends_and_that_is_no_debt(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    task = worker.function(lambda: 1)
    before = worker.ask(task)
    worker.running.end()
    after = worker.ask(task)
    assert not worker.run()
    assert (before.status, after.status) == (None, Reply.WRONG_WORKER)
    assert not worker.running.owes_answer and not worker.running.is_terminated


def test_the_last_call_that_max_calls_allows_says_so_and_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    task, other = worker.function(nothing, max_calls=2), worker.function(nothing, max_calls=2)
    calls = [worker.ask(each) for each in (task, other, task, task)]
    assert not worker.run()
    assert [call.answer.worker_exiting for call in calls[:3]] == [False, False, True]
    assert calls[3].status is None and not worker.running.owes_answer


def test_a_task_that_raises_system_exit_is_not_answered_and_ends_its_worker_with_a_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)

    def leave() -> None:
        raise SystemExit(3)

    call = worker.ask(worker.function(leave))
    assert not worker.run()
    assert call.status is None and worker.running.owes_answer
    assert worker.running.exit_cause == "its code raised SystemExit(3)" and not worker.deaths()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ActorExit(), common_pb2.DeathCause.EXITED, "exit_actor() was called"),
        (SystemExit(0), common_pb2.DeathCause.EXITED, "its code raised SystemExit(0)"),
        (
            SystemExit(),
            common_pb2.DeathCause.WORKER_DIED,
            "worker pid 1 on node here ended: its code raised SystemExit(None)",
        ),
        (
            SystemExit(3),
            common_pb2.DeathCause.WORKER_DIED,
            "worker pid 1 on node here ended: its code raised SystemExit(3)",
        ),
        (
            SystemExit("why"),
            common_pb2.DeathCause.WORKER_DIED,
            "worker pid 1 on node here ended: its code raised SystemExit('why')",
        ),
    ],
    ids=repr,
)
@pytest.mark.parametrize("in_constructor", [False, True])
def test_an_actor_that_ends_itself_tells_the_gcs_how_and_answers_nothing(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: int, message: str, in_constructor: bool
) -> None:
    class Actor:
        def __init__(self) -> None:
            if in_constructor:
                raise error

        def leave(self) -> None:
            raise error

    worker = Worker(monkeypatch)
    call = worker.actor(Actor)
    if not in_constructor:
        call = worker.ask(worker.method("leave"))
    assert not worker.run()
    (cause,) = worker.deaths()
    assert (cause.kind, cause.message) == (kind, message) and call.status is None
    assert worker.running.owes_answer


def test_an_actor_that_a_sigterm_ends_is_not_said_to_have_left_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)

    class Actor:
        def struck(self) -> None:
            worker.running.terminate()
            raise SystemExit(1)

    worker.actor(Actor)
    call = worker.ask(worker.method("struck"))
    assert not worker.run()
    assert not worker.deaths() and call.status is None


def test_a_gcs_that_cannot_be_told_of_an_actors_exit_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        def leave(self) -> None:
            raise ActorExit

    worker = Worker(monkeypatch)

    def refuse(request: Any) -> None:
        raise RpcError(StatusCode.UNAVAILABLE, "gone")

    worker.wire.replies["ReportWorkerDeath"] = refuse
    worker.actor(Actor)
    worker.ask(worker.method("leave"))
    assert not worker.run()


def test_an_actor_that_a_thread_of_the_users_leaves_ends_after_the_call_that_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)

    class Actor:
        def method(self) -> int:
            assert worker.execution.exit_actor_from_thread()
            return 1

    assert not worker.execution.exit_actor_from_thread(), "there is no actor yet"
    worker.actor(Actor)
    call, later = worker.ask(worker.method("method")), worker.ask(worker.method("method"))
    assert not worker.run()
    assert call.value == 1 and call.answer.worker_exiting and later.status is None
    assert worker.running.take_leave() and not worker.running.take_leave(), "the GCS is to be told, once"
    assert not worker.deaths()


def test_a_sigterm_that_strikes_between_two_tasks_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    def struck() -> None:
        raise SystemExit(1)

    assert not worker.run(struck)


def test_a_sigterm_that_strikes_while_a_task_is_prepared_leaves_it_unanswered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)

    def struck(spec: Any) -> None:
        worker.running.terminate()
        worker.running.strike()
        raise SystemExit(1)

    worker.bind = struck
    call = worker.ask(worker.function(nothing))
    assert not worker.run()
    assert call.status is None


def test_a_constructor_that_fails_is_answered_and_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        def __init__(self) -> None:
            raise ValueError("no")

    worker = Worker(monkeypatch)
    call = worker.actor(Actor)
    assert isinstance(call.value.cause, ValueError) and call.answer.worker_exiting
    assert not worker.run() and worker.running.owes_answer
