"""What a core worker answers its peers, also before it can run anything."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from ray_mono.core_worker.process.servicer import CoreWorkerServicer
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.rpc.surface import RpcError
from tests.core_worker.scene import Connection, Scene, Served
from tests.core_worker.worker_scene import OTHER_OWNER, Reply, Worker


class Serving(Worker):
    """A worker as its peers see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_ready: bool = True) -> None:
        super().__init__(monkeypatch)
        self.servicer = CoreWorkerServicer(is_worker=True)
        self.servicer.serve(self.core)
        if is_ready:
            self.servicer.execute(self.execution)

    def serve(self, method: str, request: Any, connection: Connection | None = None) -> Served:
        return serve(self.servicer, method, request, connection or self.connection)

    def push(  # type: ignore[override]
        self, task_id: bytes, function: Callable[[], Any] = lambda: 1, **fields: Any
    ) -> Served:
        request = core_worker_pb2.PushTaskRequest(template_id=1, task_id=task_id.ljust(24, b"."), **fields)
        if "pushed" not in self.connection.state:
            self.connection.state["pushed"] = True
            request.spec.CopyFrom(self.function(function))
        return self.serve("PushTask", request)


def serve(
    servicer: CoreWorkerServicer, method: str, request: Any, connection: Connection | None = None
) -> Served:
    call = Served(connection or Connection())
    with servicer.core.env.lock:
        getattr(servicer, method)(request, call)
    return call


def cancel(task_id: bytes, **fields: Any) -> Any:
    return core_worker_pb2.CancelTaskRequest(task_id=task_id.ljust(24, b"."), **fields)


# ---- before the worker can run anything


def test_a_cancel_that_comes_before_the_worker_is_ready_is_not_lost_and_the_others_keep_their_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Serving(monkeypatch, is_ready=False)
    raylet = worker.as_raylet()
    a = worker.push(b"a", lambda: raylet.begun(7), lease_id=b"lease", lease_number=7)
    b, c = worker.push(b"b"), worker.push(b"c")
    cancelled = worker.serve("CancelTask", cancel(b"b"))
    assert not any(call.replies for call in (a, b, c, cancelled))
    worker.servicer.execute(worker.execution)
    assert cancelled.answer.found and b.answer.status == Reply.CANCELLED
    worker.run()
    assert a.answer.plain != c.answer.plain and raylet.begun(7) == 3


def test_what_was_pushed_and_taken_back_before_the_worker_is_ready_never_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Serving(monkeypatch, is_ready=False)
    back, stays = worker.push(b"a"), None
    worker.serve("GiveBackTasks", common_pb2.Empty())
    stays = worker.push(b"b")
    worker.servicer.execute(worker.execution)
    assert back.answer.status == Reply.NOT_STARTED and not stays.replies


def test_acknowledgements_before_the_worker_is_ready_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Serving(monkeypatch, is_ready=False)
    worker.serve("AcknowledgeItems", core_worker_pb2.AcknowledgeItemsRequest())


def test_a_worker_that_is_not_ready_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Serving(monkeypatch, is_ready=False)
    with pytest.raises(RpcError, match="not yet, a worker"):
        worker.serve("Exit", core_worker_pb2.ExitRequest(force=True))


# ---- a driver


def test_a_driver_runs_nothing_and_cancels_what_is_its_own() -> None:
    scene = Scene()
    servicer = CoreWorkerServicer(is_worker=False)
    servicer.serve(scene.core)
    pushed = serve(servicer, "PushTask", core_worker_pb2.PushTaskRequest())
    assert pushed.answer.status == Reply.WRONG_WORKER
    assert not serve(servicer, "GiveBackTasks", common_pb2.Empty()).replies
    assert not serve(servicer, "CancelTask", cancel(b"a")).answer.found
    ref = scene.submit()
    asked = core_worker_pb2.CancelTaskRequest(task_id=ref.binary()[:24], to_owner=True)
    assert serve(servicer, "CancelTask", asked).answer.found
    assert type(scene.state_of(ref)).__name__ == "TaskCancelledError"
    assert not serve(servicer, "CancelTask", asked).answer.found, "it is over"
    with pytest.raises(RpcError):
        serve(servicer, "Exit", core_worker_pb2.ExitRequest())


# ---- a worker


def test_a_worker_runs_what_is_pushed_and_finds_what_is_to_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Serving(monkeypatch)
    call, waits = worker.push(b"a"), worker.push(b"b")
    assert worker.serve("CancelTask", cancel(b"b")).answer.found
    assert not worker.serve("CancelTask", cancel(b"c")).answer.found
    worker.run()
    assert call.answer.HasField("plain") and waits.answer.status == Reply.CANCELLED


