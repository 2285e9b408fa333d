"""Children of tasks that capture: where they run, and what a worker that never captures does for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.options import ActorOptions, TaskOptions
from ray_mono.core_worker.process import current
from ray_mono.core_worker.task_submission.function_manager import Exported
from ray_mono.core_worker.task_submission.task_builder import TaskBuilder
from ray_mono.protobuf import common_pb2
from tests.core_worker.scene import Scene
from tests.core_worker.task_submission.placed import GROUP, in_group
from tests.core_worker.worker_scene import Worker

OTHER = b"o" * 14 + b"job1"
CODE = Exported(common_pb2.FunctionDescriptor())
NO_ROOM = ResourceSet.from_units({"CPU": 4})


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    made = Worker(monkeypatch)
    made.wire.replies["GetPlacementGroup"] = lambda request: common_pb2.PlacementGroupInfo(
        bundles=[common_pb2.Bundle(resources=ResourceSet.from_units({"CPU": 2}).to_proto())]
    )
    before = current.core
    current.set(made.core)
    yield made
    current.set(before)


def strategy(captures: bool, group_id: bytes = GROUP) -> common_pb2.SchedulingStrategy:
    found: common_pb2.SchedulingStrategy = in_group(0, captures, group_id)["strategy"]
    return found


def placed(scene: Scene) -> common_pb2.PlacementGroupStrategy:
    """What the last task that was submitted says of its group."""
    return scene.wire.last("RequestWorkerLease").request.strategy.placement_group


def submits(scene: Scene, template: Any) -> Any:
    """What a task does that submits this one."""

    def run() -> None:
        scene.core.submit_task(template, [])

    return run


def runs(worker: Worker, function: Any, captures: bool, group_id: bytes = GROUP) -> Any:
    call = worker.ask(worker.function(function, strategy=strategy(captures, group_id)))
    worker.run()
    return call


def child(scene: Scene, **options: Any) -> Any:
    """Of a remote function whose options say nothing of a place, unless given."""
    return scene.core.task_template(CODE, TaskOptions(name="child", **{"inherits_group": True, **options}))


def test_a_child_of_a_task_that_captures_runs_in_its_group(worker: Worker) -> None:
    template = child(worker)
    runs(worker, submits(worker, template), captures=True)
    found = placed(worker)
    assert (found.placement_group_id, found.bundle_index, found.capture_child_tasks) == (GROUP, -1, True)
    asked = worker.wire.last("RequestWorkerLease").request
    assert f"CPU_group_{GROUP.hex()}" in asked.resources.amounts


def test_each_task_hands_down_its_own_group(worker: Worker) -> None:
    template = child(worker)
    for group_id, captures in ((GROUP, True), (OTHER, True), (OTHER, False), (GROUP, True)):
        num_before = len(worker.wire.all("RequestWorkerLease"))
        runs(worker, submits(worker, template), captures, group_id)
        if len(worker.wire.all("RequestWorkerLease")) > num_before:
            assert placed(worker).placement_group_id == (group_id if captures else b"")
    assert len(worker.wire.all("GetPlacementGroup")) == 2


def test_a_child_that_says_where_it_runs_runs_there(worker: Worker) -> None:
    runs(worker, submits(worker, child(worker, inherits_group=False)), captures=True)
    assert not placed(worker).placement_group_id


def test_a_child_that_captures_runs_in_its_callers_group_also_where_that_captures_nothing(
    worker: Worker,
) -> None:
    runs(worker, submits(worker, child(worker, joins_group=True)), captures=False)
    assert placed(worker).placement_group_id == GROUP and placed(worker).capture_child_tasks


def test_a_group_of_its_own_captures_as_its_caller_unless_it_says(worker: Worker) -> None:
    runs(worker, submits(worker, child(worker, **in_group(0, False, OTHER))), captures=True)
    assert placed(worker).placement_group_id == OTHER and placed(worker).capture_child_tasks


def test_children_of_a_map_and_actors_are_captured_too(worker: Worker) -> None:
    template = child(worker)

    def run() -> None:
        refs: list[Any] = []
        worker.core.submit_tasks(template, [1, 2], 0, refs)
        worker.core.create_actor(CODE, ActorOptions(class_name="Actor", inherits_group=True), [])

    runs(worker, run, captures=True)
    assert placed(worker).placement_group_id == GROUP
    spec = worker.wire.last("RegisterActor").request.creation_spec
    assert spec.strategy.placement_group.placement_group_id == GROUP
    assert spec.strategy.placement_group.capture_child_tasks


def test_a_child_that_does_not_fit_into_the_group_is_refused(worker: Worker) -> None:
    seen: list[str] = []

    def run() -> None:
        with pytest.raises(ValueError, match="cannot fit into any bundle") as raised:
            worker.core.submit_task(child(worker, resources=NO_ROOM), [])
        seen.append(str(raised.value))

    runs(worker, run, captures=True)
    assert seen and not worker.wire.all("RequestWorkerLease")


def test_an_actor_that_captures_does_so_in_every_call(worker: Worker) -> None:
    template = child(worker)

    class Actor:
        def method(self) -> None:
            worker.core.submit_task(template, [])

    worker.actor(Actor, strategy=strategy(True))
    worker.ask(worker.method("method"))
    worker.run()
    assert placed(worker).placement_group_id == GROUP


def test_the_context_tells_plain_names(worker: Worker) -> None:
    seen: list[Any] = []
    resources = worker.template(resources=ResourceSet.from_units({"CPU": 1}), **in_group(0)).options.resources

    def run() -> None:
        seen.append((worker.context.assigned_resources(), worker.context.placement_group()))

    worker.ask(worker.function(run, strategy=strategy(False), resources=resources.to_proto()))
    worker.run()
    assert seen == [({"CPU": 1.0}, (GROUP, False))]


def test_calls_of_a_worker_that_never_captured_have_nothing_of_it_on_their_way(worker: Worker) -> None:
    def builder() -> Any:
        return worker.core.submit_task.__self__  # type: ignore[attr-defined]

    runs(worker, lambda: None, captures=False)
    assert isinstance(builder(), TaskBuilder)
    runs(worker, lambda: None, captures=True)
    assert not isinstance(builder(), TaskBuilder)
