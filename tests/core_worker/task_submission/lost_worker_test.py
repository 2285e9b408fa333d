"""The error of a task whose worker is gone: by what its raylet says, or by its silence."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import NODE_ID, Reply, Said, Scene, address_of, value
from tests.core_worker.task_submission.tasks import (
    SECOND,
    a_worker_with,
    asked,
    id_of,
    lose,
    push_of,
    raylet_says,
)

KILLED = common_pb2.DeathCause.OUT_OF_MEMORY


def attempts(scene: Scene, ref: ObjectRef[Any]) -> list[int]:
    """Of its task, in order."""
    pushes = [said.request for said in scene.wire.all("PushTask")]
    return [request.attempt for request in pushes if request.task_id == id_of(ref)]


def out_of_memory(retries_max: int = -1, pause_s: float = 1.0) -> common_pb2.DeathCause:
    """What a raylet says of a worker that it killed."""
    retries = common_pb2.OomRetries(retries_max=retries_max, pause_s=pause_s)
    return common_pb2.DeathCause(kind=KILLED, message="node 7 runs short of memory", oom_retries=retries)


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
    assert attempts(scene, second) == [0, 1]


@pytest.mark.parametrize("retries", [1, -1])
def test_a_task_runs_again_when_its_raylet_has_said_how_its_worker_ended(retries: int) -> None:
    lost = Lost(max_retries=retries)
    assert not asked(lost.scene)
    lost.asked.answer(common_pb2.DeathCause())
    lost.scene.grant()
    assert attempts(lost.scene, lost.ref) == [0, 1] and isinstance(lost.outcome(), GetTimeoutError)


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


# ---- the node ran short of memory


class Hog:
    """A task whose workers are killed for their node's memory, one after another."""

    def __init__(self, **options: Any) -> None:
        self.scene = Scene()
        self.num_workers = 0
        self.ref = self.scene.submit(**options)

    def is_killed(self, death: common_pb2.DeathCause) -> None:
        """It gets a worker, which is killed."""
        self.num_workers += 1
        name = b"worker %d" % self.num_workers
        self.scene.grant(address_of(name))
        lose(self.scene, f"unix:{name.decode()}")
        (told,) = self.scene.wire.open("LostWorker")
        told.answer(death)

    def pause_s(self) -> float:
        """Until its next attempt is due: a lease is asked for then."""
        before_s = self.scene.reactor.now_s
        assert not asked(self.scene)
        while not asked(self.scene):
            assert self.scene.reactor.now_s < before_s + 1000
            self.scene.pass_time(0.5)
        return self.scene.reactor.now_s - before_s

    def outcome(self) -> Any:
        return self.scene.state_of(self.ref)


def test_a_task_that_was_killed_for_memory_runs_again_without_cost_after_pauses_that_double() -> None:
    hog = Hog(max_retries=1)
    pauses_s = []
    for _ in range(8):
        hog.is_killed(out_of_memory())
        pauses_s.append(hog.pause_s())
    assert pauses_s == [1, 2, 4, 8, 16, 32, 60, 60]
    # Its retry is unspent: a crash costs it, and the next one ends it.
    hog.is_killed(common_pb2.DeathCause())
    assert isinstance(hog.outcome(), GetTimeoutError)
    hog.is_killed(common_pb2.DeathCause())
    assert isinstance(hog.outcome(), WorkerCrashedError)
    assert attempts(hog.scene, hog.ref) == list(range(10))


def test_crashes_do_not_count_among_the_deaths_for_memory() -> None:
    hog = Hog(max_retries=-1)
    for _ in range(3):
        hog.is_killed(common_pb2.DeathCause())
    hog.is_killed(out_of_memory(retries_max=1))
    assert hog.pause_s() == 1
    hog.is_killed(out_of_memory(retries_max=1))
    assert isinstance(hog.outcome(), OutOfMemoryError)


@pytest.mark.parametrize(("retries", "retries_max"), [(0, -1), (0, 3), (3, 0), (-1, 0)])
def test_a_task_that_may_not_run_again_fails_with_what_the_raylet_says(
    retries: int, retries_max: int
) -> None:
    hog = Hog(max_retries=retries)
    hog.is_killed(out_of_memory(retries_max))
    hog.scene.pass_time(100)
    error = hog.outcome()
    assert isinstance(error, OutOfMemoryError) and str(error) == "node 7 runs short of memory"
    assert not asked(hog.scene)


TAKEN_AWAY = common_pb2.DeathCause(
    kind=common_pb2.DeathCause.NODE_DIED, message="its node was drained", is_preempted=True
)


def test_a_task_whose_node_is_taken_away_runs_again_at_once_without_cost() -> None:
    task = Hog(max_retries=1)
    for _ in range(4):
        task.is_killed(TAKEN_AWAY)
    task.is_killed(common_pb2.DeathCause())
    assert attempts(task.scene, task.ref) == list(range(5))
    task.is_killed(common_pb2.DeathCause())
    assert isinstance(task.outcome(), WorkerCrashedError)