def test_only_the_caller_s_own_tasks_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Serving(monkeypatch)
    call = worker.push(b"a")
    worker.serve("GiveBackTasks", common_pb2.Empty(), Connection())
    assert not call.replies
    worker.serve("GiveBackTasks", common_pb2.Empty())
    assert call.answer.status == Reply.NOT_STARTED


def test_templates_are_forgotten_of_one_connection_and_those_that_are_not_known_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Serving(monkeypatch)
    worker.push(b"a")
    other = Connection(state={1: "of another"})
    worker.serve("ForgetTemplates", core_worker_pb2.ForgetTemplatesRequest(template_ids=[1, 2]))
    assert 1 not in worker.connection.state and other.state == {1: "of another"}


def test_the_parts_answer_for_objects_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Serving(monkeypatch)
    ref = worker.core.put(1)
    object_id = ref.binary()
    status = worker.serve("GetObjectStatus", core_worker_pb2.GetObjectStatusRequest(object_id=object_id))
    assert status.replies
    added = core_worker_pb2.AddBorrowerRequest(object_id=object_id, borrower=OTHER_OWNER)
    assert worker.serve("AddBorrower", added).replies
    assert worker.wire.last("WaitForRefRemoved", "unix:other").request.object_id == object_id
    removed = worker.serve(
        "WaitForRefRemoved", core_worker_pb2.WaitForRefRemovedRequest(object_id=b"unknown".ljust(28))
    )
    assert removed.replies


def test_what_is_asked_for_state_is_the_core_workers_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Serving(monkeypatch)
    told = json.loads(worker.serve("DumpState", common_pb2.Empty()).answer.json)
    assert told == json.loads(json.dumps(worker.core.describe()))


# ---- its end


def test_an_idle_worker_that_nobody_needs_ends_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Serving(monkeypatch)
    worker.run()
    assert worker.serve("Exit", core_worker_pb2.ExitRequest()).replies
    assert not worker.run()


def hold_a_value(worker: Serving) -> Any:
    return worker.core.put(1)


def have_a_task(worker: Serving) -> Any:
    return worker.submit()


def have_one_queued(worker: Serving) -> Any:
    return worker.push(b"a")


@pytest.mark.parametrize("need", [hold_a_value, have_a_task, have_one_queued])
def test_a_worker_that_others_may_need_refuses_to_end(
    monkeypatch: pytest.MonkeyPatch, need: Callable[[Serving], Any]
) -> None:
    worker = Serving(monkeypatch)
    worker.run()
    kept = need(worker)
    with pytest.raises(RpcError, match="owns objects or has tasks"):
        worker.serve("Exit", core_worker_pb2.ExitRequest())
    assert worker.run() and kept


@pytest.mark.parametrize("rested", [False, True])
def test_one_that_runs_a_task_refuses_to_end(monkeypatch: pytest.MonkeyPatch, rested: bool) -> None:
    worker = Serving(monkeypatch)
    refused: list[bool] = []

    def task() -> None:
        with pytest.raises(RpcError):
            worker.serve("Exit", core_worker_pb2.ExitRequest())
        refused.append(True)

    if rested:
        assert worker.run(lambda: worker.push(b"a", task) and None)
    else:
        worker.push(b"a", task)
        assert worker.run()
    assert refused


def test_an_actor_ends_after_what_is_queued_whatever_it_owns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        def method(self) -> int:
            return 1

    worker = Serving(monkeypatch)
    worker.actor(Actor)
    kept = worker.core.put(1)
    call = worker.ask(worker.method("method"))
    assert worker.serve("Exit", core_worker_pb2.ExitRequest()).replies
    assert not worker.run() and call.value == 1 and kept


def test_with_force_the_process_ends_at_once_and_its_events_are_out(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Serving(monkeypatch)
    worker.ask(worker.function(lambda: 1, name="told"))
    worker.run()
    kept = worker.core.put(1)
    ends: list[Any] = []
    flushes = worker.reactor.num_flushes

    def end(status: int) -> None:
        ends.append((status, len(worker.wire.all("AddTaskEvents")), worker.reactor.num_flushes > flushes))

    monkeypatch.setattr(os, "_exit", end)
    answer = worker.serve("Exit", core_worker_pb2.ExitRequest(force=True))
    assert ends == [(1, 1, True)] and answer.replies and kept
