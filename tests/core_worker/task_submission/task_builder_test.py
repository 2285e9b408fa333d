"""From a call in user code to what a worker is sent: arguments, ids, references."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from ray_mono.common import ids
from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.context import TaskContext, TaskKind
from ray_mono.core_worker.object_ref_generator import ObjectRefGenerator
from ray_mono.core_worker.options import INLINE_BYTES_MAX, STREAMING_RETURNS, TaskOptions
from ray_mono.core_worker.task_submission.function_manager import Exported
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, object_manager_pb2
from tests.core_worker.called_actor import CalledActor, Status
from tests.core_worker.scene import JOB_ID, NODE_ID, Scene, WouldHang, value
from tests.core_worker.task_submission.tasks import answer, id_of, push_of


def sent(scene: Scene, *args: Any, **options: Any) -> Any:
    """What a worker is sent of a call with these."""
    ref = scene.submit(*args, **options)
    scene.grant()
    return push_of(scene, ref).request


# ---- arguments


SMALL = [None, True, 7, 1.5, 2j, "text", b"bytes", "x" * 4096, "é" * 2048, "\ud800", b"x" * 4096, -(2**32767)]
LARGE = ["x" * 4097, "é" * 2049, "\ud800" * 2000, b"x" * 4097, 2**32768, -(2**32768)]


@pytest.mark.parametrize("small", SMALL, ids=lambda value: type(value).__name__)
def test_what_is_small_and_plain_travels_in_one_pickle(small: Any) -> None:
    request = sent(Scene(), small)
    assert pickle.loads(request.flat_args) == [None, small] and not request.args


class Text(str):
    """Not a plain one: its type has to arrive."""


@pytest.mark.parametrize(
    "other", [*LARGE, [1], Text("text"), {"a": 1}], ids=lambda value: type(value).__name__
)
def test_everything_else_is_an_argument_of_its_own_in_its_place(other: Any) -> None:
    request = sent(Scene(), 1, other, 3)
    assert pickle.loads(request.flat_args) == [None, 1, None, None, None, 3]
    (arg,) = request.args
    assert arg.position == 3 and arg.WhichOneof("arg") == "value"


def test_many_small_ones_stay_in_the_pickle_and_a_large_one_among_them_does_not() -> None:
    request = sent(Scene(), *["x" * 3000] * 3)
    assert pickle.loads(request.flat_args)[1::2] == ["x" * 3000] * 3 and not request.args
    request = sent(Scene(), "x" * 3000, 2**40000, [1])
    assert pickle.loads(request.flat_args) == [None, "x" * 3000, None, None, None, None]
    assert sorted(arg.position for arg in request.args) == [3, 5]


def test_the_callers_list_stays_as_it_is() -> None:
    scene = Scene()
    flat = [None, [1], "key", 2]
    scene.core.submit_task(scene.template(), flat)
    assert flat == [None, [1], "key", 2]


def test_a_call_without_arguments_sends_none() -> None:
    request = sent(Scene())
    assert not request.flat_args and not request.args


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("not this one")


@pytest.mark.parametrize(
    ("flat", "name"),
    [
        ([None, 1, None, Unpicklable()], "argument number 1 of f"),
        (["key", Unpicklable()], "argument key of f"),
    ],
)
def test_an_argument_that_does_not_pickle_is_named(flat: list[Any], name: str) -> None:
    scene = Scene()
    with pytest.raises(TypeError, match=name):
        scene.core.submit_task(scene.template(), flat)
    assert not scene.core.describe()["tasks_pending"] and scene.core.reference_counts() == 0


def test_a_reference_is_named_with_its_owner() -> None:
    scene = Scene()
    owner = common_pb2.Address(worker_id=b"o" * 28, host="far", port=3)
    borrowed = scene.core.reference_arrived(b"b" * 28, owner.SerializeToString(deterministic=True))
    ref = scene.submit(borrowed)
    scene.wire.last("GetObjectStatus").answer(
        Status(in_plasma=True, location_node_ids=[b"far"], size_bytes=1)
    )
    scene.grant()
    (arg,) = push_of(scene, ref).request.args
    assert arg.reference.object_id == b"b" * 28 and arg.reference.owner == owner


def test_a_reference_of_another_session_is_refused() -> None:
    foreign = Scene().core.put(1)
    scene = Scene()
    with pytest.raises(RaySystemError, match="session"):
        scene.submit(foreign)


def test_up_to_a_size_a_value_travels_in_the_message_and_beyond_it_goes_to_the_store() -> None:
    frame = serialization.serialize(b"x" * 10**5).size_bytes - 10**5
    fits = b"x" * (INLINE_BYTES_MAX - frame)
    scene = Scene()
    request = sent(scene, fits)
    assert request.args[0].WhichOneof("arg") == "value" and scene.core.reference_counts() == 0
    with pytest.raises(WouldHang, match="Create"):
        scene.submit(fits + b"x")
    assert scene.wire.last("Create").request.size_bytes == INLINE_BYTES_MAX + 1


def test_a_large_argument_lies_in_the_store_until_the_task_ends(tmp_path: Path) -> None:
    scene = Scene(store_file=tmp_path / "store")
    scene.wire.replies["Create"] = lambda request: object_manager_pb2.CreateReply()
    ref = scene.submit(b"x" * (INLINE_BYTES_MAX + 1))
    scene.grant()
    (arg,) = push_of(scene, ref).request.args
    assert arg.reference.object_id == scene.wire.last("Create").request.object_id
    assert (arg.reference.owner, list(arg.location_node_ids)) == (scene.address, [NODE_ID])
    scene.turn()
    assert not scene.wire.all("Free") and scene.core.reference_counts() == 2
    answer(scene, ref)
    scene.turn()
    freed = [each.object_id for each in scene.wire.last("Free").request.objects]
    assert freed == [arg.reference.object_id]


def test_references_inside_of_an_argument_are_held_until_the_task_ends() -> None:
    scene = Scene()
    inside = scene.core.put(1)
    ref = scene.submit({"key": [inside]})
    del inside
    scene.grant()
    assert scene.core.reference_counts() == 2
    answer(scene, ref)
    assert scene.core.reference_counts() == 1


def test_what_a_function_captured_is_held_by_each_call() -> None:
    scene = Scene()
    captured = scene.core.put(1)
    code = Exported(common_pb2.FunctionDescriptor(), (captured,))
    template = scene.core.task_template(code, TaskOptions(name="f"))
    (ref,) = scene.core.submit_task(template, [])
    del code, template, captured
    scene.grant()
    scene.turn()
    # The return, and what the call holds still, though the function is gone here.
    assert scene.core.reference_counts() == 2
    push_of(scene, ref).answer(value(1))
    scene.turn()
    assert scene.state_of(ref) == 1


# ---- ids


def test_ids_come_from_the_task_that_submits_and_its_count() -> None:
    scene = Scene()
    parent = scene.context.get()
    first, second = scene.submit(), scene.submit()
    assert id_of(first) != id_of(second) and parent.num_submitted == 2
    again = Scene()
    assert id_of(again.submit()) == id_of(first)


def test_another_attempt_of_a_task_submits_other_ones() -> None:
    made = []
    for attempt in (0, 0, 1):
        scene = Scene()
        task = TaskContext(b"t" * 8 + ids.nil_actor_of(JOB_ID), TaskKind(JOB_ID), attempt)
        token = scene.context.enter(task)
        made.append(scene.submit())
        scene.context.leave(token)
    assert id_of(made[0]) == id_of(made[1]) != id_of(made[2])


def test_a_task_knows_how_deep_it_is() -> None:
    scene = Scene()
    token = scene.context.enter(TaskContext(b"t" * 8 + ids.nil_actor_of(JOB_ID), TaskKind(JOB_ID, depth=4)))
    try:
        assert sent(scene).depth == 5
    finally:
        scene.context.leave(token)
    assert sent(Scene()).depth == 1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_call_gives_as_many_references_as_it_returns(count: int) -> None:
    scene = Scene()
    refs = scene.core.submit_task(scene.template(num_returns=count), [])
    assert len({ref.binary() for ref in refs}) == len(refs) == count == scene.core.reference_counts()
    assert [ref.binary()[-4:] for ref in refs] == [
        number.to_bytes(4, "little") for number in range(1, count + 1)
    ]


def test_a_generator_gives_one_object_for_all_its_items() -> None:
    scene = Scene()
    (made,) = scene.core.submit_task(scene.template(num_returns=STREAMING_RETURNS), [])
    assert isinstance(made, ObjectRefGenerator)


# ---- what goes with each call


def test_a_tasks_specification_says_what_its_options_say() -> None:
    scene = Scene()
    resources = ResourceSet.from_units({"CPU": 3})
    spec = sent(
        scene,
        resources=resources,
        max_retries=5,
        retry_exceptions=(ValueError,),
        max_calls=6,
        hides_events=True,
        runtime_env='{"env_vars": {}}',
    ).spec
    assert (spec.name, spec.num_returns, spec.max_retries, spec.max_calls) == ("f", 1, 5, 6)
    assert spec.retry_exceptions and spec.hides_events and spec.runtime_env == '{"env_vars": {}}'
    assert ResourceSet.from_proto(spec.resources) == resources and spec.job_id == JOB_ID
    assert spec.type == common_pb2.NORMAL_TASK and spec.caller == scene.address


def test_a_function_without_a_name_of_its_own_has_its_codes() -> None:
    scene = Scene()
    python = common_pb2.PythonFunctionDescriptor(function_name="code")
    code = Exported(common_pb2.FunctionDescriptor(python=python))
    (_,) = scene.core.submit_task(scene.core.task_template(code, TaskOptions()), [])
    assert scene.core.describe()["tasks_pending"] == ["code"]


def test_a_methods_specification_says_what_its_handle_says() -> None:
    world = CalledActor()
    core = world.scene.core
    options = {"concurrency_group": "io", "hides_events": True, "retry_exceptions": True, "num_returns": 2}
    method = core.method_template("method", "Actor", task_name="given", **options)
    refs = core.submit_actor_task(world.held, method, [None, 1])
    world.gcs.start_actor()
    world.gcs.answer()
    request = world.scene.wire.last("PushTask").request
    spec, actor_task = request.spec, request.spec.actor_task
    assert len(refs) == 2 and spec.name == "method" and spec.type == common_pb2.ACTOR_TASK
    assert (actor_task.actor_id, actor_task.concurrency_group) == (world.held.actor_id, "io")
    assert actor_task.task_name == "given" and spec.hides_events and spec.retry_exceptions
    assert pickle.loads(request.flat_args) == [None, 1] and request.depth == 1


def test_methods_of_one_actor_share_what_they_have_in_common_across_handles() -> None:
    world = CalledActor()
    core = world.scene.core
    for options in ({}, {}, {"concurrency_group": "io"}):
        core.submit_actor_task(world.held, core.method_template("method", "Actor", **options), [])
    world.gcs.start_actor()
    world.gcs.answer()
    pushes = [said.request for said in world.scene.wire.all("PushTask")]
    assert [push.HasField("spec") for push in pushes] == [True, False, True]
    assert pushes[0].template_id == pushes[1].template_id != pushes[2].template_id


def test_a_call_holds_its_actor() -> None:
    world = CalledActor()
    call = world.submit()
    world.starts()
    del world.held
    world.scene.turn()
    assert world.scene.core.reference_counts() == 2
    world.run_all()
    assert world.scene.core.reference_counts() == 1 and world.outcome(call) == "1, run 1"


# ---- a process that leaves, and Ctrl-C


def test_a_process_that_left_submits_nothing() -> None:
    world = CalledActor()
    core = world.scene.core
    template = world.scene.template()
    core.shutdown()
    for submit in (
        lambda: core.submit_task(template, []),
        lambda: core.submit_actor_task(world.held, core.method_template("m", "A"), []),
    ):
        with pytest.raises(RaySystemError, match="disconnected"):
            submit()


def test_an_interrupt_that_came_meanwhile_is_raised_once_all_is_counted() -> None:
    world = CalledActor()
    scene = world.scene
    template, method = scene.template(), scene.core.method_template("m", "A")
    for number, submit in enumerate(
        (
            lambda: scene.core.submit_task(template, []),
            lambda: scene.core.submit_actor_task(world.held, method, []),
        ),
        1,
    ):
        scene.reactor.interrupted = True
        with pytest.raises(KeyboardInterrupt):
            submit()
        assert len(scene.core.describe()["tasks_pending"]) == number and not scene.reactor.interrupted
