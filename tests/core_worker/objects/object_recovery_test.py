"""Objects whose copies are lost: which are found, which tasks run again, how often, and what is told where
that does not help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_mono.common.exceptions import (
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectReconstructionFailedLineageEvictedError,
    ObjectReconstructionFailedMaxAttemptsExceededError,
    RayTaskError,
    TaskCancelledError,
)
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import STREAMING_RETURNS
from ray_mono.protobuf import core_worker_pb2, object_manager_pb2
from tests.core_worker.called_generator import END, part
from tests.core_worker.losses import (
    THIRD,
    Found,
    attempts,
    error_of,
    freed,
    kept,
    lose,
    made_again,
    make,
    places,
    report,
    tell_of_copy,
)
from tests.core_worker.scene import (
    ELSEWHERE,
    NODE_ID,
    Scene,
    failure,
    in_store,
    nodes,
    value,
)
from tests.core_worker.scene_time import ended


@pytest.fixture
def scene() -> Scene:
    return Scene()


# ---- one object


def test_a_lost_object_is_made_again_and_who_asked_hears_where_it_is(scene: Scene) -> None:
    ref = make(scene)
    asked = lose(scene, ref)
    assert attempts(scene, ref) == [0, 1] and not asked.replies
    made_again(scene, ref)
    assert asked.answer.in_plasma and list(asked.answer.location_node_ids) == [THIRD]
    assert len(scene.wire.all("GetAllNodes")) == 1


def test_any_number_of_reports_of_one_loss_lead_to_one_run(scene: Scene) -> None:
    ref = make(scene)
    asked = [lose(scene, ref) for _ in range(3)]
    made_again(scene, ref)
    # The first place, in a report that is late.
    asked.append(report(scene, ref.binary(), ELSEWHERE))
    assert attempts(scene, ref) == [0, 1]
    assert [list(each.answer.location_node_ids) for each in asked] == [[THIRD]] * 4


def test_another_copy_is_as_good(scene: Scene) -> None:
    ref = make(scene)
    tell_of_copy(scene, ref, THIRD)
    asked = report(scene, ref.binary(), ELSEWHERE)
    assert list(asked.answer.location_node_ids) == [THIRD] and attempts(scene, ref) == [0]
    object_id = ref.binary()
    del ref
    ((freed_id, node_ids),) = freed(scene)
    assert freed_id == object_id and sorted(node_ids) == [THIRD, ELSEWHERE]


def test_a_copy_that_turns_up_while_it_is_looked_for_is_as_good(scene: Scene) -> None:
    ref = make(scene)
    asked = report(scene, ref.binary(), ELSEWHERE)
    tell_of_copy(scene, ref, THIRD)
    scene.wire.last("GetAllNodes").answer(nodes(ELSEWHERE))
    assert list(asked.answer.location_node_ids) == [THIRD] and attempts(scene, ref) == [0]


@pytest.mark.parametrize("is_silent", [True, False])
def test_without_the_gcs_it_is_made_again_all_the_same(scene: Scene, is_silent: bool) -> None:
    ref = make(scene)
    report(scene, ref.binary(), ELSEWHERE)
    if is_silent:
        scene.pass_time(scene.config.nodes_answer_s)
    else:
        scene.wire.last("GetAllNodes").fail()
    made_again(scene, ref)
    assert attempts(scene, ref) == [0, 1] and places(scene, ref) == [THIRD]


def test_many_losses_ask_the_gcs_once(scene: Scene) -> None:
    refs = [make(scene) for _ in range(50)]
    for ref in refs:
        report(scene, ref.binary(), ELSEWHERE)
    assert len(scene.wire.all("GetAllNodes")) == 1
    scene.wire.last("GetAllNodes").answer(nodes(ELSEWHERE))
    for ref in refs:
        made_again(scene, ref, THIRD)
    assert [attempts(scene, ref) for ref in refs] == [[0, 1]] * 50
    assert [places(scene, ref) for ref in refs] == [[THIRD]] * 50


def test_what_is_not_needed_any_more_is_not_made_again_and_is_freed(scene: Scene) -> None:
    ref = make(scene)
    object_id = ref.binary()
    report(scene, object_id, ELSEWHERE)
    del ref
    assert freed(scene) == [(object_id, [ELSEWHERE])]
    scene.wire.last("GetAllNodes").answer(nodes(ELSEWHERE))
    assert len(scene.wire.all("PushTask")) == 1 and kept(scene) == (0, 0)


def test_what_a_node_keeps_that_could_not_be_reached_is_freed_in_the_end(scene: Scene) -> None:
    ref = make(scene)
    object_id = ref.binary()
    report(scene, object_id, ELSEWHERE)
    scene.wire.last("GetAllNodes").answer(nodes(alive=[NODE_ID, ELSEWHERE]))
    made_again(scene, ref)
    del ref
    ((_, node_ids),) = freed(scene)
    assert sorted(node_ids) == [THIRD, ELSEWHERE]


def test_what_comes_back_small_is_the_value(scene: Scene) -> None:
    ref = make(scene)
    lose(scene, ref)
    scene.finish(ref, value("small"))
    assert scene.core.get([ref], None) == ["small"] and kept(scene) == (0, 0)


# ---- how often, and why not


@pytest.mark.parametrize("max_retries", [1, 3])
def test_each_loss_costs_a_retry(scene: Scene, max_retries: int) -> None:
    ref = make(scene, max_retries=max_retries)
    for _ in range(max_retries):
        lose(scene, ref)
        made_again(scene, ref, ELSEWHERE)
    error = error_of(lose(scene, ref))
    assert attempts(scene, ref) == list(range(max_retries + 1))
    assert type(error) is ObjectReconstructionFailedMaxAttemptsExceededError
    assert error.reason == "OBJECT_UNRECONSTRUCTABLE_MAX_ATTEMPTS_EXCEEDED"
    assert ref.hex() in str(error) and "max_retries" in str(error)


def test_retries_without_end_have_none(scene: Scene) -> None:
    ref = make(scene, max_retries=-1)
    for _ in range(10):
        lose(scene, ref)
        made_again(scene, ref, ELSEWHERE)
    assert attempts(scene, ref) == list(range(11)) and places(scene, ref) == [ELSEWHERE]


def test_a_task_without_retries_does_not_run_again(scene: Scene) -> None:
    ref = make(scene, max_retries=0)
    error = error_of(lose(scene, ref))
    assert type(error) is ObjectReconstructionFailedError and isinstance(error, ObjectLostError)
    assert error.reason == "OBJECT_UNRECONSTRUCTABLE_RETRIES_DISABLED" and attempts(scene, ref) == [0]
    with pytest.raises(ObjectReconstructionFailedError, match=ref.hex()):
        scene.core.get([ref], None)


def put(scene: Scene) -> ObjectRef[Any]:
    """A large value, in this node's store and in no other."""
    scene.wire.replies["Create"] = lambda request: object_manager_pb2.CreateReply(offset=0)
    return scene.core.put(bytes(200_000))


