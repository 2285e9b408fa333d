"""An actor's calls of a `map`: they travel together, in their place among the caller's others."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import ActorDiedError, PendingCallsLimitExceeded, TaskCancelledError
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import CallRules
from ray_mono.core_worker.task_submission.task_builder import MethodTemplate
from ray_mono.core_worker.task_wire import plains_of
from tests.core_worker.called_actor import USUAL, CalledActor, lose_actor
from tests.core_worker.scene import Reply, failure, value, values
from tests.core_worker.task_submission.tasks import (
    AUTO,
    answer,
    frames,
    id_of,
    ids_in,
    ids_of,
    other,
    outcomes,
    pushed,
)


class Mapped:
    """An actor that runs, and knows its method by one call."""

    def __init__(self, rules: CallRules = USUAL, is_started: bool = True, **limits: Any) -> None:
        self.world = CalledActor(rules, **limits)
        self.scene = self.world.scene
        self.template = MethodTemplate("run", "Actor", max_task_retries=0)
        self.first = self.one(0)
        if is_started:
            self.start()
            answer(self.scene, self.first)

    def start(self) -> None:
        self.world.gcs.start_actor()
        self.world.gcs.answer()

    def one(self, item: Any) -> ObjectRef[Any]:
        (ref,) = self.scene.core.submit_actor_task(self.world.held, self.template, [None, item])
        return ref  # type: ignore[no-any-return]

    def map(self, items: Any, chunk: int = AUTO) -> list[ObjectRef[Any]]:
        refs: list[ObjectRef[Any]] = []
        self.scene.core.submit_actor_tasks(self.world.held, self.template, list(items), chunk, refs)
        return refs

    @property
    def sent(self) -> list[bytes]:
        """Every call, in order, behind the first."""
        return [
            each
            for said in self.scene.wire.said
            if said.method in ("PushTask", "PushTasks")
            for each in (ids_in(said) if said.method == "PushTasks" else [said.request.task_id])
        ][1:]

    @property
    def story(self) -> Any:
        return self.world.story


def test_calls_share_a_frame_in_their_place_of_the_order() -> None:
    mapped = Mapped()
    before, refs, behind = mapped.one(1), mapped.map(range(5)), mapped.one(2)
    assert mapped.sent == ids_of(before, *refs, behind)
    (frame,) = frames(mapped.scene)
    assert ids_in(frame) == ids_of(*refs) and mapped.story["in_flight"] == 7
    frame.part(values(0, "a", "b"))
    frame.part(other(2, failure(KeyError("c"), refs[2].binary())))
    frame.answer(values(3, "d", "e"))
    assert mapped.scene.core.get([refs[0], refs[1], *refs[3:]], 0) == ["a", "b", "d", "e"]
    with pytest.raises(KeyError):
        mapped.scene.core.get([refs[2]], 0)
    assert mapped.story["in_flight"] == 2


def test_they_wait_with_all_others_until_the_actor_lives() -> None:
    mapped = Mapped(is_started=False)
    refs = mapped.map(range(5))
    assert not pushed(mapped.scene) and mapped.story["queued"] == 6
    mapped.start()
    assert mapped.sent == ids_of(*refs)
    assert len(frames(mapped.scene)) == 1


def test_a_call_that_waits_for_its_argument_holds_those_behind_it_back() -> None:
    mapped = Mapped()
    refs = mapped.map([1, 2, mapped.world.borrowed(b"late".ljust(28, b".")), 3])
    behind = mapped.map(range(3))
    assert mapped.sent == ids_of(*refs[:2])
    assert mapped.story["queued"] == 2 + len(behind)


def test_no_more_are_under_way_than_the_actor_may_have_and_more_follow_by_halves() -> None:
    mapped = Mapped(calls_in_flight_max=10)
    refs = mapped.map(range(25))
    (first,) = frames(mapped.scene)
    assert ids_in(first) == ids_of(*refs[:10])
    first.part(values(0, *range(4)))
    assert len(frames(mapped.scene)) == 1
    first.part(values(4, 4))
    assert ids_in(frames(mapped.scene)[1]) == ids_of(*refs[10:15])
    first.answer(values(5, *range(5)))
    assert mapped.sent == ids_of(*refs[:20])


def test_how_many_travel_together_is_as_told() -> None:
    mapped = Mapped()
    refs = mapped.map(range(10), chunk=4)
    assert [len(ids_in(frame)) for frame in frames(mapped.scene)] == [4, 4, 2]
    assert mapped.sent == ids_of(*refs)


def test_calls_that_were_sent_fail_with_their_actor() -> None:
    mapped = Mapped()
    refs = mapped.map(range(4))
    (frame,) = frames(mapped.scene)
    frame.part(values(0, "a"))
    mapped.world.look()
    lose_actor(mapped.world, will_restart=False)
    assert outcomes(mapped.scene, refs) == ["a", *[ActorDiedError] * 3]


def test_a_call_that_is_cancelled_is_cancelled_at_the_actor() -> None:
    mapped = Mapped()
    refs = mapped.map(range(3))
    (frame,) = frames(mapped.scene)
    mapped.scene.core.cancel(refs[1], False, False)
    assert mapped.scene.wire.last("CancelTask").request.task_id == id_of(refs[1])
    frame.part(values(0, "a"))
    frame.part(other(1, Reply(status=Reply.CANCELLED)))
    frame.answer(other(2, value("c")))
    assert outcomes(mapped.scene, refs) == ["a", TaskCancelledError, "c"]


def test_the_limit_of_pending_calls_holds_for_each() -> None:
    mapped = Mapped(CallRules(max_pending_calls=3))
    refs: list[ObjectRef[Any]] = []
    with pytest.raises(PendingCallsLimitExceeded):
        mapped.scene.core.submit_actor_tasks(mapped.world.held, mapped.template, range(9), AUTO, refs)
    assert len(refs) == 3 and mapped.sent == ids_of(*refs)


def test_calls_keep_their_actor_until_they_are_answered() -> None:
    mapped = Mapped()
    before = mapped.scene.core.describe()["references"]
    refs = mapped.map(range(5))
    (frame,) = frames(mapped.scene)
    frame.answer(values(0, *range(5)))
    del refs
    mapped.scene.turn()
    assert mapped.scene.core.describe()["references"] == before


def test_calls_of_a_frame_that_were_answered_when_the_actor_died_have_their_values() -> None:
    mapped = Mapped()
    refs = mapped.map(range(4))
    (frame,) = frames(mapped.scene)
    frame.part(values(0, "a"))
    last = mapped.world.last_answers
    last.frame_id, last.first = id_of(refs[0]), 1
    last.plain.extend(plains_of(values(1, "b")))
    mapped.world.look()
    with mapped.scene.env.lock:
        mapped.scene.wire.channels[frame.to].close()
    mapped.world.die(will_restart=False)
    mapped.world.tell()
    assert outcomes(mapped.scene, refs) == ["a", "b", *[ActorDiedError] * 2]
