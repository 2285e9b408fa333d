"""The error of a task whose worker is gone: by what its raylet says, or by its silence."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from ray_mono.common.exceptions import NodeDiedError, WorkerCrashedError
from ray_mono.core_worker.task_submission.lost_worker import fail_lost
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError, StatusCode

WORKER = common_pb2.Address(worker_id=b"w" * 28, node_id=b"n" * 28, host="10.0.0.1")


class Scene:
    """A task whose worker is gone; its raylet is asked, and answers when the test says what."""

    def __init__(self, retries_left: int = 0, is_cancelled: bool = False) -> None:
        task: Any = SimpleNamespace(task_id=b"task", retries_left=retries_left)
        self.errors: list[BaseException] = []
        self.time_out: Callable[[], None] = lambda: None
        self.asked: Any = None
        self.answer: Callable[[Any, RpcError | None], None] = lambda reply, error: None
        tasks = SimpleNamespace(
            lost=lambda task, error: self.errors.append(error()),
            cancelled={b"task"} if is_cancelled else set(),
        )
        core: Any = SimpleNamespace(tasks=tasks, reactor=SimpleNamespace(call_later=self._call_later))
        raylet: Any = SimpleNamespace(LostWorker=SimpleNamespace(start=self._start))
        lease: Any = SimpleNamespace(lease_id=b"lease", address=WORKER, raylet=raylet)
        fail_lost(core, lease, task)
        assert (self.asked.lease_id, self.asked.worker_id) == (b"lease", WORKER.worker_id)

    def _call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        self.time_out = callback
        return SimpleNamespace(cancel=lambda: None)

    def _start(self, request: Any, on_done: Any) -> None:
        self.asked, self.answer = request, cast("Any", on_done)


def test_it_fails_once_with_what_the_raylet_says() -> None:
    scene = Scene()
    assert scene.errors == []
    scene.answer(common_pb2.DeathCause(message="worker pid 7 exited with code 3"), None)
    scene.time_out()
    (error,) = scene.errors
    assert isinstance(error, WorkerCrashedError) and "worker pid 7 exited with code 3" in str(error)


def test_a_raylet_that_is_gone_or_silent_means_that_the_node_is() -> None:
    gone, silent = Scene(), Scene()
    gone.answer(None, RpcError(StatusCode.UNAVAILABLE, "refused"))
    silent.time_out()
    silent.answer(common_pb2.DeathCause(message="late"), None)
    for scene, reason in ((gone, "refused"), (silent, "did not answer within")):
        (error,) = scene.errors
        assert isinstance(error, NodeDiedError)
        assert reason in str(error) and f"node {WORKER.node_id.hex()} (10.0.0.1)" in str(error)


def test_a_task_that_runs_again_or_was_cancelled_waits_for_nobody() -> None:
    for scene in (Scene(retries_left=1), Scene(retries_left=-1), Scene(is_cancelled=True)):
        assert len(scene.errors) == 1
        scene.answer(common_pb2.DeathCause(), None)
        assert len(scene.errors) == 1