def test_what_was_put_cannot_be_made_again(tmp_path: Path) -> None:
    scene = Scene(store_file=tmp_path / "store")
    ref = put(scene)
    error = error_of(report(scene, ref.binary(), NODE_ID))
    assert error.reason == "OBJECT_UNRECONSTRUCTABLE_PUT" and "put()" in str(error)


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_node_that_lives_may_give_it_later_what_cannot_be_made_again(
    scene: Scene, max_retries: int
) -> None:
    ref = make(scene, max_retries=max_retries)
    asked = report(scene, ref.binary(), ELSEWHERE)
    scene.wire.last("GetAllNodes").answer(nodes(alive=[NODE_ID, ELSEWHERE]))
    if max_retries:
        assert attempts(scene, ref) == [0, 1] and not asked.replies
        return
    for number in range(3):
        scene.pass_time(scene.config.lost_retry_s * scene.config.lost_retry_factor**number - 0.01)
        assert not asked.replies
        scene.pass_time(0.01)
        assert list(asked.answer.location_node_ids) == [ELSEWHERE] and places(scene, ref) == [ELSEWHERE]
        asked = report(scene, ref.binary(), ELSEWHERE)
        scene.wire.last("GetAllNodes").answer(nodes(alive=[NODE_ID, ELSEWHERE]))
    scene.pass_time(scene.config.lost_retry_s * scene.config.lost_retry_factor**3)
    assert error_of(lose(scene, ref)).reason == "OBJECT_UNRECONSTRUCTABLE_RETRIES_DISABLED"


