"""Large returns: they are in the node's store, and their caller knows of each that stays there."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import ObjectStoreFullError
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import NODE_ID, Connection
from tests.core_worker.worker_scene import CALLER, LARGE, OTHER_OWNER, Arriving, Worker

OBJECT = b"o" * 28


class Trouble(BaseException):
    pass


@pytest.mark.parametrize("size_bytes", [INLINE_BYTES_MAX // 2, INLINE_BYTES_MAX + 1])
def test_a_large_value_goes_through_the_store_and_a_small_one_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, size_bytes: int
) -> None:
    worker = Worker(monkeypatch, store_file=tmp_path / "store")
    call = worker.ask(worker.function(lambda: bytes(size_bytes)))
    worker.run()
    if size_bytes < INLINE_BYTES_MAX:
        assert call.value == bytes(size_bytes) and not worker.wire.all("Create")
        return
    (returned,) = call.answer.returns
    assert (returned.object_id, returned.in_plasma, returned.node_id) == (call.returned_id(), True, NODE_ID)
    created = worker.wire.last("Create").request
    assert (created.object_id, created.owner_worker_id) == (returned.object_id, CALLER.worker_id)
    assert worker.sealed() == [created.object_id] and not worker.given_up()
    assert created.size_bytes == returned.size_bytes >= size_bytes


def test_large_returns_are_sealed_with_the_answer_and_go_with_a_worker_that_ends_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Worker(monkeypatch, store_file=tmp_path / "store")
    kept: list[Any] = []

    def keep(reference: Any) -> list[Any]:
        kept.append(reference)
        return [LARGE, 1, LARGE]

    call = worker.ask(worker.function(keep, num_returns=3), Arriving(OBJECT, OTHER_OWNER))
    worker.run()
    assert len(worker.wire.all("Create")) == 2 and not worker.sealed()
    left: list[Any] = []
    call.on_reply = lambda: left.extend(worker.wire.channels["store"].flushed)
    with worker.env.lock:
        worker.wire.last("AddBorrower").answer(common_pb2.Empty())
    ids = [call.returned_id(), call.returned_id(3)]
    assert worker.sealed() == ids == [each.request.object_id for each in left if each.method == "Seal"]


def test_a_large_return_that_an_earlier_attempt_left_is_told_of_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create(request: Any) -> Any:
        raise RpcError(StatusCode.ALREADY_EXISTS, "it is here already")

    worker = Worker(monkeypatch)
    worker.wire.replies["Create"] = create
    call = worker.ask(worker.function(lambda: LARGE))
    worker.run()
    assert call.answer.returns[0].in_plasma and not worker.sealed() and not worker.given_up()


def test_large_returns_that_a_caller_who_is_gone_will_not_hear_of_leave_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Worker(monkeypatch, store_file=tmp_path / "store")
    call = worker.ask(worker.function(lambda: (worker.connection.close(), LARGE), num_returns=2))
    worker.run()
    assert worker.given_up() == [call.returned_id(2)] and not worker.sealed()


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_task_that_runs_again_here_before_its_first_answer_has_left_shares_what_is_in_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, is_lost: bool
) -> None:
    worker = Worker(monkeypatch, store_file=tmp_path / "store")
    kept: list[Any] = []

    def keep(reference: Any) -> list[Any]:
        kept.append(reference)
        return [LARGE]

    cut_off = Connection()
    spec = worker.function(keep, num_returns=1)
    calls = [
        worker.ask(spec, Arriving(object_id, OTHER_OWNER), name=b"task", connection=connection)
        for object_id, connection in ((OBJECT, cut_off), (b"p" * 28, None))
    ]
    worker.run()
    assert len(worker.wire.all("Create")) == 1 and not worker.sealed()
    if is_lost:
        cut_off.close()
    first, second = worker.wire.all("AddBorrower")
    with worker.env.lock:
        first.answer(common_pb2.Empty())
    assert worker.sealed() == ([] if is_lost else [calls[0].returned_id()])
    with worker.env.lock:
        second.answer(common_pb2.Empty())
    assert worker.sealed() == [calls[1].returned_id()] and not worker.given_up()


def test_what_was_stored_of_returns_that_failed_together_leaves_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Worker(monkeypatch, store_file=tmp_path / "store")
    worker.room = 1
    call = worker.ask(worker.function(lambda: [LARGE, 1, LARGE], num_returns=3))
    worker.run()
    assert call.answer.is_application_error and not any(each.in_plasma for each in call.answer.returns)
    assert all(isinstance(each.cause, ObjectStoreFullError) for each in call.value)
    assert worker.given_up() == [call.returned_id()] and not worker.sealed()


def test_large_returns_that_are_not_told_of_by_our_fault_leave_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Worker(monkeypatch, store_file=tmp_path / "store")
    over, failures = worker.board.rest, [Trouble()]

    def fail_once() -> None:
        if failures and worker.wire.all("Create"):
            raise failures.pop()
        over()

    monkeypatch.setattr(worker.board, "rest", fail_once)
    call = worker.ask(worker.function(lambda: [LARGE, 1], num_returns=2))
    worker.run()
    assert call.answer.is_application_error
    assert worker.given_up() == [call.returned_id()] and not worker.sealed()