def test_one_that_may_never_run_again_fails_with_that() -> None:
    task = Hog(max_retries=0)
    task.is_killed(TAKEN_AWAY)
    error = task.outcome()
    assert isinstance(error, NodeDiedError) and "its node was drained" in str(error)


def test_task_oom_retries_are_kept_to() -> None:
    hog = Hog(max_retries=1)
    for _ in range(3):
        hog.is_killed(out_of_memory(retries_max=3))
        hog.pause_s()
    hog.is_killed(out_of_memory(retries_max=3))
    assert isinstance(hog.outcome(), OutOfMemoryError)


@pytest.mark.parametrize("when", ["before its raylet has answered", "in the pause"])
def test_a_task_that_is_cancelled_does_not_run_again_after_the_pause(when: str) -> None:
    hog = Hog(max_retries=3)
    hog.scene.grant()
    lose(hog.scene)
    (told,) = hog.scene.wire.open("LostWorker")
    if when == "in the pause":
        told.answer(out_of_memory())
    hog.scene.core.cancel(hog.ref, False, False)
    if when != "in the pause":
        told.answer(out_of_memory())
    assert isinstance(hog.outcome(), TaskCancelledError)
    hog.scene.pass_time(10)
    assert not asked(hog.scene)


def test_of_a_worker_that_was_killed_for_memory_only_what_had_begun_waits() -> None:
    scene = Scene()
    first, second, third = a_worker_with(scene, 3, max_retries=3)
    lose(scene)
    scene.wire.open("LostWorker")[0].answer(out_of_memory())
    words = raylet_pb2.LastWordsReply(is_known=True, begun=2, first=1, plain=[value(7).plain])
    scene.wire.open("LastWords")[0].answer(words)
    scene.finish(third, value(3))
    assert scene.core.get([first], 0) == [7] and attempts(scene, second) == [0]
    scene.pass_time(1)
    scene.grant(SECOND)
    assert attempts(scene, second) == [0, 1] and attempts(scene, third) == [0, 0]


def test_a_task_without_retries_shares_no_worker_with_one_that_has_some() -> None:
    """The raylet is told which workers it may kill before the others."""
    scene = Scene()
    scene.submit(max_retries=0)
    scene.submit(max_retries=3)
    requests = [said.request for said in asked(scene)]
    assert [request.is_retriable for request in requests] == [False, True]


def two_on_another_node(scene: Scene) -> list[ObjectRef[Any]]:
    """Tasks on a worker each of one node, whose raylet is at far:7."""
    refs = [scene.submit(max_retries=1) for _ in range(2)]
    spillback = raylet_pb2.Spillback(host="far", port=7)
    for said in asked(scene):
        said.answer(raylet_pb2.RequestWorkerLeaseReply(spillback=spillback))
    scene.grant()
    scene.grant(SECOND)
    return refs


@pytest.mark.parametrize("first_to_end", ["far:7", "unix:worker"])
def test_a_task_that_is_lost_with_its_node_does_not_go_to_another_worker_of_that_node(
    first_to_end: str,
) -> None:
    """That would cost it a retry for each of them."""
    scene = Scene(rejected_retry_s=0.1)
    lost, other = two_on_another_node(scene)
    push_of(scene, other).answer(value("other"))
    lose(scene, first_to_end)
    lose(scene, "far:7")
    lose(scene, "unix:worker")
    scene.pass_time(0.0)
    lose(scene, "unix:second")
    scene.turn()
    assert attempts(scene, lost) == [0]
    assert asked(scene)[0].to == "raylet"
    scene.grant(address_of(b"third"))
    push_of(scene, lost).answer(value("lost"))
    assert scene.core.get([lost, other], None) == ["lost", "other"]
    assert attempts(scene, lost) == [0, 1]


def test_a_task_does_not_go_to_an_idle_worker_that_is_gone_and_pays_nothing() -> None:
    scene = Scene()
    first = scene.submit(max_retries=0)
    scene.grant()
    push_of(scene, first).answer(value(1))
    lose(scene)
    ref = scene.submit(max_retries=0)
    assert [said.request.worker_id for said in scene.wire.all("LostWorker")] == [scene.worker.worker_id]
    scene.grant(SECOND)
    push_of(scene, ref).answer(value(2))
    assert scene.state_of(ref) == 2 and attempts(scene, ref) == [0]


def test_a_task_that_runs_when_its_worker_refuses_more_and_dies_does_not_run_again_without_retries() -> None:
    scene = Scene()
    first, second, third = a_worker_with(scene, 3, max_retries=0)
    push_of(scene, second).answer(Reply(status=Reply.WRONG_WORKER))
    lose(scene)
    raylet_says(scene, begun=1)
    scene.grant(SECOND)
    assert attempts(scene, second) == attempts(scene, third) == [0, 0]
    assert isinstance(scene.state_of(first), WorkerCrashedError) and attempts(scene, first) == [0]