def test_an_error_of_the_second_run_is_the_value(scene: Scene) -> None:
    ref = make(scene)
    asked = lose(scene, ref)
    scene.finish(ref, failure(KeyError("no"), ref.binary()))
    assert isinstance(error_of(asked), KeyError) and kept(scene) == (0, 0)
    with pytest.raises(KeyError):
        scene.core.get([ref], None)


def test_a_second_run_can_be_cancelled(scene: Scene) -> None:
    ref = make(scene)
    asked = lose(scene, ref)
    scene.core.cancel(ref, False, False)
    for push in scene.wire.open("PushTask"):
        if push.request.task_id == ref.task_id().binary():
            push.answer(core_worker_pb2.PushTaskReply(status=core_worker_pb2.PushTaskReply.CANCELLED))
    scene.turn()
    assert isinstance(error_of(asked), TaskCancelledError)


# ---- arguments


def test_an_argument_goes_with_its_references_and_is_made_again_when_it_is_needed(scene: Scene) -> None:
    argument = make(scene)
    argument_id, argument_task = argument.binary(), argument.task_id().binary()
    ref = make(scene, argument)
    del argument
    assert freed(scene) == [(argument_id, [ELSEWHERE])] and kept(scene)[0] == 2
    lose(scene, ref)
    (again,) = scene.wire.open("PushTask")
    assert again.request.task_id == argument_task and again.request.attempt == 1
    again.answer(in_store(argument_id, THIRD))
    scene.turn()
    scene.grant()  # it asks for a worker where its argument lies now
    (push,) = scene.wire.open("PushTask")
    assert push.request.task_id == ref.task_id().binary()
    assert list(push.request.args[0].location_node_ids) == [THIRD]
    made_again(scene, ref)
    # It goes again.
    assert freed(scene)[1:] == [(argument_id, [THIRD])] and kept(scene)[0] == 2
    del ref
    assert kept(scene) == (0, 0) and scene.core.reference_counts() == 0


def test_an_argument_that_is_held_and_lies_on_a_dead_node_is_made_again(scene: Scene) -> None:
    argument = make(scene, node_id=THIRD)
    ref = make(scene, argument)
    lose(scene, ref)
    assert attempts(scene, argument) == [0, 1] and attempts(scene, ref) == [0]
    made_again(scene, argument, NODE_ID)
    assert attempts(scene, ref) == [0, 1]


def test_an_argument_on_a_node_that_lives_is_not_made_again(scene: Scene) -> None:
    argument = make(scene, node_id=NODE_ID)
    ref = make(scene, argument)
    lose(scene, ref)
    assert attempts(scene, argument) == [0] and attempts(scene, ref) == [0, 1]


@pytest.mark.parametrize("is_held", [True, False])
def test_a_chain_of_any_length_is_made_again_each_once(scene: Scene, is_held: bool) -> None:
    chain = [make(scene)]
    for _ in range(2000):
        chain.append(make(scene, chain[-1]))
    ids = [ref.binary() for ref in chain]
    last = chain[-1]
    if not is_held:
        del chain
    assert kept(scene)[0] == 2001
    scene.wire.said.clear()
    lose(scene, last)
    for object_id in ids:
        (push,) = scene.wire.open("PushTask")
        assert push.request.task_id == object_id[:24] and push.request.attempt == 1
        with scene.env.lock:
            push.answer(in_store(object_id, NODE_ID))
        scene.turn()
    assert places(scene, last) == [NODE_ID]
    del last
    if is_held:
        del chain
    assert kept(scene) == (0, 0) and scene.core.reference_counts() == 0


