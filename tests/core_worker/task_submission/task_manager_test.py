"""The end of a task: returns that somebody waits for, those that nobody wants any more, retries, and what is
held until then."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import GetTimeoutError, RayTaskError, TaskCancelledError
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.core_worker.scene import ELSEWHERE, NODE_ID, Reply, Scene, address_of, failure, value
from tests.core_worker.task_submission.tasks import (
    answer,
    crash,
    in_store,
    lose,
    num_queued,
    push_of,
    pushed,
)

SECOND = address_of(b"second")
FAILED = RayTaskError("f", "its traceback", ValueError("of the user's"))


def two_returns(scene: Scene) -> list[ObjectRef[Any]]:
    """Of one task, which is with its worker."""
    refs = scene.core.submit_task(scene.template(num_returns=2), [])
    scene.grant()
    return refs


def freed(scene: Scene) -> list[tuple[bytes, list[bytes]]]:
    scene.turn()
    return [
        (each.object_id, list(each.location_node_ids))
        for said in scene.wire.all("Free")
        for each in said.request.objects
    ]


def each_in_store(ids: list[bytes]) -> Any:
    return Reply(
        returns=[
            core_worker_pb2.ReturnObject(
                object_id=object_id, in_plasma=True, size_bytes=10**6, node_id=ELSEWHERE
            )
            for object_id in ids
        ]
    )


def inline(object_id: bytes, of: Any) -> Any:
    is_error = isinstance(of, BaseException)
    made = (serialization.serialize_error if is_error else serialization.serialize)(of)
    message = common_pb2.SerializedObject(metadata=made.metadata, data=made.to_bytes())
    return core_worker_pb2.ReturnObject(object_id=object_id, value=message)


# ---- values


@pytest.mark.parametrize("wanted", [set(), {0}, {1}, {0, 1}])
def test_a_large_return_that_nobody_wants_leaves_its_store(wanted: set[int]) -> None:
    scene = Scene()
    refs = two_returns(scene)
    ids = [ref.binary() for ref in refs]
    kept = [refs[position] for position in wanted]
    del refs
    scene.turn()
    scene.wire.last("PushTask").answer(each_in_store(ids))
    assert freed(scene) == [
        (object_id, [ELSEWHERE]) for position, object_id in enumerate(ids) if position not in wanted
    ]
    assert scene.core.reference_counts() == scene.core.describe()["values"] == len(kept)
    assert not scene.core.describe()["tasks_pending"]


def test_a_large_return_is_known_by_where_it_lies_and_freed_there() -> None:
    scene = Scene()
    ref = scene.submit()
    scene.grant()
    answer(scene, ref, in_store(ref, ELSEWHERE, 10**6))
    assert scene.core.location_of(ref) == ([ELSEWHERE], 10**6)
    object_id = ref.binary()
    assert not freed(scene)
    del ref
    assert freed(scene) == [(object_id, [ELSEWHERE])]


def test_returns_of_one_task_are_values_of_their_own() -> None:
    scene = Scene()
    first, second = two_returns(scene)
    returns = [inline(first.binary(), 1), inline(second.binary(), 2)]
    scene.wire.last("PushTask").answer(Reply(returns=returns))
    assert scene.core.get([first, second], None) == [1, 2]


def test_an_inline_return_that_nobody_wants_is_forgotten_and_an_error_is_told(capfd: Any) -> None:
    scene = Scene()
    ids = [ref.binary() for ref in two_returns(scene)]
    scene.turn()
    returns = [inline(ids[0], 1), inline(ids[1], FAILED)]
    scene.wire.last("PushTask").answer(Reply(returns=returns))
    assert scene.core.describe()["values"] == scene.core.reference_counts() == 0
    scene.core.shutdown()
    assert "its traceback" in capfd.readouterr().err


def test_a_value_that_nobody_asks_for_is_no_error_that_is_told(capfd: Any) -> None:
    scene = Scene()
    first, second = two_returns(scene)
    returns = [inline(first.binary(), b"no pickle" * 1000), inline(second.binary(), 2)]
    scene.wire.last("PushTask").answer(Reply(returns=returns))
    del first, second
    scene.turn()
    assert scene.core.describe()["values"] == 0
    scene.core.shutdown()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_small_single_return_goes_to_whoever_has_its_reference(is_wanted: bool) -> None:
    scene = Scene()
    ref = scene.submit() if is_wanted else None
    if not is_wanted:
        scene.submit()
        scene.turn()
    scene.grant()
    scene.wire.last("PushTask").answer(value(7))
    assert scene.core.describe()["values"] == is_wanted
    assert ref is None or scene.state_of(ref) == 7


@pytest.mark.parametrize("is_large", [False, True])
def test_references_inside_a_return_live_as_long_as_it_does(is_large: bool) -> None:
    scene = Scene()
    ref = scene.submit()
    scene.grant()
    owner = address_of(b"owner")
    nested = [common_pb2.ObjectReference(object_id=b"i" * 28, owner=owner)]
    returned = core_worker_pb2.ReturnObject(object_id=ref.binary())
    if is_large:
        returned.in_plasma, returned.node_id = True, ELSEWHERE
        returned.nested.extend(nested)
    else:
        returned.value.metadata = serialization.PLAIN
        returned.value.nested.extend(nested)
    answer(scene, ref, Reply(returns=[returned]))
    assert scene.core.reference_counts() == 2
    # The executor has told the owner: it is not told again.
    assert not scene.wire.all("AddBorrower")
    del ref
    assert scene.core.reference_counts() == 0


def test_what_the_executor_keeps_of_ours_is_borrowed() -> None:
    scene = Scene()
    kept = scene.core.put(1)
    object_id = kept.binary()
    ref = scene.submit(kept)
    scene.grant()
    answer(scene, ref, value(1, borrowed=[common_pb2.ObjectReference(object_id=object_id)]))
    (watch,) = scene.wire.all("WaitForRefRemoved")
    assert watch.to == "unix:worker" and watch.request.object_id == object_id
    del kept
    assert scene.core.reference_counts() == 2
    watch.answer(common_pb2.Empty())
    assert scene.core.reference_counts() == 1


# ---- what is held


def ends_with_a_value(scene: Scene, ref: ObjectRef[Any]) -> None:
    answer(scene, ref)


def ends_with_an_error(scene: Scene, ref: ObjectRef[Any]) -> None:
    answer(scene, ref, failure(FAILED, ref.binary()))


def ends_with_its_worker(scene: Scene, ref: ObjectRef[Any]) -> None:
    lose(scene)
    scene.wire.last("LostWorker").answer(common_pb2.DeathCause())


def ends_as_cancelled(scene: Scene, ref: ObjectRef[Any]) -> None:
    scene.core.cancel(ref, False, False)
    answer(scene, ref, Reply(status=Reply.NOT_STARTED))


@pytest.mark.parametrize(
    "end", [ends_with_a_value, ends_with_an_error, ends_with_its_worker, ends_as_cancelled]
)
def test_arguments_are_held_until_the_task_ends_however_that_is(end: Any) -> None:
    scene = Scene()
    argument = scene.core.put("an argument")
    inside = scene.core.put("inside of another")
    ref = scene.submit(argument, [inside], max_retries=0)
    del argument, inside
    scene.grant()
    assert scene.core.reference_counts() == 3
    end(scene, ref)
    assert scene.core.reference_counts() == 1


def test_arguments_are_held_over_a_retry() -> None:
    scene = Scene()
    ref = scene.submit(scene.core.put(1), max_retries=1)
    scene.grant()
    crash(scene)
    assert scene.core.reference_counts() == 2
    scene.grant(SECOND)
    answer(scene, ref)
    assert scene.core.reference_counts() == 1


# ---- retries


def test_another_attempt_is_placed_anew_and_may_go_where_its_arguments_lie() -> None:
    scene = Scene()
    argument = scene.submit()
    scene.grant()
    answer(scene, argument, in_store(argument, NODE_ID))
    ref = scene.submit(argument, max_retries=1)
    answer(scene, ref, Reply(status=Reply.NO_ROOM))
    assert push_of(scene, ref).request.waits_for_room and not push_of(scene, ref).request.attempt
    crash(scene)
    scene.grant(SECOND)
    request = push_of(scene, ref).request
    assert request.attempt == 1 and not request.waits_for_room
    assert scene.core.describe()["task_states"] == ["f: SUBMITTED_TO_WORKER"]


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2), (2, 3)])
def test_a_task_runs_once_and_as_often_again_as_it_may(retries: int, attempts: int) -> None:
    scene = Scene()
    ref = scene.submit(max_retries=retries, retry_exceptions=True)
    scene.grant()
    for attempt in range(attempts):
        assert isinstance(scene.state_of(ref), GetTimeoutError)
        assert push_of(scene, ref).request.attempt == attempt
        answer(scene, ref, failure(FAILED, ref.binary()))
    assert isinstance(scene.state_of(ref), ValueError) and len(pushed(scene)) == attempts


def test_a_task_may_run_again_without_end() -> None:
    scene = Scene()
    ref = scene.submit(max_retries=-1, retry_exceptions=True)
    scene.grant()
    for attempt in range(20):
        assert push_of(scene, ref).request.attempt == attempt
        answer(scene, ref, failure(FAILED, ref.binary()))
    answer(scene, ref)
    assert scene.state_of(ref) == 1


@pytest.mark.parametrize(
    ("retry_exceptions", "is_retried"),
    [
        (True, True),
        (False, False),
        ((ValueError,), True),
        ((KeyError, Exception), True),
        ((KeyError,), False),
        ((), False),
    ],
)
def test_an_error_of_the_users_is_retried_where_the_options_name_it(
    retry_exceptions: Any, is_retried: bool
) -> None:
    scene = Scene()
    ref = scene.submit(max_retries=1, retry_exceptions=retry_exceptions)
    scene.grant()
    answer(scene, ref, failure(FAILED, ref.binary()))
    assert len(pushed(scene)) == 1 + is_retried
    assert isinstance(scene.state_of(ref), GetTimeoutError if is_retried else ValueError)


@pytest.mark.parametrize("data", [b"not a pickle", b""])
def test_an_error_that_cannot_be_read_is_none_of_those_that_are_named(data: bytes) -> None:
    scene = Scene()
    ref = scene.submit(max_retries=1, retry_exceptions=(ValueError,))
    scene.grant()
    message = common_pb2.SerializedObject(metadata=serialization.ERROR, data=data)
    returns = [core_worker_pb2.ReturnObject(object_id=ref.binary(), value=message)] if data else []
    answer(scene, ref, Reply(is_application_error=True, returns=returns))
    assert len(pushed(scene)) == 1 and not scene.core.describe()["tasks_pending"]


def test_what_a_failed_attempt_left_behind_in_its_worker_is_borrowed_all_the_same() -> None:
    scene = Scene()
    kept = scene.core.put(1)
    ref = scene.submit(kept, max_retries=1, retry_exceptions=True)
    scene.grant()
    borrowed = [common_pb2.ObjectReference(object_id=kept.binary())]
    answer(scene, ref, failure(FAILED, ref.binary(), borrowed=borrowed))
    assert len(pushed(scene)) == 2 and len(scene.wire.all("WaitForRefRemoved")) == 1


def test_a_lost_worker_is_no_error_of_the_users() -> None:
    scene = Scene()
    ref = scene.submit(max_retries=1, retry_exceptions=False)
    scene.grant()
    crash(scene)
    scene.grant(SECOND)
    answer(scene, ref)
    assert scene.state_of(ref) == 1


# ---- a task that is cancelled


@pytest.mark.parametrize("ends", ["with an error", "with its worker"])
def test_a_task_that_was_cancelled_is_not_run_again_whatever_ends_it(ends: str) -> None:
    scene = Scene()
    ref = scene.submit(max_retries=3, retry_exceptions=True)
    scene.grant()
    scene.core.cancel(ref, False, True)
    if ends == "with an error":
        answer(scene, ref, failure(FAILED, ref.binary()))
    else:
        lose(scene)
    error = scene.state_of(ref)
    assert isinstance(error, ValueError if ends == "with an error" else TaskCancelledError)
    assert len(pushed(scene)) == 1 and not num_queued(scene)
    assert not scene.core.describe()["tasks_pending"]


def test_a_task_that_finishes_in_spite_of_its_cancel_has_its_value() -> None:
    scene = Scene()
    ref = scene.submit()
    scene.grant()
    scene.core.cancel(ref, False, True)
    answer(scene, ref, value(3))
    assert scene.state_of(ref) == 3


# ---- all at once


@pytest.mark.parametrize("is_large", [False, True])
def test_when_nothing_runs_any_more_every_task_fails_and_late_answers_change_nothing(is_large: bool) -> None:
    scene = Scene()
    refs = [scene.submit(), scene.submit(resources=ResourceSet.from_units({"GPU": 1}))]
    refs.append(scene.submit())
    waiting = scene.submit(refs[0])
    scene.grant()
    with scene.env.lock:
        scene.core.fail_all_tasks(lambda: ConnectionError("the node is gone"))
    assert not scene.core.describe()["tasks_pending"]
    push_of(scene, refs[0]).answer(in_store(refs[0], ELSEWHERE) if is_large else value(1))
    assert freed(scene) == [(refs[0].binary(), [ELSEWHERE])] * is_large
    lose(scene)
    for ref in (*refs, waiting):
        assert isinstance(scene.state_of(ref), ConnectionError)
    assert len(pushed(scene)) == 1


def test_whoever_is_needed_for_a_task_is_told_so_until_it_ends() -> None:
    scene = Scene()
    assert not scene.core.is_needed(by_holders=False)
    ref = scene.submit()
    scene.grant()
    assert scene.core.is_needed(by_holders=False)
    assert scene.core.story() == "1 references, 1 tasks"
    answer(scene, ref)
    assert not scene.core.is_needed(by_holders=False)
