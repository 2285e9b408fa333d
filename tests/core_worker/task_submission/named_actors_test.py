"""Named actors that this process creates: who gets the name, and what follows when arguments are late."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common import ids
from ray_mono.common.exceptions import ActorAlreadyExistsError, ActorDiedError, RaySystemError
from ray_mono.core_worker.task_errors import ARGUMENT_FAILED
from ray_mono.core_worker.task_submission.actor_handles import HeldActor
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import Scene, value
from tests.core_worker.task_submission.new_actors import (
    CREATED,
    OTHERS,
    call,
    create,
    dies,
    lives,
    raised,
    registration,
)
from tests.core_worker.task_submission.tasks import answer


def test_a_named_actor_is_waited_for() -> None:
    scene = Scene()
    scene.meanwhile(lambda: registration(scene).answer(CREATED))
    held = create(scene, name="name", namespace="another")
    creation = registration(scene).request.creation_spec.actor_creation
    assert (creation.name, creation.namespace) == ("name", "another")
    assert held.creation_ref is not None


def test_a_name_that_is_taken_is_refused() -> None:
    scene = Scene()
    scene.meanwhile(
        lambda: registration(scene).fail(RpcError(StatusCode.ALREADY_EXISTS, "the name is taken"))
    )
    with pytest.raises(ActorAlreadyExistsError, match="the name is taken"):
        create(scene, name="name")
    scene.turn()
    assert not scene.wire.all("ActorOutOfScope") and scene.core.reference_counts() == 0


def test_an_actor_that_is_there_already_is_what_get_if_exists_gives() -> None:
    scene = Scene()
    scene.meanwhile(lambda: registration(scene).answer(OTHERS))
    held = create(scene, name="name", get_if_exists=True)
    assert registration(scene).request.get_if_exists
    assert held.actor_id == b"o" * 16 and held.creation_ref is None
    scene.turn()
    assert scene.core.reference_counts() == 0 and not scene.wire.all("ActorOutOfScope")


def test_a_gcs_that_does_not_answer_in_time_is_an_error() -> None:
    scene = Scene(gcs_timeout_s=60.0)
    before_s = scene.reactor.now_s
    with pytest.raises(RaySystemError, match="did not answer"):
        create(scene, name="name")
    assert scene.reactor.now_s - before_s == 60


def waiting_named(scene: Scene, **options: Any) -> tuple[Any, HeldActor]:
    """A named actor that is registered, and its argument, which is not there yet."""
    argument = scene.submit(max_retries=0)
    scene.grant()
    scene.meanwhile(lambda: registration(scene).answer(CREATED))
    return argument, create(scene, argument, name="name", **options)


@pytest.mark.parametrize("is_detached", [False, True])
def test_a_named_actor_has_its_name_before_its_arguments_are_there(is_detached: bool) -> None:
    scene = Scene()
    argument, held = waiting_named(scene, is_detached=is_detached)
    first = registration(scene).request
    assert first.awaits_arguments and not first.creation_spec.args and not first.creation_spec.flat_args
    assert first.creation_spec.actor_creation.name == "name"
    (watch,) = scene.wire.open("WatchActor")
    assert watch.request.actor_id == held.actor_id
    answer(scene, argument)
    second = scene.wire.last("RegisterActor")
    assert second.request.creation_spec.task_id == first.creation_spec.task_id
    assert not second.request.awaits_arguments and len(second.request.creation_spec.args) == 1
    second.answer(CREATED)
    assert len(scene.wire.all("RegisterActor")) == 2 and scene.wire.open("WatchActor") == [watch]
    assert not scene.core.describe()["tasks_pending"]
    ref = call(scene, held)
    lives(scene)
    scene.wire.last("PushTask").answer(value(1))
    assert scene.core.get([ref], None) == [1]


def test_a_named_actor_whose_arguments_are_there_is_told_with_them_once() -> None:
    scene = Scene()
    argument = scene.submit()
    scene.grant()
    answer(scene, argument)
    scene.meanwhile(lambda: registration(scene).answer(CREATED))
    create(scene, argument, 7, name="name")
    request = registration(scene).request
    assert not request.awaits_arguments and len(request.creation_spec.args) == 1


def test_a_name_that_is_taken_is_refused_though_the_arguments_are_not_there() -> None:
    scene = Scene()
    argument = scene.submit()
    scene.grant()
    taken = RpcError(StatusCode.ALREADY_EXISTS, "the name is taken")
    scene.meanwhile(lambda: registration(scene).fail(taken))
    with pytest.raises(ActorAlreadyExistsError, match="the name is taken"):
        create(scene, argument, name="name")
    scene.turn()
    assert scene.core.reference_counts() == 1, "only the argument's own"
    answer(scene, argument)
    assert len(scene.wire.all("RegisterActor")) == 1 and not scene.wire.all("ActorOutOfScope")


def test_an_argument_that_fails_later_is_told_to_all_who_know_the_name(capfd: Any) -> None:
    scene = Scene()
    argument, held = waiting_named(scene)
    ref = call(scene, held)
    answer(scene, argument, raised(argument))
    told = scene.wire.last("RegisterActor").request
    assert told.failure.kind == common_pb2.DeathCause.CREATION_FAILED
    assert b"its traceback" in told.failure.error.data and told.failure.message == ARGUMENT_FAILED
    error = scene.state_of(ref)
    assert isinstance(error, ActorDiedError) and "its traceback" in str(error)
    del held, ref, error
    scene.turn()
    assert not scene.wire.all("ActorOutOfScope") and not scene.core.describe()["tasks_pending"]


def test_an_argument_of_a_detached_actor_that_fails_is_told_to_its_callers_alone(capfd: Any) -> None:
    scene = Scene()
    argument, held = waiting_named(scene, is_detached=True)
    ref = call(scene, held)
    scene.turn()
    answer(scene, argument, raised(argument))
    assert "its traceback" in str(scene.state_of(ref))
    scene.core.shutdown()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("get_if_exists", [True, False])
def test_where_an_argument_failed_whoever_has_the_name_counts(get_if_exists: bool, capfd: Any) -> None:
    scene = Scene()
    argument = failed_argument(scene)
    if get_if_exists:
        scene.meanwhile(lambda: registration(scene).answer(OTHERS))
        assert create(scene, argument, name="name", get_if_exists=True).actor_id == b"o" * 16
    else:
        taken = RpcError(StatusCode.ALREADY_EXISTS, "'name' is taken")
        scene.meanwhile(lambda: registration(scene).fail(taken))
        with pytest.raises(ActorAlreadyExistsError, match="'name' is taken"):
            create(scene, argument, name="name")
    assert registration(scene).request.HasField("failure")
    del argument
    scene.turn()
    scene.core.shutdown()
    assert "its traceback" not in capfd.readouterr().err


def test_where_an_argument_failed_and_nobody_has_the_name_the_actor_is_dead(capfd: Any) -> None:
    scene = Scene()
    argument = failed_argument(scene)
    scene.meanwhile(lambda: registration(scene).answer(CREATED))
    error = scene.state_of(call(scene, create(scene, argument, name="name")))
    assert isinstance(error, ActorDiedError) and "its traceback" in str(error)
    assert registration(scene).request.failure.error.data


def test_a_named_actor_that_ended_waits_for_its_arguments_no_more() -> None:
    scene = Scene()
    argument, held = waiting_named(scene)
    ref = call(scene, held)
    dies(scene, kind=common_pb2.DeathCause.KILLED)
    assert isinstance(scene.state_of(ref), ActorDiedError)
    assert scene.core.describe()["tasks_pending"] == ["f"], "the argument's"
    answer(scene, argument)
    assert len(scene.wire.all("RegisterActor")) == 1
    del argument
    scene.turn()
    assert scene.core.reference_counts() == 2, "of the actor and of the call"


def test_the_gcs_kills_a_named_actor_whose_arguments_are_not_there() -> None:
    scene = Scene()
    _, held = waiting_named(scene)
    scene.wire.replies["KillActor"] = lambda request: common_pb2.Empty()
    scene.core.kill_actor(held.actor_id, True)
    assert scene.wire.last("KillActor").request.no_restart
    task_id = ids.TaskID.for_actor_creation(held.actor_id).binary()
    with scene.env.lock:
        assert scene.core.canceller.cancel_own(task_id, False, False)
    assert len(scene.wire.all("KillActor")) == 2


def test_the_gcs_is_told_when_no_handle_is_left_before_the_arguments_are_there() -> None:
    scene = Scene()
    argument, held = waiting_named(scene)
    del held
    scene.turn()
    assert len(scene.wire.all("ActorOutOfScope")) == 1
    # They may come before the GCS has said that it is dead.
    answer(scene, argument)
    del argument
    scene.turn()
    assert not [each for each in scene.wire.all("RegisterActor") if each.request.creation_spec.args]
    assert scene.core.reference_counts() == 0 and not scene.core.describe()["tasks_pending"]


def test_a_named_actor_whose_arguments_the_gcs_does_not_take_is_dead_there_too() -> None:
    scene = Scene()
    argument, held = waiting_named(scene)
    answer(scene, argument)
    scene.wire.last("RegisterActor").fail(RpcError(StatusCode.RESOURCE_EXHAUSTED, "too large"))
    told = scene.wire.last("RegisterActor").request
    assert "too large" in told.failure.message and not told.creation_spec.args
    assert isinstance(scene.state_of(call(scene, held)), ActorDiedError)


def test_a_gcs_on_an_empty_store_is_told_which_actors_await_their_arguments() -> None:
    scene = Scene()
    argument, held = waiting_named(scene)

    def told() -> common_pb2.ActorInfo:
        with scene.env.lock:
            scene.core.adoption.tell()
        (info,) = scene.wire.last("Adopt").request.actors
        return info  # type: ignore[no-any-return]

    assert told().state == common_pb2.DEPENDENCIES_UNREADY
    answer(scene, argument)
    # It may be placed by now: the answer is on its way.
    assert told().state == common_pb2.PENDING_CREATION and len(told().creation_spec.args) == 1
    dies(scene)
    del held


def failed_argument(scene: Scene) -> Any:
    ref = scene.submit(max_retries=0)
    scene.grant()
    answer(scene, ref, raised(ref))
    return ref


def test_a_name_that_nobody_has_is_a_value_error_and_a_gcs_that_is_gone_is_not() -> None:
    scene = Scene()
    errors = [RpcError(StatusCode.NOT_FOUND, "no such name"), RpcError(StatusCode.UNAVAILABLE, "gone")]

    def refuse(request: Any) -> Any:
        raise errors.pop(0)

    scene.wire.replies["GetNamedActor"] = refuse
    with pytest.raises(ValueError, match="no such name"):
        scene.core.get_named_actor("name", "")
    with pytest.raises(RpcError, match="gone"):
        scene.core.get_named_actor("name", "")


def test_who_looks_a_name_up_has_told_of_the_handles_that_went_before() -> None:
    scene = Scene()
    held = create(scene)
    registration(scene).answer(CREATED)
    del held
    scene.wire.replies["GetNamedActor"] = lambda request: common_pb2.ActorInfo()
    scene.core.get_named_actor("name", "")
    methods = [said.method for said in scene.wire.said]
    assert methods.index("ActorOutOfScope") < methods.index("GetNamedActor")