def test_an_argument_that_cannot_be_made_again_fails_its_users(scene: Scene) -> None:
    argument = make(scene, max_retries=0)
    ref = make(scene, argument)
    last = make(scene, ref)
    del argument, ref
    error = error_of(lose(scene, last))
    assert isinstance(error, RayTaskError) and isinstance(error.cause, ObjectReconstructionFailedError)
    assert error.cause.reason == "OBJECT_UNRECONSTRUCTABLE_RETRIES_DISABLED"
    assert len(scene.wire.all("PushTask")) == 3


def test_a_small_argument_is_held_with_what_is_inside_of_it(scene: Scene) -> None:
    inner = scene.core.put("inner")
    argument = scene.core.put([inner])
    other = scene.core.put(b"x" * 50_000)
    ref = make(scene, argument, other)
    inner_id = inner.binary()
    del inner, argument, other
    tasks, size_bytes = kept(scene)
    assert tasks == 1 and size_bytes > 100_000  # in the task's message, and as an object
    lose(scene, ref)
    (push,) = scene.wire.open("PushTask")
    assert [each.object_id for each in push.request.args[0].value.nested] == [inner_id]
    answer = scene.ask("GetObjectStatus", core_worker_pb2.GetObjectStatusRequest(object_id=inner_id)).answer
    assert answer.value.data
    made_again(scene, ref)
    tasks, size_bytes = kept(scene)
    assert tasks == 1 and size_bytes > 100_000
    del ref
    assert kept(scene) == (0, 0) and scene.core.reference_counts() == 0


def test_a_borrowed_argument_stays_borrowed(scene: Scene) -> None:
    theirs = scene.borrow(b"t" * 28)
    ref = scene.submit([theirs])
    scene.finish(ref, in_store(ref.binary(), ELSEWHERE))
    del theirs
    scene.turn()
    assert scene.core.reference_counts() == 2
    del ref
    scene.turn()
    assert scene.core.reference_counts() == 0


def test_of_what_is_not_in_stores_and_of_tasks_without_retries_nothing_is_kept(scene: Scene) -> None:
    argument = scene.core.put([1])
    small = scene.submit(argument)
    scene.finish(small, value(1))
    large = make(scene, argument, max_retries=0)
    del argument
    scene.turn()
    assert scene.core.reference_counts() == 2 and kept(scene)[1] == 0
    del large, small
    assert kept(scene) == (0, 0)


def test_two_users_of_one_argument_that_is_gone_have_it_made_again_once(scene: Scene) -> None:
    argument = make(scene)
    argument_id = argument.binary()
    users = [make(scene, argument) for _ in range(2)]
    del argument
    for user in users:
        lose(scene, user)
    (push,) = scene.wire.open("PushTask")
    assert push.request.task_id == argument_id[:24]
    push.answer(in_store(argument_id, NODE_ID))
    scene.turn()
    for user in users:
        made_again(scene, user)
    assert [attempts(scene, user) for user in users] == [[0, 1]] * 2
    assert freed(scene)[-1] == (argument_id, [NODE_ID])


@pytest.mark.parametrize("is_direct", [True, False])
def test_what_is_lost_as_well_and_needs_the_same_run_is_made_again_from_it(
    scene: Scene, is_direct: bool
) -> None:
    argument = make(scene)
    users = [argument if is_direct else make(scene, argument) for _ in range(2)]
    last = [make(scene, user) for user in users]
    alive = make(scene, argument, node_id=NODE_ID)
    argument_task = argument.task_id().binary()
    del argument, users
    lose(scene, last[0])
    (push,) = scene.wire.open("PushTask")
    assert push.request.task_id == argument_task
    while pushes := scene.wire.open("PushTask"):
        for push in pushes:
            push.answer(in_store(push.request.task_id + b"\1\0\0\0", NODE_ID))
        scene.turn()
    assert [places(scene, each) for each in last] == [[NODE_ID]] * 2
    pushed = [each.request.task_id for each in scene.wire.all("PushTask")]
    assert pushed.count(argument_task) == 2 and attempts(scene, alive) == [0]


# ---- whoever waits


def store_says(scene: Scene, *founds: object_manager_pb2.ObjectFound) -> None:
    """To the next question."""
    scene.meanwhile(lambda: scene.wire.open("Get")[0].answer(object_manager_pb2.GetReply(objects=founds)))


