"""The executor's queue: what comes, what is given back, and what is cancelled before it runs."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.start_board import BoardOfAnother
from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.process.registration import CoreWorkerServicer
from ray_mono.core_worker.task_execution.call import Call, KnownSpec, Reply
from ray_mono.core_worker.task_execution.executor import Executor, _may_go_elsewhere
from ray_mono.core_worker.task_execution.task_reply import ALONE_US
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.core_worker.queued_calls import FakeCall, executor_of, push


def test_the_lease_is_known_although_the_task_that_named_it_was_given_back() -> None:
    executor = executor_of()
    connection = SimpleNamespace(state={})
    first = push(executor, connection, b"first", b"lease")
    executor.GiveBackTasks(common_pb2.Empty(), first)  # type: ignore[arg-type]
    assert first.replies == [Reply.NOT_STARTED]
    # The next one of the lease does not name it, and may have to say that it waits.
    push(executor, connection, b"second")
    assert executor.core.getter.lease_id == b"lease"


def test_a_cancelled_call_is_answered_and_never_runs() -> None:
    executor = executor_of()
    connection = SimpleNamespace(state={})
    calls = [push(executor, connection, name) for name in (b"a", b"b", b"c")]
    assert executor.interrupts.cancel(core_worker_pb2.CancelTaskRequest(task_id=b"b"))
    assert [call.replies for call in calls] == [[], [Reply.CANCELLED], []]
    assert not executor.interrupts.cancel(core_worker_pb2.CancelTaskRequest(task_id=b"b"))
    assert [call.own.task_id for call in executor._queue if call] == [b"a", b"c"]


def test_answers_wait_for_calls_of_methods_that_ran_short_and_for_no_other() -> None:
    flushes: list[str] = []
    executor: Any = executor_of()
    executor.core.lock = threading.RLock()
    executor.core.drain = lambda: None
    executor.core.reactor = SimpleNamespace(
        flush=lambda: flushes.append("now"), flush_soon=lambda: flushes.append("soon")
    )
    connection = SimpleNamespace(state={})

    def queue(name: str, template: int) -> None:
        spec = common_pb2.TaskSpec(type=common_pb2.ACTOR_TASK, name=name, num_returns=1)
        request = core_worker_pb2.PushTaskRequest(template_id=template, task_id=name.encode())
        if template not in connection.state:
            request.spec.CopyFrom(spec)
        executor.PushTask(request, FakeCall(connection))

    def answer(run_us: int) -> str:
        call = executor._queue.popleft()
        executor.answers.finish(call, TaskContext(b"t" * 24, b"job", run_us=run_us), 1)
        return flushes.pop()

    queue("short", 1)
    queue("short", 1)
    queue("long", 2)
    queue("short", 1)
    queue("long", 2)
    queue("short", 1)
    assert answer(0) == "soon"
    assert answer(0) == "now", "the next one may hold the GIL, or end the process"
    assert answer(ALONE_US) == "now", "it took long"
    assert answer(0) == "now", "the next one took long the last time"
    assert answer(0) == "soon"
    assert answer(0) == "now", "nothing follows"


def test_tasks_of_a_lease_are_counted_as_they_come_whatever_becomes_of_them() -> None:
    executor = executor_of()
    connection = SimpleNamespace(state={})
    push(executor, connection, b"a", b"first", lease_number=7)
    push(executor, connection, b"b")
    executor.interrupts.cancel(core_worker_pb2.CancelTaskRequest(task_id=b"b"))
    push(executor, connection, b"c")
    calls = [executor.take_queued(name) for name in (b"a", b"c")]
    assert [call.number for call in calls if call] == [(7 << 32) + 1, (7 << 32) + 3]
    push(executor, connection, b"d", b"second", lease_number=9)
    (call,) = [executor.take_queued(b"d")]
    assert call is not None and call.number == (9 << 32) + 1


def test_a_cancel_that_comes_before_the_worker_is_ready_is_not_lost_and_the_others_keep_their_numbers() -> (
    None
):
    servicer: Any = CoreWorkerServicer(is_worker=True)
    connection = SimpleNamespace(state={})
    calls = {}
    for task_id in (b"a", b"b", b"c"):
        spec = common_pb2.TaskSpec(type=common_pb2.NORMAL_TASK)
        request = core_worker_pb2.PushTaskRequest(spec=spec, template_id=1, task_id=task_id)
        if task_id == b"a":
            request.lease_id, request.lease_number = b"lease", 7
        calls[task_id] = FakeCall(connection)
        servicer.PushTask(request, calls[task_id])
    answer = SimpleNamespace(replies=[], reply=lambda message: answer.replies.append(message.found))
    servicer.CancelTask(core_worker_pb2.CancelTaskRequest(task_id=b"b"), answer)
    assert answer.replies == []
    executor = executor_of()
    servicer.set_executor(executor)
    assert answer.replies == [True] and calls[b"b"].replies == [Reply.CANCELLED]
    last = executor.take_queued(b"c")
    assert last is not None and last.number & 0xFFFF == 3


def test_a_call_in_which_our_own_code_fails_is_answered_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor = executor_of()
    executor.core.reactor.is_closed = False
    executor.core.lock = threading.Lock()  # type: ignore[assignment]
    connection = SimpleNamespace(state={})
    for name in (b"first", b"last"):
        push(executor, connection, name)
    executor.exit_after_queue()
    answered: list[Any] = []

    def fail(call: Any, task: Any) -> None:
        raise SystemExit(3)

    def end(core: Any, executor: Any) -> None: ...

    monkeypatch.setattr(executor, "_handle", fail)
    monkeypatch.setattr(
        executor.answers,
        "answer_anyhow",
        lambda call, task, error: answered.append((task.task_id, error.code)),
    )
    monkeypatch.setattr("ray_mono.core_worker.task_execution.executor.leave", end)
    executor.core.reactor.flush = lambda: None  # type: ignore[method-assign]
    executor.run()
    assert answered == [(b"first", 3), (b"last", 3)]


@pytest.mark.parametrize(
    "kind", [common_pb2.NORMAL_TASK, common_pb2.ACTOR_CREATION_TASK, common_pb2.ACTOR_TASK]
)
@pytest.mark.parametrize("waits_for_room", [True, False])
def test_a_task_and_a_constructor_are_moved_to_their_arguments_once_and_a_call_never(
    kind: common_pb2.TaskType, waits_for_room: bool
) -> None:
    request = core_worker_pb2.PushTaskRequest(
        spec=common_pb2.TaskSpec(type=kind), waits_for_room=waits_for_room
    )
    call = Call(KnownSpec(request.spec), request, FakeCall(None))  # type: ignore[arg-type]
    assert _may_go_elsewhere(call) == (kind != common_pb2.ACTOR_TASK and not waits_for_room)


def test_no_call_begins_after_a_sigterm() -> None:
    executor = executor_of()
    connection = SimpleNamespace(state={})
    before = push(executor, connection, b"before")
    executor.end_after_this()
    after = push(executor, connection, b"after")
    assert (before.replies, after.replies) == ([], [Reply.WRONG_WORKER])


def as_raylet(executor: Executor) -> BoardOfAnother:
    return BoardOfAnother(os.getpid(), executor._board.fd, b"w" * 28)


def test_a_task_of_a_lease_that_was_closed_is_answered_and_never_begins() -> None:
    executor = executor_of()
    executor.core.lock = threading.RLock()  # type: ignore[misc]
    executor.core.reactor.flush = lambda: None  # type: ignore[method-assign]
    push(executor, SimpleNamespace(state={}), b"a", b"lease", lease_number=7)
    call: Any = executor.take_queued(b"a")
    as_raylet(executor).close_lease(7)
    executor._handle(call, TaskContext(b"a", b"job"))
    assert call.to.replies == [Reply.NOT_STARTED]
