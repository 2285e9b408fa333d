"""Tasks and actors in placement groups: what they ask for there, what does not fit, and what becomes of them
when the group is removed."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import (
    ActorDiedError,
    ActorPlacementGroupRemoved,
    GetTimeoutError,
    TaskPlacementGroupRemoved,
)
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.options import ActorOptions
from ray_mono.core_worker.task_submission.function_manager import Exported
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from tests.core_worker.scene import Scene, address_of, value
from tests.core_worker.task_submission.placed import GROUP, in_group

G = GROUP.hex()
REMOVED = raylet_pb2.RequestWorkerLeaseReply(
    rejection=raylet_pb2.Rejection(kind=raylet_pb2.Rejection.PLACEMENT_GROUP_REMOVED, message="gone")
)


def cpus(count: float) -> ResourceSet:
    return ResourceSet.from_units({"CPU": count})


def units(message: common_pb2.ResourceSet) -> dict[str, float]:
    return ResourceSet.from_proto(message).to_units()


def test_a_task_asks_for_the_names_of_its_bundle() -> None:
    scene = Scene()
    scene.submit(resources=cpus(1), **in_group(1, captures=True))
    asked = scene.wire.last("RequestWorkerLease").request
    assert units(asked.resources) == {
        f"CPU_group_{G}": 1,
        f"CPU_group_1_{G}": 1,
        f"bundle_group_{G}": 0.001,
        f"bundle_group_1_{G}": 0.001,
    }
    assert asked.strategy.placement_group.bundle_index == 1
    scene.grant()
    spec = scene.wire.last("PushTask").request.spec
    assert spec.strategy.placement_group.capture_child_tasks
    assert units(spec.resources) == units(asked.resources)


def test_a_task_in_any_bundle_that_needs_nothing_asks_for_its_share() -> None:
    scene = Scene()
    scene.submit(resources=ResourceSet(), **in_group())
    asked = scene.wire.last("RequestWorkerLease").request
    assert units(asked.resources) == {f"bundle_group_{G}": 0.001}


def test_tasks_in_a_bundle_are_pushed_ahead_as_others_are() -> None:
    scene = Scene()
    assert scene.template(resources=cpus(1), **in_group()).queue.pushes_ahead
    gpu = ResourceSet.from_units({"CPU": 1, "GPU": 1})
    assert not scene.template(resources=gpu, **in_group()).queue.pushes_ahead


@pytest.mark.parametrize(
    ("index", "needed", "message"),
    [
        (
            2,
            cpus(1),
            "placement_group_bundle_index must be -1 or a bundle's, 0 to 1, of placement group .*, got 2",
        ),
        (-2, cpus(1), "got -2"),
        (-1, cpus(3), r"f\(\) needs .*: that cannot fit into any bundle of placement group"),
        (0, cpus(2), "cannot fit into bundle 0 of placement group"),
    ],
)
def test_what_fits_nowhere_is_refused(index: int, needed: ResourceSet, message: str) -> None:
    scene = Scene()
    with pytest.raises(ValueError, match=message):
        scene.submit(resources=needed, **in_group(index))
    with pytest.raises(ValueError, match=message.replace(r"f\(\)", "Actor")):
        create(scene, placement_resources=needed, **in_group(index))
    assert not scene.wire.all("RequestWorkerLease") and not scene.wire.all("RegisterActor")


def test_a_group_of_which_nothing_is_known_is_not_checked() -> None:
    scene = Scene()
    scene.submit(resources=cpus(100), **{**in_group(7), "bundles": ()})
    assert scene.wire.all("RequestWorkerLease")


# ---- actors


def create(scene: Scene, **options: Any) -> Any:
    code = Exported(common_pb2.FunctionDescriptor())
    return scene.core.create_actor(code, ActorOptions(class_name="Actor", **options), [])


def call(scene: Scene, held: Any) -> Any:
    (ref,) = scene.core.submit_actor_task(held, scene.core.method_template("method", "Actor"), [])
    return ref


def test_an_actor_is_placed_with_the_names_of_its_bundle_and_holds_its_share() -> None:
    scene = Scene()
    create(scene, **in_group(0))
    spec = scene.wire.last("RegisterActor").request.creation_spec
    share = {f"bundle_group_{G}": 0.001, f"bundle_group_0_{G}": 0.001}
    assert units(spec.resources) == share
    assert units(spec.placement_resources) == {f"CPU_group_{G}": 1, f"CPU_group_0_{G}": 1, **share}
    assert spec.strategy.placement_group.placement_group_id == GROUP


@pytest.mark.parametrize(
    ("pid", "error", "words"),
    [(0, ActorPlacementGroupRemoved, "was removed"), (7, ActorDiedError, "its placement group is gone")],
)
def test_calls_to_an_actor_whose_group_is_removed_say_so(pid: int, error: type, words: str) -> None:
    scene = Scene()
    held = create(scene, **in_group())
    scene.wire.last("RegisterActor").answer(gcs_pb2.RegisterActorReply(created=True))
    ref = call(scene, held)
    (watch,) = scene.wire.open("WatchActor")
    kind = common_pb2.DeathCause.PLACEMENT_GROUP_REMOVED
    cause = common_pb2.DeathCause(kind=kind, message="its placement group is gone")
    with scene.env.lock:
        watch.answer(common_pb2.ActorInfo(state=common_pb2.DEAD, version=9, pid=pid, death_cause=cause))
    for each in (ref, call(scene, held)):
        found = scene.state_of(each)
        assert type(found) is error and words in str(found)


# ---- the group is removed


def test_tasks_that_wait_for_a_removed_group_fail_and_no_others() -> None:
    scene = Scene()
    refs = [scene.submit(**in_group()), scene.submit(**in_group())]
    other = scene.submit()
    scene.wire.open("RequestWorkerLease")[0].answer(REMOVED)
    assert all(isinstance(scene.state_of(ref), TaskPlacementGroupRemoved) for ref in refs)
    assert isinstance(scene.state_of(other), GetTimeoutError)


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_task_that_the_removal_killed_is_not_run_again(max_retries: int) -> None:
    scene = Scene()
    ref = scene.submit(max_retries=max_retries, **in_group())
    scene.grant()
    scene.wire.end(f"unix:{scene.worker.unix_path}")
    scene.turn()
    (told,) = scene.wire.open("LostWorker")
    told.answer(common_pb2.DeathCause(kind=common_pb2.DeathCause.PLACEMENT_GROUP_REMOVED))
    assert isinstance(scene.state_of(ref), TaskPlacementGroupRemoved)
    assert not scene.wire.open("RequestWorkerLease")


def test_queues_of_removed_groups_do_not_pile_up() -> None:
    scene = Scene()
    for number in range(50):
        group_id = b"%14d" % number + b"job1"
        ref = scene.submit(name="f", **in_group(group_id=group_id))
        scene.grant(address_of(b"worker %d" % number))
        scene.wire.last("PushTask").answer(value(number))
        assert scene.core.get([ref], None) == [number]
        scene.pass_time(10)  # its worker goes back
        scene.core.placement_groups.remove(group_id)
    assert len(scene.core.describe()["scheduling"]) <= 2
