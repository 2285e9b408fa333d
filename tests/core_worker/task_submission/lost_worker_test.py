"""The error of a task whose worker is gone: by what its raylet says, or by its silence."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import NODE_ID, Said, Scene, value
from tests.core_worker.task_submission.tasks import a_worker_with, id_of, lose, pushed, raylet_says


class Lost:
    """A task whose worker is gone; its raylet is asked, and answers when the test says what."""

    def __init__(self, is_cancelled: bool = False, **options: Any) -> None:
        self.scene = Scene(lost_worker_answer_s=10.0)
        self.ref = self.scene.submit(**options)
        granted = self.scene.grant()
        if is_cancelled:
            self.scene.core.cancel(self.ref, False, False)
        lose(self.scene)
        request = self.asked.request
        assert request.lease_id == granted.request.lease_id
        assert request.worker_id == self.scene.worker.worker_id

    @property
    def asked(self) -> Said:
        (asked,) = self.scene.wire.all("LostWorker")
        assert asked.to == "raylet"
        return asked

    def outcome(self) -> Any:
        return self.scene.state_of(self.ref)


def test_it_fails_once_with_what_the_raylet_says() -> None:
    lost = Lost(max_retries=0)
    lost.scene.pass_time(9.9)
    assert isinstance(lost.outcome(), GetTimeoutError)
    lost.asked.answer(common_pb2.DeathCause(message="worker pid 7 exited with code 3"))
    lost.scene.pass_time(20)
    error = lost.outcome()
    assert isinstance(error, WorkerCrashedError) and "worker pid 7 exited with code 3" in str(error)


def test_a_raylet_that_knows_no_cause_is_believed_all_the_same() -> None:
    lost = Lost(max_retries=0)
    lost.asked.answer(common_pb2.DeathCause())
    assert isinstance(lost.outcome(), WorkerCrashedError)


def test_a_raylet_that_is_gone_means_that_the_node_is() -> None:
    lost = Lost(max_retries=0)
    lost.asked.fail(RpcError(StatusCode.UNAVAILABLE, "refused"))
    error = lost.outcome()
    assert isinstance(error, NodeDiedError)
    assert "refused" in str(error) and f"node {NODE_ID.hex()} (worker)" in str(error)


def test_a_raylet_that_is_silent_means_that_the_node_is_gone() -> None:
    lost = Lost(max_retries=0)
    lost.scene.pass_time(10)
    assert isinstance(lost.outcome(), NodeDiedError)
    lost.asked.answer(common_pb2.DeathCause(message="late"))
    error = lost.outcome()
    assert "did not answer within 10 s" in str(error) and f"node {NODE_ID.hex()} (worker)" in str(error)


def test_a_task_whose_raylet_answers_after_it_was_given_up_runs_again_once() -> None:
    scene = Scene(lost_worker_answer_s=10.0)
    first, second = a_worker_with(scene, 2, max_retries=3)
    lose(scene)
    scene.pass_time(10)
    scene.turn()
    raylet_says(scene, begun=2)
    scene.finish(first, value(1))
    scene.finish(second, value(2))
    assert scene.core.get([first, second], None) == [1, 2]
    attempts = [
        said.request.attempt for said in scene.wire.all("PushTask") if said.request.task_id == id_of(second)
    ]
    assert attempts == [0, 1]


@pytest.mark.parametrize("retries", [1, -1])
def test_a_task_that_runs_again_waits_for_nobody(retries: int) -> None:
    lost = Lost(max_retries=retries)
    lost.scene.grant()
    assert len(pushed(lost.scene)) == 2
    lost.asked.answer(common_pb2.DeathCause())
    assert isinstance(lost.outcome(), GetTimeoutError)


def test_a_task_that_was_cancelled_waits_for_nobody() -> None:
    lost = Lost(is_cancelled=True, max_retries=0)
    assert isinstance(lost.outcome(), TaskCancelledError)
    lost.asked.answer(common_pb2.DeathCause())
    assert isinstance(lost.outcome(), TaskCancelledError)


def test_a_task_that_is_cancelled_while_its_raylet_is_asked_was_cancelled() -> None:
    lost = Lost(max_retries=0)
    lost.scene.core.cancel(lost.ref, False, False)
    lost.asked.answer(common_pb2.DeathCause(message="signal 9"))
    assert isinstance(lost.outcome(), TaskCancelledError)
