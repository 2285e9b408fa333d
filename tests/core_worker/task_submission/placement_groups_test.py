"""Placement groups as a core worker makes them, waits for them and removes them: what the GCS is told and
asked."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import GetTimeoutError, RaySystemError, TaskPlacementGroupRemoved
from ray_mono.core_worker.context import InGroup, TaskContext, TaskKind
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import JOB_ID, LOST, Said, Scene, value

Info = common_pb2.PlacementGroupInfo
CREATED, REMOVED = common_pb2.PLACEMENT_GROUP_CREATED, common_pb2.PLACEMENT_GROUP_REMOVED
UNKNOWN = RpcError(StatusCode.NOT_FOUND, "no such group")
OTHER = b"g" * 14 + b"job9"
"""A group that another process made."""


def create(scene: Scene, **fields: Any) -> bytes:
    return scene.core.placement_groups.create(Info(bundles=[common_pb2.Bundle()], **fields))


def watch(scene: Scene) -> Said:
    """Who waits for what becomes of the group: the open one."""
    (said,) = scene.wire.open("RegisterPlacementGroup") + scene.wire.open("WatchPlacementGroup")
    assert said.request.settled
    return said


def is_watched(scene: Scene) -> bool:
    return bool(scene.wire.open("RegisterPlacementGroup") or scene.wire.open("WatchPlacementGroup"))


def hears(scene: Scene, state: Any, version: int = 2) -> None:
    """Whoever watches the group."""
    with scene.env.lock:
        watch(scene).answer(Info(state=state, version=version))


def wait(scene: Scene, group_id: bytes, timeout_s: float | None = 5.0) -> bool:
    return scene.core.placement_groups.wait(group_id, timeout_s)


def test_a_group_is_registered_and_watched_in_one_go() -> None:
    scene = Scene()
    group_id = create(scene, strategy=Info.SPREAD)
    told = watch(scene).request.group
    assert (told.placement_group_id, told.job_id, told.namespace) == (group_id, JOB_ID, "namespace")
    assert group_id.endswith(JOB_ID) and told.strategy == Info.SPREAD and not told.outlives_job
    assert not scene.wire.all("WatchPlacementGroup")
    assert create(scene) != group_id


def test_what_the_registration_brought_answers_one_wait() -> None:
    scene = Scene()
    group_id = create(scene)
    hears(scene, CREATED)
    assert wait(scene, group_id) and not is_watched(scene)
    # Others may have removed it since.
    scene.meanwhile(lambda: hears(scene, REMOVED))
    with pytest.raises(ValueError, match=f"{group_id.hex()} does not exist any more: it was removed"):
        wait(scene, group_id)


def test_a_wait_ends_when_the_group_is_created() -> None:
    scene = Scene()
    group_id = create(scene)
    scene.meanwhile(lambda: hears(scene, CREATED))
    assert wait(scene, group_id, None)


def test_a_wait_ends_at_its_time_and_the_watch_goes_on() -> None:
    scene = Scene()
    group_id = create(scene)
    assert not wait(scene, group_id)
    hears(scene, CREATED)
    assert wait(scene, group_id)


def test_ready_becomes_the_handle() -> None:
    scene = Scene()
    group_id = create(scene)
    ref = scene.core.placement_groups.ready(group_id, ("handle", 1))
    hears(scene, CREATED)
    assert scene.core.get([ref], None) == [("handle", 1)]


@pytest.mark.parametrize("by_others", [True, False])
def test_a_group_that_is_removed_is_told_to_whoever_waits(by_others: bool) -> None:
    scene = Scene()
    group_id = create(scene)
    ref = scene.core.placement_groups.ready(group_id, "handle")
    if by_others:
        hears(scene, REMOVED)
    else:
        scene.core.placement_groups.remove(group_id)
    assert isinstance(scene.state_of(ref), TaskPlacementGroupRemoved)
    with pytest.raises(ValueError, match="does not exist any more"):
        wait(scene, group_id)
    again = scene.core.placement_groups.ready(group_id, "handle")
    assert isinstance(scene.state_of(again), TaskPlacementGroupRemoved)


def test_a_removal_does_not_wait_and_comes_behind_the_registration() -> None:
    scene = Scene()
    group_id = create(scene)
    scene.core.placement_groups.remove(group_id)
    scene.core.placement_groups.remove(group_id)
    said = [each.method for each in scene.wire.said if "PlacementGroup" in each.method]
    assert said == [
        "RegisterPlacementGroup",
        "RemovePlacementGroup",
        "RemovePlacementGroup",
    ]
    assert scene.wire.last("RemovePlacementGroup").request.placement_group_id == group_id
    hears(scene, REMOVED)
    assert not is_watched(scene)


def test_a_registration_that_fails_shows_at_every_wait() -> None:
    scene = Scene()
    group_id = create(scene)
    ref = scene.core.placement_groups.ready(group_id, "handle")
    with scene.env.lock:
        watch(scene).fail(RpcError(StatusCode.INVALID_ARGUMENT, "no bundles"))
    assert isinstance(scene.state_of(ref), RaySystemError)
    for _ in range(2):
        with pytest.raises(RaySystemError, match="could not be registered: no bundles"):
            wait(scene, group_id)


def test_a_registration_that_nobody_answered_is_said_again_at_the_next_wait() -> None:
    scene = Scene()
    group_id = create(scene)
    ref = scene.core.placement_groups.ready(group_id, "handle")
    with scene.env.lock:
        watch(scene).fail(LOST)
    assert isinstance(scene.state_of(ref), RaySystemError) and not is_watched(scene)
    scene.meanwhile(lambda: hears(scene, CREATED))
    assert wait(scene, group_id)
    assert [each.request.group.placement_group_id for each in scene.wire.all("RegisterPlacementGroup")] == [
        group_id,
        group_id,
    ]


def test_a_name_is_waited_for() -> None:
    scene = Scene()
    scene.wire.replies["RegisterPlacementGroup"] = lambda request: Info(state=CREATED)
    group_id = create(scene, name="mine", is_detached=True)
    told = scene.wire.all("RegisterPlacementGroup")
    assert [each.request.settled for each in told] == [False, True]
    for each in told:
        group = each.request.group
        assert (group.name, group.is_detached, group.outlives_job) == ("mine", True, True)
        assert group.placement_group_id == group_id
    assert wait(scene, group_id)


def test_a_name_that_is_taken_is_told_with_the_group_that_has_it() -> None:
    def refuse(request: Any) -> Any:
        raise RpcError(StatusCode.ALREADY_EXISTS, "taken")

    scene = Scene()
    scene.wire.replies["RegisterPlacementGroup"] = refuse
    scene.wire.replies["GetPlacementGroup"] = lambda request: Info(placement_group_id=OTHER)
    with pytest.raises(
        ValueError, match=f"the name 'mine' is taken in namespace 'namespace', by .*{OTHER.hex()}"
    ):
        create(scene, name="mine")
    assert not scene.wire.all("WatchPlacementGroup")


def test_a_group_of_others_is_asked_for_again_until_its_maker_is_heard() -> None:
    scene = Scene()
    ref = scene.core.placement_groups.ready(OTHER, "handle")
    with scene.env.lock:
        watch(scene).fail(UNKNOWN)
    scene.pass_time(scene.config.watch_retry_s)
    hears(scene, CREATED)
    assert scene.core.get([ref], None) == ["handle"]


def test_nobody_asks_for_a_group_that_nobody_waits_for() -> None:
    scene = Scene()
    assert not wait(scene, OTHER)
    hears(scene, CREATED)
    assert not is_watched(scene)
    ref = scene.core.placement_groups.ready(OTHER, "handle")
    with scene.env.lock:
        watch(scene).fail(LOST)
    assert isinstance(scene.state_of(ref), RaySystemError)
    assert scene.core.describe()["placement_groups_known"] == 0


def test_a_ready_object_that_nobody_wants_costs_nothing() -> None:
    scene = Scene()
    group_id = create(scene)
    ref = scene.core.placement_groups.ready(group_id, "handle")
    del ref
    scene.turn()
    hears(scene, CREATED)
    assert scene.core.reference_counts() == 0


def test_a_detached_actor_is_named_as_the_maker() -> None:
    scene = Scene()
    kind = TaskKind(JOB_ID, "m", 1, b"a" * 16, is_detached=True)
    token = scene.context.enter(TaskContext(b"t" * 24, kind))
    create(scene)
    scene.context.leave(token)
    assert watch(scene).request.group.creator_actor_id == b"a" * 16


def test_rows_are_asked_of_the_gcs() -> None:
    def row(request: gcs_pb2.GetPlacementGroupRequest) -> Info:
        if request.placement_group_id == OTHER or request.name == "mine":
            return Info(placement_group_id=OTHER, namespace=request.namespace)
        raise UNKNOWN

    scene = Scene()
    groups = scene.core.placement_groups
    scene.wire.replies["GetPlacementGroup"] = row
    scene.wire.replies["GetAllPlacementGroups"] = lambda request: gcs_pb2.GetAllPlacementGroupsReply(
        groups=[Info(placement_group_id=OTHER)]
    )
    found, named = groups.row(OTHER), groups.named("mine", "space")
    assert found is not None and named is not None and named.namespace == "space"
    assert groups.row(b"?" * 18) is None and groups.named("other", "space") is None
    assert [each.placement_group_id for each in groups.rows()] == [OTHER]


def test_the_context_tells_the_group() -> None:
    scene = Scene()
    assert scene.context.placement_group() == InGroup()
    token = scene.context.enter(TaskContext(b"t" * 24, TaskKind(JOB_ID, group=InGroup(OTHER, True))))
    assert scene.context.placement_group() == (OTHER, True)
    scene.context.leave(token)


# ---- tasks in a group that this process removes


def submit_in(scene: Scene, group_id: bytes) -> Any:
    place = common_pb2.PlacementGroupStrategy(placement_group_id=group_id, bundle_index=-1)
    return scene.submit(strategy=common_pb2.SchedulingStrategy(placement_group=place))


def is_told_of_removal(scene: Scene, *refs: Any) -> bool:
    return all(isinstance(scene.state_of(ref), TaskPlacementGroupRemoved) for ref in refs)


def test_no_task_that_is_submitted_after_the_removal_asks_for_a_worker() -> None:
    scene = Scene()
    group_id = create(scene)
    scene.core.placement_groups.remove(group_id)
    assert is_told_of_removal(scene, submit_in(scene, group_id))
    assert not scene.wire.all("RequestWorkerLease")


def test_a_worker_that_was_asked_for_before_the_removal_goes_back() -> None:
    scene = Scene()
    group_id = create(scene)
    before = submit_in(scene, group_id)
    scene.core.placement_groups.remove(group_id)
    after = submit_in(scene, group_id)
    scene.grant()
    assert is_told_of_removal(scene, before, after)
    assert len(scene.wire.all("ReturnWorker")) == 1 and not scene.wire.all("PushTask")


def test_a_worker_of_the_group_gets_no_more_tasks_after_the_removal() -> None:
    scene = Scene()
    group_id = create(scene)
    runs = submit_in(scene, group_id)
    scene.grant()
    scene.core.placement_groups.remove(group_id)
    after = submit_in(scene, group_id)
    assert len(scene.wire.all("PushTask")) == 1
    scene.finish(runs, value(1))
    assert is_told_of_removal(scene, after)
    assert len(scene.wire.all("ReturnWorker")) == 1


@pytest.mark.parametrize("head_answers", [True, False])
def test_a_get_of_a_group_whose_time_is_over_says_why_it_waits(head_answers: bool) -> None:
    scene = Scene()
    group_id = create(scene)
    ref = scene.core.placement_groups.ready(group_id, "handle")
    if head_answers:
        scene.wire.replies["GetPlacementGroup"] = lambda request: Info(pending_reason="it needs a moon")
    why = r" \(it needs a moon\)" if head_answers else ""
    with pytest.raises(
        GetTimeoutError, match=f"after 2 s; not over: placement group {group_id.hex()[:8]}{why}$"
    ):
        scene.core.get([ref], 2.0)
    assert scene.reactor.now_s == 1000.0 + 2.0 + (0.0 if head_answers else 1.0)
