"""Arguments by reference: a task goes on when all are there, and fails as soon as one is an error."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import (
    GetTimeoutError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.task_errors import ARGUMENT_FAILED, HOPS_MAX
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.core_worker.called_actor import OWNER, Status
from tests.core_worker.scene import ELSEWHERE, Reply, Scene, address_of, failure, grant, value
from tests.core_worker.task_submission.tasks import (
    answer,
    crash,
    id_of,
    in_store,
    lose,
    num_queued,
    push_of,
    pushed,
)

ANOTHER_SHAPE = ResourceSet.from_units({"CPU": 2})
"""What uses the arguments has a queue of its own."""


class Arguments:
    """Two tasks that are with their workers, whose values a third one takes."""

    def __init__(self) -> None:
        self.scene = scene = Scene()
        self.a, self.b = scene.submit(name="a", max_retries=0), scene.submit(name="b", max_retries=0)
        scene.grant()
        scene.grant(address_of(b"second"))

    def use(self, *args: Any) -> ObjectRef[Any]:
        return self.scene.submit(*args, name="use", resources=ANOTHER_SHAPE)

    def use_both(self) -> ObjectRef[Any]:
        return self.use(self.a, self.b)

    def is_error(self, ref: ObjectRef[Any], error: BaseException) -> None:
        answer(self.scene, ref, failure(error, ref.binary()))

    def went_on(self) -> int:
        return num_queued(self.scene)

    def state_of(self, ref: ObjectRef[Any]) -> str:
        states: list[str] = self.scene.core.describe()["task_states"]
        return next(state.partition(": ")[2] for state in states if state.startswith("use: "))

    def push(self, ref: ObjectRef[Any]) -> Any:
        """What its worker is sent."""
        self.scene.wire.all("RequestWorkerLease")[-1].answer(grant(address_of(b"third")))
        return push_of(self.scene, ref).request


def kinds(request: Any) -> list[str]:
    return [arg.WhichOneof("arg") for arg in request.args]


def test_a_task_goes_on_when_all_its_arguments_are_there() -> None:
    scene = Arguments()
    ref = scene.use_both()
    assert scene.state_of(ref) == "PENDING_ARGS_AVAIL"
    answer(scene.scene, scene.b, value(2))
    assert not scene.went_on()
    answer(scene.scene, scene.a, value(1))
    assert scene.went_on() == 1 and scene.state_of(ref) == "PENDING_NODE_ASSIGNMENT"
    request = scene.push(ref)
    assert kinds(request) == ["value", "value"] and [arg.position for arg in request.args] == [1, 3]


def test_a_task_whose_arguments_are_there_goes_on_at_once() -> None:
    scene = Arguments()
    answer(scene.scene, scene.a, value(1))
    ref = scene.use(scene.a, scene.a, scene.scene.core.put(3))
    assert kinds(scene.push(ref)) == ["value"] * 3


def test_a_task_that_is_given_the_same_value_twice_waits_for_it_once() -> None:
    scene = Arguments()
    ref = scene.use(scene.a, scene.a)
    answer(scene.scene, scene.a, value(1))
    assert kinds(scene.push(ref)) == ["value", "value"]


def test_a_large_argument_is_named_with_where_it_lies_and_how_large_it_is() -> None:
    scene = Arguments()
    ref = scene.use_both()
    answer(scene.scene, scene.a, in_store(scene.a, ELSEWHERE, 10**6))
    answer(scene.scene, scene.b, value(2))
    request = scene.push(ref)
    assert kinds(request) == ["reference", "value"]
    assert list(request.args[0].location_node_ids) == [ELSEWHERE] and request.args[0].size_bytes == 10**6
    assert request.args[0].reference.owner == scene.scene.address


def test_what_is_inside_of_a_small_argument_is_named_with_its_owner() -> None:
    scene = Arguments()
    inside = scene.scene.core.put(1)
    outside = scene.scene.core.put([inside])
    request = scene.push(scene.use(outside))
    (nested,) = request.args[0].value.nested
    assert nested.object_id == inside.binary() and nested.owner == scene.scene.address


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status(value=common_pb2.SerializedObject(metadata=b"", data=b"x")), "value"),
        (Status(in_plasma=True, location_node_ids=[ELSEWHERE], size_bytes=9), "reference"),
    ],
)
def test_of_a_borrowed_argument_the_owner_is_asked(status: Any, kind: str) -> None:
    scene = Arguments()
    borrowed = scene.scene.core.reference_arrived(b"o" * 28, OWNER.SerializeToString(deterministic=True))
    ref = scene.use(borrowed)
    (asked,) = scene.scene.wire.all("GetObjectStatus")
    assert asked.to == "unix:owner" and not scene.went_on()
    asked.answer(status)
    request = scene.push(ref)
    assert kinds(request) == [kind]
    if kind == "reference":
        assert list(request.args[0].location_node_ids) == [ELSEWHERE]


class Careful(ValueError):
    """An exception of a user's, whose unpickling is user code."""

    unpickled = 0

    def __reduce__(self) -> Any:
        return _unpickle, ()


