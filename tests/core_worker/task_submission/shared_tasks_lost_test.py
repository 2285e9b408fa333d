"""Normal tasks of a `map` whose worker dies: what it ran, what was over, and what had not begun."""

from __future__ import annotations

from typing import Any

from ray_mono.common.exceptions import NodeDiedError, TaskCancelledError, WorkerCrashedError
from ray_mono.core_worker.task_wire import plains_of
from ray_mono.protobuf import common_pb2, raylet_pb2
from tests.core_worker.scene import value, values
from tests.core_worker.task_submission.mapped import a_scene, mapped
from tests.core_worker.task_submission.tasks import (
    SECOND,
    answer,
    frames,
    id_of,
    ids_in,
    ids_of,
    lose,
    num_queued,
    outcomes,
)


class Lost:
    """Of six tasks the first is answered; then their worker is gone, and its raylet is asked."""

    def __init__(self, max_retries: int) -> None:
        self.scene = a_scene(max_retries)
        self.refs = mapped(self.scene, range(6), max_retries=max_retries)
        answer(self.scene, self.refs[0])
        lose(self.scene)
        (self.asked,) = self.scene.wire.open("LostWorker")

    def told(self, **fields: Any) -> list[Any]:
        """The raylet answers, the second time with these LastWords. What became of the last five."""
        self.asked.answer(common_pb2.DeathCause(message="it crashed"))
        (asked,) = self.scene.wire.open("LastWords")
        assert asked.request.worker_id == self.scene.worker.worker_id
        assert asked.request.lease_number == 7
        asked.answer(raylet_pb2.LastWordsReply(**fields))
        return self.outcomes

    @property
    def outcomes(self) -> list[Any]:
        queued = num_queued(self.scene)
        found = outcomes(self.scene, self.refs[1:])
        assert sum(each.__class__ is type and each.__name__ == "GetTimeoutError" for each in found) == queued
        return found

    def again(self) -> set[tuple[bytes, int]]:
        """What runs again, once there is a worker, and at which attempt."""
        self.scene.grant(SECOND)
        found = set()
        while waiting := self.scene.wire.open("PushTask", "unix:second"):
            found.add((waiting[0].request.task_id, waiting[0].request.attempt))
            waiting[0].answer(value(0, run_us=1))
        for frame in frames(self.scene, "unix:second"):
            found |= {(task_id, 0) for task_id in ids_in(frame)}
        return found


def plain(*of: Any) -> list[bytes]:
    return plains_of(values(0, *of))


def test_of_a_worker_that_died_only_what_it_ran_costs_a_retry() -> None:
    # On its lease: the task that warmed it up, and six. The third and fourth are over, the fifth ran.
    lost = Lost(max_retries=1)
    found = lost.told(is_known=True, begun=5, first=3, plain=plain("b", "c"))
    assert found[:2] == ["b", "c"]
    refs = lost.refs
    assert lost.again() == {(id_of(refs[3]), 1), (id_of(refs[4]), 0), (id_of(refs[5]), 0)}


def test_without_retries_what_it_ran_fails_and_the_others_run_elsewhere() -> None:
    lost = Lost(max_retries=0)
    found = lost.told(is_known=True, begun=5, first=3, plain=plain("b", "c"))
    assert found[:3] == ["b", "c", WorkerCrashedError]
    assert lost.again() == {(each, 0) for each in ids_of(*lost.refs[4:])}


def test_where_the_raylet_does_not_know_all_of_them_may_have_begun() -> None:
    assert Lost(max_retries=0).told() == [WorkerCrashedError] * 5
    lost = Lost(max_retries=1)
    lost.told()
    assert lost.again() == {(each, 1) for each in ids_of(*lost.refs[1:])}


def test_a_raylet_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    lost = Lost(max_retries=0)
    lost.scene.pass_time(lost.scene.config.lost_worker_answer_s + 1)
    assert lost.outcomes == [NodeDiedError] * 5


def test_the_last_of_a_frame_may_be_over_when_its_worker_dies() -> None:
    scene = a_scene(max_retries=0)
    refs = mapped(scene, range(3), max_retries=0)
    answer(scene, refs[0])
    (frame,) = frames(scene)
    frame.part(values(0, "b"))
    lose(scene)
    scene.wire.open("LostWorker")[0].answer(common_pb2.DeathCause())
    words = raylet_pb2.LastWordsReply(is_known=True, begun=4, first=4, plain=plain("c"))
    scene.wire.open("LastWords")[0].answer(words)
    assert scene.core.get(refs[1:], 0) == ["b", "c"]


def test_what_was_cancelled_is_not_run_again() -> None:
    scene = a_scene()
    refs = mapped(scene, range(4))
    scene.core.cancel(refs[3], False, False)
    answer(scene, refs[0])
    lose(scene)
    scene.wire.open("LostWorker")[0].answer(common_pb2.DeathCause())
    scene.wire.open("LastWords")[0].answer(raylet_pb2.LastWordsReply(is_known=True, begun=3))
    assert outcomes(scene, refs)[3] is TaskCancelledError
    assert num_queued(scene) == 2
