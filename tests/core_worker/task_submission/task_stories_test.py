"""What people are told of calls that are not over: in the error of a `get` that waits too long, and by
DumpState."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import GetTimeoutError
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2
from tests.core_worker.called_actor import CalledActor
from tests.core_worker.scene import Scene, address_of, value
from tests.core_worker.task_submission.tasks import a_worker_with, answer


def told(scene: Scene, *refs: Any) -> str:
    with pytest.raises(GetTimeoutError) as raised:
        scene.core.get(list(refs), 0.1)
    return str(raised.value)


def test_a_task_that_waits_for_a_worker_says_what_it_needs() -> None:
    scene = Scene()
    resources = ResourceSet.from_units({"CPU": 2})
    assert f"f() (it waits for a worker, and needs {resources})" in told(
        scene, scene.submit(resources=resources)
    )


def test_a_task_that_needs_nothing_says_only_that_it_waits() -> None:
    scene = Scene()
    assert "f() (it waits for a worker)" in told(scene, scene.submit(resources=ResourceSet()))


def test_a_task_without_its_arguments_says_that() -> None:
    scene = Scene()
    ref = scene.submit(scene.submit())
    assert "f() (its arguments are not there)" in told(scene, ref)


def test_a_task_that_runs_has_nothing_to_say_unless_its_worker_cannot_be_reached() -> None:
    scene = Scene()
    (ref,) = a_worker_with(scene, 1, name="runs")
    assert "runs()" in told(scene, ref) and "runs() (" not in told(scene, ref)
    scene.wire.channels["unix:worker"].trouble = "no descriptor is left"
    assert "runs() (no descriptor is left)" in told(scene, ref)


def test_a_call_of_an_actor_names_it_and_why_it_does_not_live() -> None:
    world = CalledActor()
    call = world.submit()
    actor = f"method() of actor {world.held.actor_id.hex()[:8]}"
    assert f"{actor}" in told(world.scene, call.ref)
    world.gcs.change(common_pb2.PENDING_CREATION, None)
    world.tell(pending_reason="no node has room")
    assert f"{actor} (no node has room)" in told(world.scene, call.ref)
    world.starts()
    assert f"{actor} (" not in told(world.scene, call.ref)
    world.line.channel.trouble = "it does not read"
    assert f"{actor} (it does not read)" in told(world.scene, call.ref)


def test_each_name_is_told_once_and_beyond_some_that_there_are_more() -> None:
    scene = Scene()
    alike = [scene.submit(name="alike") for _ in range(5)]
    assert told(scene, *alike).count("alike()") == 1
    text = told(scene, *(scene.submit(name=f"number{number}") for number in range(50)))
    assert "number0()" in text and "number49()" not in text and "…" in text


def test_what_is_over_is_not_told_of() -> None:
    scene = Scene()
    first, second = scene.submit(name="first"), scene.submit(name="second")
    scene.grant()
    answer(scene, first, value(1))
    text = told(scene, first, second)
    assert "second()" in text and "first()" not in text


def test_the_state_of_every_queue_lease_and_task_is_described() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 2)
    waiting = scene.submit(first, name="waiting")
    scene.submit(name="other", resources=ResourceSet.from_units({"GPU": 1}))
    told_now = scene.core.describe()
    assert told_now["task_states"] == [
        "f: SUBMITTED_TO_WORKER",
        "f: SUBMITTED_TO_WORKER",
        "waiting: PENDING_ARGS_AVAIL",
        "other: PENDING_NODE_ASSIGNMENT",
    ]
    queues = told_now["scheduling"]
    assert [queue["tasks_queued"] for queue in queues] == [0, 1]
    assert [queue["lease_requests"] for queue in queues] == [1, 1]
    assert [queue["leases"] for queue in queues] == [1, 0]
    (story,) = queues[0]["lease_states"]
    assert f"on worker {scene.worker.worker_id.hex()[:8]} runs tasks, 2 tasks there, 2 not answered" in story
    answer(scene, first)
    assert scene.core.describe()["task_states"][1] == "waiting: PENDING_NODE_ASSIGNMENT"
    del second, waiting


def test_of_many_tasks_some_are_described() -> None:
    scene = Scene()
    kept = [scene.submit() for _ in range(150)]
    assert len(scene.core.describe()["tasks_pending"]) == 100 and len(kept) == 150


def test_leases_on_several_workers_are_told_apart() -> None:
    scene = Scene()
    refs = [scene.submit(), scene.submit()]
    scene.grant(address_of(b"one"))
    scene.grant(address_of(b"two"))
    (queue,) = scene.core.describe()["scheduling"]
    assert queue["leases"] == len(set(queue["lease_states"])) == len(refs)
