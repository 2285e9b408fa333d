"""Placement groups from registration to removal, through a real GCS in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.placement_group.group_scene import (
    CREATED,
    PENDING,
    PREPARED,
    REMOVED,
    RESCHEDULING,
    Info,
    begin,
    comes_back,
    group,
    group_id,
    hold_later,
    places,
    register,
    remove,
    until,
)
from tests.gcs.scene import (
    JOB,
    OWNER,
    GcsScene,
    actor_id,
    at_once,
    never,
    play,
    registration,
    until_state,
)


def test_groups_that_are_placed_together_are_held_and_opened_with_one_call_per_node() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        nodes = [await scene.add_node({"CPU": 4})]
        for number in (1, 2, 3):
            await register(gcs, group(number, strategy=Info.STRICT_SPREAD))
        nodes.append(await scene.add_node({"CPU": 4}))
        for number in (1, 2, 3):
            info = await until(gcs, CREATED, number=number)
            assert set(places(info)) == {node.node_id for node in nodes} and info.created_time_s
        for node in nodes:
            assert [len(request.groups) for request in node.prepares] == [3]
            assert [list(held.values()) for held in node.bundles.values()] == [[True]] * 3

    play(script)


def test_a_group_that_is_refused_somewhere_gives_the_rest_back_and_is_placed_when_there_is_room() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        first, second = [await scene.add_node({"CPU": 1}) for _ in range(2)]
        is_full = True

        async def hold(request: raylet_pb2.PrepareBundlesRequest) -> raylet_pb2.PrepareBundlesReply:
            if is_full:
                return raylet_pb2.PrepareBundlesReply(refusals=["it needs {CPU: 1}"])
            return await second.hold_bundles(request)

        second.on_prepare = hold
        await register(gcs, group(strategy=Info.STRICT_SPREAD))
        while not first.returned_bundles:
            await asyncio.sleep(0.01)
        assert not first.bundles[group_id()] and not first.returned_bundles[0].is_removed
        is_full = False
        assert set(places(await until(gcs, CREATED))) == {first.node_id, second.node_id}

    play(script)


def test_what_fits_nowhere_waits_for_a_node_and_says_what_for() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        await scene.add_node({"CPU": 1})
        await register(gcs, group(strategy=Info.STRICT_PACK))
        await asyncio.sleep(1)
        info = await until(gcs, PENDING)
        assert "it needs {CPU: 1}, {CPU: 1} by STRICT_PACK" in info.pending_reason
        assert "could not hold" in info.pending_reason and info.num_attempts == 1
        node = await scene.add_node({"CPU": 2})
        assert places(await until(gcs, CREATED)) == [node.node_id] * 2

    play(script)


def test_a_group_that_waits_says_what_a_node_has_to_be_right_for_besides() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        await scene.add_node({"CPU": 1})
        node = await scene.add_node({"CPU": 1})
        await register(gcs, group(same_label="zone"))
        await asyncio.sleep(1)
        reason = (await until(gcs, PENDING)).pending_reason
        assert "by PACK, all on nodes with one value of zone, which" in reason
        assert "no node has zone" in reason
        await remove(gcs)
        await register(gcs, group(2, strategy=Info.STRICT_SPREAD))
        await until(gcs, CREATED, number=2)
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=node.node_id))
        await until(gcs, RESCHEDULING, number=2)
        await asyncio.sleep(1)
        reason = (await until(gcs, RESCHEDULING, number=2)).pending_reason
        assert "by STRICT_SPREAD, beside its 1 bundle that has its place, which the only node" in reason

    play(script)


def test_a_node_that_does_not_answer_delays_no_other_group() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        stuck = await scene.add_node({"CPU": 8, "A": 1})
        stuck.on_prepare = never
        wants_it = Info(placement_group_id=group_id(1), job_id=JOB.binary())
        wants_it.bundles.add(resources=ResourceSet.from_units({"A": 1}).to_proto())
        await register(gcs, wants_it)
        await asyncio.sleep(0.1)
        other = await scene.add_node({"CPU": 2})
        await register(gcs, group(2, strategy=Info.STRICT_PACK, soft_target_node_id=other.node_id))
        async with asyncio.timeout(1):
            await until(gcs, CREATED, number=2)

    play(script)


def test_bundles_of_a_dead_node_are_placed_elsewhere_and_the_others_stay() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        first, second = [await scene.add_node({"CPU": 1}) for _ in range(2)]
        await register(gcs, group())
        before = places(await until(gcs, CREATED))
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=first.node_id))
        info = await until(gcs, RESCHEDULING)
        lost = before.index(first.node_id)
        assert places(info)[lost] == b"" and places(info)[1 - lost] == second.node_id
        third = await scene.add_node({"CPU": 1})
        info = await until(gcs, CREATED)
        assert places(info)[lost] == third.node_id and places(info)[1 - lost] == second.node_id
        assert len(second.prepares) == 1 and not second.returned_bundles

    play(script)


def test_a_node_that_dies_while_another_one_is_waited_for_has_no_bundle() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        first, second = [await scene.add_node({"CPU": 1}) for _ in range(2)]
        goes_on = asyncio.Event()
        hold_later(second, goes_on)
        await register(gcs, group(strategy=Info.STRICT_SPREAD))
        while not first.bundles:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=first.node_id))
        goes_on.set()
        third = await scene.add_node({"CPU": 1})
        assert set(places(await until(gcs, CREATED))) == {second.node_id, third.node_id}

    play(script)


def test_a_node_that_dies_before_its_bundles_are_open_has_none() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        first, second = [await scene.add_node({"CPU": 1}) for _ in range(2)]
        first.on_commit = never
        await register(gcs, group(strategy=Info.STRICT_SPREAD))
        await until(gcs, PREPARED)
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=first.node_id))
        third = await scene.add_node({"CPU": 1})
        assert set(places(await until(gcs, CREATED))) == {second.node_id, third.node_id}

    play(script)


@pytest.mark.parametrize("is_created", [True, False])
def test_a_removed_group_takes_its_bundles_and_actors_with_it(is_created: bool) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 4, "a": 1})
        await register(gcs, group(cpus=(1, 1) if is_created else (9,), name="name"))
        await until(gcs, CREATED if is_created else PENDING)
        inside = registration(1, {"a": 1}, max_restarts=-1)
        strategy = common_pb2.PlacementGroupStrategy(placement_group_id=group_id(), bundle_index=0)
        inside.creation_spec.strategy.placement_group.CopyFrom(strategy)
        await gcs.RegisterActor(inside)
        await until_state(gcs, common_pb2.ALIVE)
        by_name = gcs_pb2.GetPlacementGroupRequest(name="name", namespace="space")
        assert (await gcs.GetPlacementGroup(by_name)).placement_group_id == group_id()
        for _ in range(2):
            await remove(gcs)
        info = await until(gcs, REMOVED)
        assert "remove_placement_group" in info.removed_because
        cause = (await until_state(gcs, common_pb2.DEAD)).death_cause
        assert cause.kind == common_pb2.DeathCause.PLACEMENT_GROUP_REMOVED
        await asyncio.sleep(1)
        assert [request.is_removed for request in node.returned_bundles] == [True] * is_created
        assert not any(node.bundles.values())
        with pytest.raises(RpcError) as caught:
            await gcs.GetPlacementGroup(by_name)
        assert caught.value.code is StatusCode.NOT_FOUND
        # Whoever comes later ends at once.
        late = registration(2, {"a": 1})
        late.creation_spec.strategy.placement_group.CopyFrom(strategy)
        await gcs.RegisterActor(late)
        await until_state(gcs, common_pb2.DEAD, 2)

    play(script)


def test_a_group_that_is_removed_while_nodes_are_asked_leaves_nothing_there() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 4})
        goes_on = asyncio.Event()

        async def hold_and_answer_later(
            request: raylet_pb2.PrepareBundlesRequest,
        ) -> raylet_pb2.PrepareBundlesReply:
            reply = await node.hold_bundles(request)
            await goes_on.wait()
            return reply

        node.on_prepare = hold_and_answer_later
        await register(gcs, group())
        while not node.prepares:
            await asyncio.sleep(0.01)
        await remove(gcs)
        goes_on.set()
        await asyncio.sleep(1)
        assert not node.bundles[group_id()] and (await until(gcs, REMOVED)).state == REMOVED

    play(script)


def test_a_name_is_taken_until_its_group_is_removed() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        await register(gcs, group(1, name="name"))
        await register(gcs, group(1, name="name"))  # whoever missed the answer
        with pytest.raises(RpcError, match="named 'name' exists") as caught:
            await register(gcs, group(2, name="name"))
        assert caught.value.code is StatusCode.ALREADY_EXISTS
        await remove(gcs)
        await register(gcs, group(2, name="name"))

    play(script)


@pytest.mark.parametrize(
    ("fields", "ends"),
    [({}, True), ({"is_detached": True}, False), ({"creator_actor_id": actor_id(1)}, False)],
)
def test_a_group_ends_with_its_job_unless_it_is_detached_or_made_by_a_detached_actor(
    fields: dict[str, object], ends: bool
) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 4})
        await gcs.RegisterActor(registration(1, is_detached=True))
        await until_state(gcs, common_pb2.ALIVE)
        await register(gcs, group(**fields))
        await until(gcs, CREATED)
        await gcs.MarkJobFinished(gcs_pb2.MarkJobFinishedRequest(job_id=JOB.binary()))
        await asyncio.sleep(1)
        assert (await until(gcs, CREATED, REMOVED)).state == (REMOVED if ends else CREATED)
        kill = gcs_pb2.KillActorRequest(actor_id=actor_id(1), force=True, no_restart=True)
        await gcs.KillActor(kill)
        await asyncio.sleep(1)
        stays = bool(fields.get("is_detached"))
        assert (await until(gcs, CREATED, REMOVED)).state == (CREATED if stays else REMOVED)
        assert any(node.bundles.values()) == stays

    play(script)


def test_one_that_is_not_known_is_waited_for_and_then_refused() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        await scene.add_node({"CPU": 4})
        early = asyncio.ensure_future(until(gcs, CREATED))
        never_made = asyncio.ensure_future(until(gcs, CREATED, number=2))
        used = registration(1)
        used.creation_spec.strategy.placement_group.placement_group_id = group_id(2)
        await gcs.RegisterActor(used)
        await asyncio.sleep(1)
        await register(gcs, group(1))
        assert (await early).state == CREATED
        with pytest.raises(RpcError) as caught:
            await never_made
        assert caught.value.code is StatusCode.NOT_FOUND
        cause = (await until_state(gcs, common_pb2.DEAD)).death_cause
        assert cause.kind == common_pb2.DeathCause.PLACEMENT_GROUP_REMOVED

    play(script)


@pytest.mark.parametrize(
    ("fault", "changed"),
    [("bundles must not be empty", group(cpus=())), ("bundle 0 must ask for something", group(cpus=(0,)))],
)
def test_what_is_malformed_is_refused(fault: str, changed: Info) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        with pytest.raises(RpcError, match=fault) as caught:
            await register(gcs, changed)
        assert caught.value.code is StatusCode.INVALID_ARGUMENT

    play(script)


# ---- the head ends


def test_the_next_head_opens_what_was_held_and_returns_what_was_only_asked_for() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 4})
        node.on_commit = never
        await register(gcs, group(1, name="name1"))
        await until(gcs, PREPARED)

        async def hold_and_say_nothing(request: raylet_pb2.PrepareBundlesRequest) -> None:
            await node.hold_bundles(request)
            await never(request)

        node.on_prepare = hold_and_say_nothing  # type: ignore[assignment]
        await register(gcs, group(2, name="name2"))
        while not node.bundles.get(group_id(2)):
            await asyncio.sleep(0.01)
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        await comes_back(node)
        assert not node.bundles[group_id(2)]
        node.on_commit, node.on_prepare = at_once, node.hold_bundles
        for number in (1, 2):
            assert places(await until(gcs, CREATED, number=number)) == [node.node_id] * 2
            assert node.bundles[group_id(number)] == {0: True, 1: True}

    play(script)


def test_groups_outlive_the_head_and_a_bundle_that_a_node_does_not_have_any_more_is_placed_again() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 4})
        for number in (1, 2):
            await register(gcs, group(number, name=f"name{number}"))
            await until(gcs, CREATED, number=number)
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        del node.bundles[group_id(2)][1]
        await comes_back(node)
        assert (await until(gcs, CREATED)).name == "name1" and len(node.prepares) == 2
        assert places(await until(gcs, CREATED, number=2)) == [node.node_id] * 2
        while node.bundles[group_id(2)] != {0: True, 1: True}:
            await asyncio.sleep(0.1)
        assert list(node.prepares[-1].groups[0].indices) == [1]

    play(script)


@pytest.mark.parametrize("second_comes", [True, False])
def test_a_head_that_lost_its_store_hears_of_groups_from_the_nodes(second_comes: bool) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        first, second = [await scene.add_node({"CPU": 1}) for _ in range(2)]
        await register(gcs, group(1, name="name1", strategy=Info.STRICT_SPREAD))
        before = places(await until(gcs, CREATED))
        scene.kill_gcs()
        scene.lose_storage()
        gcs = await scene.start_gcs()
        row = common_pb2.WorkerInfo(
            worker_id=OWNER.binary(),
            node_id=first.node_id,
            type=common_pb2.DRIVER,
            job_id=JOB.binary(),
            is_alive=True,
        )
        told = gcs_pb2.RegisterNodeRequest(known_cluster_ids=[b"before"], workers=[row], last_job_number=1)
        await comes_back(first, told)
        if second_comes:
            del told.workers[:]
            await comes_back(second, told)
        job = common_pb2.JobInfo(job_id=JOB.binary(), driver=common_pb2.Address(worker_id=OWNER.binary()))
        await gcs.Adopt(gcs_pb2.AdoptRequest(worker_id=OWNER.binary(), job=job))
        if not second_comes:
            third = await scene.add_node({"CPU": 1})
            before = [third.node_id if each == second.node_id else each for each in before]
        info = await until(gcs, CREATED)
        assert places(info) == before and info.name == "name1"
        assert first.bundles[group_id()] and not first.returned_bundles

    play(script)
