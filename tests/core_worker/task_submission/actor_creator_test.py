"""Actors that this process creates: what the GCS is told, and the end with the last handle."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common import ids
from ray_mono.common.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    RaySystemError,
    RayTaskError,
)
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.task_errors import ARGUMENT_FAILED
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.called_actor import USUAL
from tests.core_worker.scene import JOB_ID, OWNER, Scene, address_of, value
from tests.core_worker.task_submission.new_actors import (
    CREATED,
    call,
    create,
    dies,
    lives,
    raised,
    registration,
)
from tests.core_worker.task_submission.tasks import answer

# ---- what the GCS is told


def test_the_gcs_is_told_what_the_actor_needs_and_may() -> None:
    scene = Scene()
    held = create(
        scene,
        7,
        "text",
        resources=ResourceSet.from_units({"GPU": 1}),
        max_restarts=2,
        max_task_retries=3,
        max_concurrency=4,
        is_asyncio=True,
        concurrency_groups=(("io", 2, ("read",)),),
        handle_metadata=b"handle",
        runtime_env="{}",
    )
    request = registration(scene).request
    spec, creation = request.creation_spec, request.creation_spec.actor_creation
    assert (request.class_name, request.get_if_exists) == ("Actor", False)
    assert spec.name == "Actor.__init__" and spec.type == common_pb2.ACTOR_CREATION_TASK
    assert spec.caller == scene.address and spec.job_id == b"job1" and spec.runtime_env == "{}"
    assert spec.depth == 1 and spec.flat_args and not spec.outlives_job
    assert ResourceSet.from_proto(spec.resources) == ResourceSet.from_units({"GPU": 1})
    assert ResourceSet.from_proto(spec.placement_resources) == ResourceSet.from_units({"CPU": 1})
    assert creation.actor_id == held.actor_id and creation.namespace == "namespace"
    assert (creation.max_restarts, creation.max_task_retries, creation.max_concurrency) == (2, 3, 4)
    assert creation.is_asyncio and not creation.is_detached and creation.serialized_handle == b"handle"
    (group,) = creation.concurrency_groups
    assert (group.name, group.max_concurrency, list(group.method_names)) == ("io", 2, ["read"])
    assert spec.task_id == held.creation_ref.binary()[:-4]  # type: ignore[union-attr]


def test_each_actor_has_an_id_of_its_own() -> None:
    scene = Scene()
    ids = {create(scene).actor_id for _ in range(3)}
    assert len(ids) == 3


def test_an_actor_that_is_registered_is_watched_and_its_creation_is_no_task_of_ours() -> None:
    scene = Scene()
    held = create(scene)
    assert not scene.wire.all("WatchActor") and scene.core.is_needed(by_holders=False)
    # A call does not watch what the GCS does not know.
    ref = call(scene, held)
    assert not scene.wire.all("WatchActor")
    registration(scene).answer(CREATED)
    (watch,) = scene.wire.all("WatchActor")
    assert watch.request.actor_id == held.actor_id and watch.request.after_version == 0
    assert scene.core.describe()["tasks_pending"] == ["Actor.method"]
    lives(scene)
    assert scene.wire.last("PushTask").to == "unix:actor"
    assert isinstance(scene.state_of(ref), GetTimeoutError)


def test_an_actor_waits_for_its_arguments() -> None:
    scene = Scene()
    argument = scene.submit()
    scene.grant()
    create(scene, argument)
    assert not scene.wire.all("RegisterActor")
    answer(scene, argument)
    (arg,) = registration(scene).request.creation_spec.args
    assert arg.WhichOneof("arg") == "value"


def test_an_actor_of_which_an_argument_failed_is_dead_of_that(capfd: Any) -> None:
    scene = Scene()
    argument = scene.submit(max_retries=0)
    scene.grant()
    held = create(scene, argument)
    ref = call(scene, held)
    answer(scene, argument, raised(argument))
    assert not scene.wire.all("RegisterActor")
    for each in (ref, call(scene, held)):
        error = scene.state_of(each)
        assert isinstance(error, ActorDiedError) and "its traceback" in str(error)
        assert ARGUMENT_FAILED in str(error)
    # Nobody has to be told of its end.
    del held
    scene.turn()
    assert not scene.wire.all("ActorOutOfScope")


def test_an_actor_that_could_not_be_registered_is_dead() -> None:
    scene = Scene()
    held = create(scene)
    ref = call(scene, held)
    registration(scene).fail(RpcError(StatusCode.RESOURCE_EXHAUSTED, "too many actors"))
    error = scene.state_of(ref)
    assert isinstance(error, ActorDiedError) and "could not be registered: too many actors" in str(error)
    del held
    scene.turn()
    assert not scene.wire.all("ActorOutOfScope") and not scene.core.describe()["tasks_pending"]


def test_an_actor_whose_handles_went_before_its_arguments_came_is_not_registered() -> None:
    scene = Scene()
    argument = scene.submit()
    scene.grant()
    create(scene, argument)
    scene.turn()
    answer(scene, argument)
    assert not scene.wire.all("RegisterActor") and not scene.core.describe()["tasks_pending"]
    del argument
    assert scene.core.reference_counts() == 0


def test_when_the_node_died_before_the_gcs_answered_nothing_breaks() -> None:
    scene = Scene()
    held = create(scene, [scene.core.put(1)])
    ref = call(scene, held)
    with scene.env.lock:
        scene.core.fail_all_tasks(lambda: ConnectionError("the node is gone"))
        registration(scene).answer(CREATED)
    assert isinstance(scene.state_of(ref), ConnectionError)
    lives(scene)
    assert not scene.wire.all("PushTask")


# ---- its life


def test_its_arguments_live_as_long_as_it_may_start_again() -> None:
    scene = Scene()
    held = create(scene, scene.core.put(1))
    assert scene.core.reference_counts() == 2
    registration(scene).answer(CREATED)
    lives(scene)
    assert scene.core.reference_counts() == 2
    del held
    assert scene.core.reference_counts() == 0


def test_a_dead_actors_arguments_are_let_go() -> None:
    scene = Scene()
    held = create(scene, scene.core.put(1), scene.core.put(2))
    registration(scene).answer(CREATED)
    assert scene.core.reference_counts() == 3
    dies(scene)
    assert scene.core.reference_counts() == 1
    del held


def test_a_detached_actor_outlives_its_handles_and_its_arguments_stay() -> None:
    scene = Scene()
    scene.wire.replies["RegisterActor"] = lambda request: CREATED
    held = create(scene, scene.core.put(1), is_detached=True, name="name")
    spec = registration(scene).request.creation_spec
    assert spec.outlives_job and spec.actor_creation.is_detached and held.creation_ref is None
    del held
    scene.turn()
    assert not scene.wire.all("ActorOutOfScope") and scene.core.reference_counts() == 1


def test_the_gcs_is_told_when_the_last_handle_is_gone_and_no_call_is_under_way() -> None:
    scene = Scene()
    held = create(scene)
    registration(scene).answer(CREATED)
    lives(scene)
    call(scene, held)
    actor_id = held.actor_id
    del held
    scene.turn()
    assert not scene.wire.all("ActorOutOfScope")
    scene.wire.last("PushTask").answer(value(1))
    scene.turn()
    (told,) = scene.wire.all("ActorOutOfScope")
    assert told.request.actor_id == actor_id
    assert scene.core.reference_counts() == 0


def test_a_borrowed_handles_end_is_its_owners_business() -> None:
    scene = Scene()
    owner = address_of(b"owner").SerializeToString(deterministic=True)
    held = scene.core.hold_actor(b"a" * 16, scene.core.reference_arrived(b"c" * 28, owner), USUAL)
    del held
    scene.turn()
    assert scene.core.reference_counts() == 0 and not scene.wire.all("ActorOutOfScope")


def test_a_pickle_of_a_handle_keeps_no_actor_alive() -> None:
    scene = Scene()
    held = create(scene)
    registration(scene).answer(CREATED)
    kept = scene.core.put(1)
    scene.core.keep(held.creation_ref)  # type: ignore[arg-type]
    scene.core.keep(kept)
    del held, kept
    scene.turn()
    assert len(scene.wire.all("ActorOutOfScope")) == 1 and scene.core.reference_counts() == 1


# ---- what goes wrong, and kills


def test_a_process_that_left_creates_nothing() -> None:
    scene = Scene()
    scene.core.shutdown()
    with pytest.raises(RaySystemError, match="disconnected"):
        create(scene)


@pytest.mark.parametrize("when", ["never", "before it died", "after it died"])
def test_an_error_of_the_constructor_is_told_at_the_end_unless_a_call_had_it(when: str, capfd: Any) -> None:
    scene = Scene()
    held = create(scene)
    registration(scene).answer(CREATED)
    refs = [call(scene, held)] if when == "before it died" else []
    raised = serialization.serialize_error(RayTaskError("__init__", "its traceback", KeyError("no")))
    error = common_pb2.SerializedObject(metadata=raised.metadata, data=raised.to_bytes())
    dies(scene, kind=common_pb2.DeathCause.CREATION_FAILED, error=error)
    if when == "after it died":
        refs.append(call(scene, held))
    assert all(isinstance(scene.state_of(ref), ActorDiedError) for ref in refs)
    del held
    scene.turn()
    scene.core.shutdown()
    assert ("its traceback" in capfd.readouterr().err) is (when == "never")


def test_a_kill_that_the_gcs_does_not_hear_is_an_error_and_the_actor_is_called_on() -> None:
    scene = Scene()
    held = create(scene)
    registration(scene).answer(CREATED)
    lives(scene)

    def refuse(request: Any) -> Any:
        raise RpcError(StatusCode.UNAVAILABLE, "gone")

    scene.wire.replies["KillActor"] = refuse
    with pytest.raises(RpcError, match="gone"):
        scene.core.kill_actor(held.actor_id, True)
    call(scene, held)
    assert len(scene.wire.all("PushTask")) == 1


def test_a_kill_of_others_that_meets_the_registration_on_its_way_is_passed_on() -> None:
    scene = Scene()
    held = create(scene)
    task_id = ids.TaskID.for_actor_creation(held.actor_id).binary()
    with scene.env.lock:
        assert scene.core.canceller.cancel_own(task_id, False, False)
    assert scene.wire.last("KillActor").request.actor_id == held.actor_id
    registration(scene).answer(CREATED)
    with scene.env.lock:
        assert not scene.core.canceller.cancel_own(task_id, False, False), "the GCS has it"
    assert len(scene.wire.all("KillActor")) == 1


def test_a_kill_of_an_actor_that_the_gcs_does_not_know_asks_its_creator_and_is_bounded() -> None:
    def unknown(request: Any) -> Any:
        raise RpcError(StatusCode.NOT_FOUND, "no such actor")

    scene = Scene()
    scene.wire.replies["KillActor"] = unknown
    actor_id = b"a" * 12 + JOB_ID
    creation_id = ids.object_id_bytes(ids.TaskID.for_actor_creation(actor_id).binary(), 1)
    ref = scene.core.reference_arrived(creation_id, OWNER.SerializeToString(deterministic=True))
    with pytest.raises(RpcError, match="the process that creates the actor did not answer"):
        scene.core.kill_actor(actor_id, True)
    scene.core.kill_actor(actor_id, False)
    (asked,) = scene.wire.all("CancelTask")
    assert asked.to == "unix:owner" and asked.request.to_owner
    del ref