def runs_again(scene: Scene, ref: ObjectRef[Any]) -> None:
    for said in scene.wire.open("GetAllNodes"):
        said.answer(nodes(ELSEWHERE))
    made_again(scene, ref, NODE_ID)


@pytest.mark.parametrize("timeout_s", [None, 60.0])
def test_a_get_waits_for_what_is_made_again(tmp_path: Path, timeout_s: float | None) -> None:
    scene = Scene(store_file=tmp_path / "store")
    ref = make(scene)
    store_says(scene, Found(object_id=ref.binary(), state=Found.LOST))
    scene.meanwhile(lambda: runs_again(scene, ref))
    store_says(scene, scene.lay(ref.binary(), "again"))
    assert scene.core.get([ref], timeout_s) == ["again"]


def test_a_wait_goes_on_until_it_is_made_again(tmp_path: Path) -> None:
    scene = Scene(store_file=tmp_path / "store")
    ref = make(scene)
    store_says(scene, Found(object_id=ref.binary(), state=Found.LOST))
    scene.meanwhile(lambda: runs_again(scene, ref))
    store_says(scene, scene.lay(ref.binary(), "again"))
    assert scene.core.wait([ref], 1, None, True) == ([ref], [])
    assert attempts(scene, ref) == [0, 1]


def test_a_future_comes_when_it_is_made_again(tmp_path: Path) -> None:
    scene = Scene(store_file=tmp_path / "store")
    ref = make(scene)
    future = ref.future()
    with scene.env.lock:
        scene.wire.open("Get")[0].answer(
            object_manager_pb2.GetReply(objects=[Found(object_id=ref.binary(), state=Found.LOST)])
        )
        runs_again(scene, ref)
        found = scene.lay(ref.binary(), "again")
        scene.wire.replies["Get"] = lambda request: object_manager_pb2.GetReply(objects=[found])
        for said in scene.wire.open("Get"):
            said.answer(object_manager_pb2.GetReply(objects=[found]))
    assert ended(future).result() == "again"


# ---- the bound


def test_the_oldest_tasks_are_evicted_until_half_of_the_bound_is_left() -> None:
    scene = Scene(max_lineage_bytes=10_000)
    refs = [make(scene, b"x" * 1000)]
    (_, each_bytes) = kept(scene)
    num_kept = 10_000 // each_bytes
    refs += [make(scene, b"x" * 1000) for _ in range(num_kept - 1)]
    assert kept(scene)[1] == num_kept * each_bytes
    refs.append(make(scene, b"x" * 1000))
    num_left = 5_000 // each_bytes
    assert kept(scene)[1] == num_left * each_bytes
    for ref in refs[:-num_left]:
        error = error_of(lose(scene, ref))
        assert type(error) is ObjectReconstructionFailedLineageEvictedError
        assert error.reason == "OBJECT_UNRECONSTRUCTABLE_LINEAGE_EVICTED"
        assert "max_lineage_bytes" in str(error) and attempts(scene, ref) == [0]
    lose(scene, refs[-1])
    assert attempts(scene, refs[-1]) == [0, 1]


def test_a_task_whose_argument_was_evicted_fails_by_that() -> None:
    scene = Scene(max_lineage_bytes=10_000)
    argument = make(scene, b"x" * 1000)
    ref = make(scene, argument)
    del argument
    while kept(scene)[1] < 9_000:
        scene.core.keep(make(scene))
    scene.core.keep(make(scene, b"x" * 2_000))
    error = error_of(lose(scene, ref))
    assert type(error) is ObjectReconstructionFailedLineageEvictedError


def test_generators_and_kept_arguments_end_with_what_needs_them() -> None:
    scene = Scene()
    (made,) = scene.core.submit_task(scene.template("g", num_returns=STREAMING_RETURNS), [])
    scene.grant()
    push = scene.wire.last("PushTask")
    push.part(part(1, None))
    push.answer(END)
    item = next(made)
    user = make(scene, item)
    del item, made
    assert kept(scene)[0] == 2
    del user
    assert kept(scene) == (0, 0) and scene.core.reference_counts() == 0
