"""Tasks of which several objects may be lost: those with several returns, and generators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ray_mono.common.exceptions import (
    StreamingGeneratorReplayInconsistentError,
    TaskCancelledError,
    TaskUnschedulableError,
)
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, raylet_pb2
from tests.core_worker.called_generator import END, Generator, part
from tests.core_worker.losses import (
    THIRD,
    attempts,
    error_of,
    kept,
    lose,
    places,
    report,
    tell_of_copy,
)
from tests.core_worker.scene import (
    ELSEWHERE,
    NODE_ID,
    Scene,
    Served,
    address_of,
    in_store,
    nodes,
    rejection,
)


@pytest.fixture
def scene() -> Scene:
    return Scene()


# ---- several returns


def several(scene: Scene, **options: Any) -> list[ObjectRef[Any]]:
    refs: list[ObjectRef[Any]] = scene.core.submit_task(scene.template(num_returns=3, **options), [])
    return refs


def returns(refs: Sequence[ObjectRef[Any]], node_id: bytes) -> core_worker_pb2.PushTaskReply:
    """The first and the last in a store, the other small."""
    reply = core_worker_pb2.PushTaskReply()
    for ref in refs:
        reply.returns.extend(in_store(ref.binary(), node_id).returns)
    small = serialization.serialize("small")
    reply.returns[1].CopyFrom(
        core_worker_pb2.ReturnObject(
            object_id=refs[1].binary(), value=common_pb2.SerializedObject(data=small.to_bytes())
        )
    )
    return reply


def test_of_several_returns_those_that_are_there_stay(scene: Scene) -> None:
    refs = several(scene)
    scene.finish(refs[0], returns(refs, ELSEWHERE))
    tell_of_copy(scene, refs[2], NODE_ID)
    lose(scene, refs[0])
    scene.finish(refs[0], returns(refs, THIRD))
    assert places(scene, refs[0]) == [THIRD] and places(scene, refs[2]) == [ELSEWHERE, NODE_ID, THIRD]
    assert scene.core.get([refs[1]], None) == ["small"] and attempts(scene, refs[0]) == [0, 1]


def test_what_a_task_made_that_cannot_run_again_is_lost_for_the_reason_of_that(scene: Scene) -> None:
    refs = several(scene)
    scene.finish(refs[0], returns(refs, ELSEWHERE))
    scene.pass_time(1.0)  # the lease goes back
    asked = lose(scene, refs[0])
    for said in scene.wire.open("RequestWorkerLease"):
        said.answer(rejection(raylet_pb2.Rejection.INFEASIBLE, "no node has that"))
    scene.turn()
    for error in (error_of(asked), error_of(report(scene, refs[2].binary(), ELSEWHERE))):
        assert isinstance(error, TaskUnschedulableError) and "no node has that" in str(error)


def test_several_lost_returns_of_a_task_take_one_run(scene: Scene) -> None:
    refs = several(scene)
    scene.finish(refs[0], returns(refs, ELSEWHERE))
    asked = [lose(scene, refs[0]), lose(scene, refs[2])]
    scene.finish(refs[0], returns(refs, THIRD))
    assert [list(each.answer.location_node_ids) for each in asked] == [[THIRD]] * 2
    assert attempts(scene, refs[0]) == [0, 1]


def test_a_task_that_was_answered_though_it_was_cancelled_does_not_run_again(scene: Scene) -> None:
    ref = scene.submit(max_retries=3)
    scene.grant()
    scene.core.cancel(ref, False, False)
    scene.finish(ref, in_store(ref.binary(), ELSEWHERE))
    assert error_of(lose(scene, ref)).reason == "OBJECT_UNRECONSTRUCTABLE_TASK_CANCELLED"
    assert attempts(scene, ref) == [0]


def test_a_second_run_that_fails_spoils_nothing_that_is_there(scene: Scene) -> None:
    refs = several(scene)
    scene.finish(refs[0], returns(refs, ELSEWHERE))
    lose(scene, refs[0])
    scene.core.cancel(refs[0], False, False)
    for push in scene.wire.open("PushTask"):
        push.answer(core_worker_pb2.PushTaskReply(status=core_worker_pb2.PushTaskReply.CANCELLED))
    with pytest.raises(TaskCancelledError):
        scene.core.get([refs[0]], None)
    assert places(scene, refs[2]) == [ELSEWHERE] and scene.core.get([refs[1]], None) == ["small"]
    assert error_of(lose(scene, refs[2])).reason == "OBJECT_UNRECONSTRUCTABLE_TASK_CANCELLED"


# ---- items of generators


def generator_attempts(generator: Generator) -> list[int]:
    return [each.request.attempt for each in generator.scene.wire.all("PushTask")]


def lose_item(generator: Generator, number: int) -> Served:
    scene = generator.scene
    asked = report(scene, generator.item_id(number), ELSEWHERE)
    for said in scene.wire.open("GetAllNodes"):
        said.answer(nodes(ELSEWHERE))
    scene.turn()
    return asked


@pytest.mark.parametrize("is_dropped", [True, False])
def test_the_items_of_a_generator_are_made_again_by_all_of_it(is_dropped: bool) -> None:
    generator = Generator()
    generator.push.part(part(1, None, "two", None))
    generator.push.answer(END)
    taken = [next(generator.made) for _ in range(3)]
    if is_dropped:
        del generator.made
    asked = [lose_item(generator, number) for number in (1, 3)]
    assert generator_attempts(generator) == [0, 1]
    again = part(1, None, "other", None)
    for item in again.items:
        item.node_id = THIRD
    generator.push.part(again)
    assert [list(each.answer.location_node_ids) for each in asked] == [[THIRD]] * 2
    # So that it does not rest.
    assert generator.told[-1][0] == 3 and generator.told[-1][1] > 3 and not generator.told[-1][2]
    generator.push.answer(END)
    assert generator.scene.core.get([taken[1]], None) == ["two"]
    assert is_dropped or list(generator.made) == []
    del taken
    if not is_dropped:
        del generator.made
    assert kept(generator.scene) == (0, 0) and generator.references == 0


def test_an_item_that_the_second_run_does_not_make_is_told_as_that_and_there_is_no_third_run() -> None:
    generator = Generator()
    generator.push.part(part(1, None, None, None))
    generator.push.answer(END)
    taken = list(generator.made)
    asked = lose_item(generator, 2)
    generator.push.part(part(1, None))
    generator.push.answer(END)
    error = error_of(asked)
    assert isinstance(error, StreamingGeneratorReplayInconsistentError)
    assert "value 2 of" in str(error) and "yielded fewer values" in str(error)
    assert places(generator.scene, taken[0]) == [ELSEWHERE]
    also_lost = error_of(lose_item(generator, 3))
    assert isinstance(also_lost, StreamingGeneratorReplayInconsistentError) and "value 3 of" in str(also_lost)
    assert generator_attempts(generator) == [0, 1]


@pytest.mark.parametrize("retries", [1, 3])
def test_an_item_that_a_second_run_for_another_one_did_not_make_is_told_as_that_too(retries: int) -> None:
    generator = Generator(max_retries=retries)
    generator.push.part(part(1, None, None, None))
    generator.push.answer(END)
    taken = list(generator.made)
    lose_item(generator, 1)
    generator.push.part(part(1, None))
    generator.push.answer(END)
    error = error_of(lose_item(generator, 3))
    assert isinstance(error, StreamingGeneratorReplayInconsistentError) and "value 3 of" in str(error)
    assert generator_attempts(generator) == [0, 1] and len(taken) == 3


def test_an_item_that_is_lost_while_its_generator_runs_is_made_by_another_attempt() -> None:
    generator = Generator()
    generator.push.part(part(1, None, "two"))
    first = next(generator.made)
    asked = lose_item(generator, 1)
    assert generator_attempts(generator) == [0]
    generator.push.part(part(3, "three"))
    generator.push.answer(END)
    assert generator_attempts(generator) == [0, 1] and not asked.replies
    again = part(1, None, "two", "three")
    again.items[0].node_id = THIRD
    generator.push.part(again)
    assert list(asked.answer.location_node_ids) == [THIRD]
    generator.push.answer(END)
    scene = generator.scene
    assert scene.core.get(list(generator.made), None) == ["two", "three"] and places(scene, first) == [THIRD]


def test_a_generator_that_rests_does_not_wait_for_who_waits_for_its_lost_item() -> None:
    generator = Generator(backpressure=1)
    generator.push.part(part(1, None))
    first = next(generator.made)
    lose_item(generator, 1)
    assert generator.told[-1] == (1, 1, True)
    generator.push.answer(END)
    assert generator_attempts(generator) == [0, 1]
    generator.push.part(part(1, None))
    assert generator.told[-1] == (1, 1, False)
    generator.push.part(part(2, "two"))
    generator.push.answer(END)
    assert generator.scene.core.get(list(generator.made), None) == ["two"]
    del first


def test_a_run_that_has_passed_a_lost_item_and_goes_on_is_interrupted_after_a_while() -> None:
    generator = Generator()
    scene = generator.scene
    generator.push.part(part(1, None, None))
    taken = [next(generator.made) for _ in range(2)]
    asked = [lose_item(generator, number) for number in (1, 2)]
    scene.pass_time(0.9 * scene.env.config.late_run_s)
    assert not scene.wire.all("CancelTask")
    scene.pass_time(0.2 * scene.env.config.late_run_s)
    (told,) = scene.wire.all("CancelTask")
    assert told.request.task_id == generator.task_id and not told.request.force
    generator.fail(TaskCancelledError(generator.task_id.hex()))
    assert generator_attempts(generator) == [0, 1]
    again = part(1, None, None)
    for item in again.items:
        item.node_id = THIRD
    generator.push.part(again)
    assert [list(each.answer.location_node_ids) for each in asked] == [[THIRD]] * 2
    scene.pass_time(2 * scene.env.config.late_run_s)
    assert len(scene.wire.all("CancelTask")) == 1
    del taken


@pytest.mark.parametrize("ends", [True, False])
def test_a_run_that_ends_by_itself_or_whose_lost_item_nobody_wants_is_not_interrupted(ends: bool) -> None:
    generator = Generator()
    scene = generator.scene
    generator.push.part(part(1, None))
    first = next(generator.made)
    lose_item(generator, 1)
    if ends:
        generator.push.answer(END)
    else:
        del first
        scene.turn()
    scene.pass_time(2 * scene.env.config.late_run_s)
    assert not scene.wire.all("CancelTask")


def test_a_lost_item_of_a_run_after_which_there_is_none_is_an_error_at_once_if_it_was_passed() -> None:
    generator = Generator(max_retries=1)
    generator.push.part(part(1, None, None))
    taken = [next(generator.made) for _ in range(2)]
    first = lose_item(generator, 1)
    generator.push.answer(END)
    assert generator_attempts(generator) == [0, 1]
    second = lose_item(generator, 2)
    again = part(1, None)
    again.items[0].node_id = THIRD
    generator.push.part(again)
    assert first.replies and not second.replies  # it may come
    lost = report(generator.scene, generator.item_id(1), THIRD)
    for said in generator.scene.wire.open("GetAllNodes"):
        said.answer(nodes(THIRD))
    generator.scene.turn()
    assert "used all its retries" in str(error_of(lost))
    del taken


def worker_dies(generator: Generator, name: str, death: common_pb2.DeathCause) -> None:
    """Its raylet says how. The next attempt, which may be due after a pause, has a worker."""
    scene = generator.scene
    scene.wire.channels[f"unix:{name}"].close()
    for method, said in (("LostWorker", death), ("LastWords", raylet_pb2.LastWordsReply())):
        (asked,) = scene.wire.open(method)
        asked.answer(said)
    scene.pass_time(1)
    scene.grant(address_of(b"after " + name.encode()))


def test_a_generator_that_was_killed_for_memory_has_passed_no_item_when_it_runs_again() -> None:
    generator = Generator(max_retries=1)
    worker_dies(generator, "worker", common_pb2.DeathCause())
    generator.push.part(part(1, None))
    first = next(generator.made)
    retries = common_pb2.OomRetries(retries_max=-1, pause_s=1.0)
    killed = common_pb2.DeathCause(kind=common_pb2.DeathCause.OUT_OF_MEMORY, oom_retries=retries)
    worker_dies(generator, "after worker", killed)
    assert generator_attempts(generator) == [0, 1, 2]
    asked = lose_item(generator, 1)
    again = part(1, None)
    again.items[0].node_id = THIRD
    generator.push.part(again)
    assert list(asked.answer.location_node_ids) == [THIRD]
    del first


def test_what_a_hurried_attempt_threw_away_comes_though_nobody_wants_its_lost_item_any_more() -> None:
    generator = Generator(backpressure=1)
    generator.push.part(part(1, None))
    first = next(generator.made)
    lose_item(generator, 1)
    assert generator.told[-1][2]
    del first
    generator.scene.turn()
    generator.push.answer(END)
    assert generator_attempts(generator) == [0, 1]
    generator.push.part(part(1, None))
    generator.push.part(part(2, "two"))
    generator.push.answer(END)
    assert generator.scene.core.get(list(generator.made), None) == ["two"]


def test_an_attempt_after_which_there_is_none_is_not_hurried() -> None:
    generator = Generator(backpressure=1, max_retries=0)
    generator.push.part(part(1, None))
    first = next(generator.made)
    lose_item(generator, 1)
    assert not generator.told[-1][2]
    generator.push.part(part(2, "two"))
    generator.push.answer(END)
    assert generator.scene.core.get(list(generator.made), None) == ["two"]
    del first


def test_a_retry_of_a_generator_brings_the_lost_item_as_well() -> None:
    generator = Generator(retry_exceptions=True)
    generator.push.part(part(1, None))
    first = next(generator.made)
    asked = lose_item(generator, 1)
    generator.fail(KeyError("no"))
    again = part(1, None)
    again.items[0].node_id = THIRD
    generator.push.part(again)
    assert list(asked.answer.location_node_ids) == [THIRD]
    generator.push.answer(END)
    assert generator_attempts(generator) == [0, 1] and list(generator.made) == []
    del first