def _unpickle() -> Careful:
    Careful.unpickled += 1
    return Careful("of the user's")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_task_of_which_an_argument_failed_fails_at_once_and_nobody_runs_it(is_there: bool) -> None:
    scene = Arguments()
    if not is_there:
        ref = scene.use_both()
    reply = failure(RayTaskError("make", "its traceback", Careful("of the user's"), pid=3), scene.b.binary())
    Careful.unpickled = 0
    answer(scene.scene, scene.b, reply)
    if is_there:
        ref = scene.use_both()
    assert not scene.went_on() and len(scene.scene.core.describe()["tasks_pending"]) == 1
    # Under our lock: the user's code has not run, and runs when somebody reads the error.
    assert Careful.unpickled == 0
    with pytest.raises(RayTaskError) as raised:
        scene.scene.core.get([ref], None)
    read = raised.value
    assert isinstance(read, Careful) and Careful.unpickled
    assert (read.function_name, read.pid) == ("use", 1)
    assert f"{ARGUMENT_FAILED}:\nray_mono::make() (pid=3)\nits traceback" in str(read)
    answer(scene.scene, scene.a, value(1))
    assert not scene.went_on() and not scene.scene.core.describe()["tasks_pending"]


def test_an_error_that_no_user_raised_is_the_cause() -> None:
    scene = Arguments()
    ref = scene.use_both()
    lose(scene.scene)
    scene.scene.wire.last("LostWorker").answer(common_pb2.DeathCause(message="signal 9"))
    with pytest.raises(RayTaskError) as raised:
        scene.scene.core.get([ref], None)
    assert isinstance(raised.value.cause, WorkerCrashedError) and "signal 9" in str(raised.value)


def test_an_error_that_cannot_be_handed_on_without_user_code_goes_to_the_executor() -> None:
    scene = Arguments()
    ref = scene.use_both()
    scene.is_error(scene.b, Careful())
    assert scene.went_on() == 1
    assert kinds(scene.push(ref)) == ["reference", "value"]
    answer(scene.scene, scene.a, value(1))
    assert pushed(scene.scene).count(id_of(ref)) == 1 and not num_queued(scene.scene)


def test_a_chain_of_many_fails_whole_and_tells_of_the_first_hops() -> None:
    scene = Arguments()
    refs = [scene.use_both()]
    for _ in range(3000):
        refs.append(scene.use(refs[-1]))
    scene.is_error(scene.a, RayTaskError("make", "its traceback", KeyError("lost")))
    assert len(scene.scene.core.describe()["tasks_pending"]) == 1
    last = scene.scene.state_of(refs[-1])
    assert isinstance(last, RayError) and str(last).count(ARGUMENT_FAILED) == HOPS_MAX
    assert "its traceback" in str(last)


@pytest.mark.parametrize("is_used", [True, False])
def test_an_error_that_its_executor_hands_on_is_not_told_as_one_that_nobody_asked_for(
    is_used: bool, capfd: Any
) -> None:
    scene = Arguments()
    ref = scene.use(scene.a) if is_used else None
    foreign = common_pb2.SerializedObject(metadata=serialization.ERROR, data=b"of modules that are not here")
    returned = core_worker_pb2.ReturnObject(object_id=scene.a.binary(), value=foreign)
    answer(scene.scene, scene.a, Reply(is_application_error=True, returns=[returned]))
    del scene.a
    assert scene.went_on() == is_used
    if ref is not None:
        scene.push(ref)
        answer(scene.scene, ref)
    scene.scene.core.shutdown()
    assert ("an error that cannot be read here" in capfd.readouterr().err) is not is_used


@pytest.mark.parametrize("is_used", [True, False])
def test_an_error_that_went_into_another_task_is_not_told_as_one_that_nobody_asked_for(
    is_used: bool, capfd: Any
) -> None:
    scene = Arguments()
    ref = scene.use_both() if is_used else None
    scene.is_error(scene.a, RayTaskError("make", "the first traceback", KeyError("lost")))
    del scene.a
    assert ref is None or isinstance(scene.scene.state_of(ref), KeyError)
    scene.scene.core.shutdown()
    assert ("the first traceback" in capfd.readouterr().err) is not is_used


def test_a_task_that_is_cancelled_while_it_waits_for_its_arguments_does_not_go_on() -> None:
    scene = Arguments()
    ref = scene.use_both()
    scene.scene.core.cancel(ref, False, False)
    assert isinstance(scene.scene.state_of(ref), TaskCancelledError)
    answer(scene.scene, scene.a, value(1))
    answer(scene.scene, scene.b, value(1))
    assert not scene.went_on() and not scene.scene.wire.all("CancelTask")


def test_another_attempt_is_told_where_its_arguments_lie_by_then() -> None:
    scene = Arguments()
    answer(scene.scene, scene.a, in_store(scene.a, ELSEWHERE))
    ref = scene.use(scene.a)
    assert len(scene.push(ref).args[0].location_node_ids) == 1
    crash(scene.scene, "unix:third")
    assert isinstance(scene.scene.state_of(ref), GetTimeoutError)
    request = scene.push(ref)
    assert request.attempt == 1 and list(request.args[0].location_node_ids) == [ELSEWHERE]
