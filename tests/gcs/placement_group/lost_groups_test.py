"""Placement groups while answers are lost, nodes come late, and heads end, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ray_mono.gcs.storage.table_storage import Table, Write
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.lost_head import job_row, owner_row, tell, told_by_node
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
from tests.gcs.scene import OWNER, FakeNode, GcsScene, at_once, never, play, registration, until_state

MANY_S = 60.0
BY_ID = gcs_pb2.GetPlacementGroupRequest(placement_group_id=group_id())


async def driver_is_told_of(gcs: GcsServiceAsyncStub, node: FakeNode) -> None:
    await tell(gcs, OWNER.binary(), job=job_row(node), owned=())


async def loses_its_store(scene: GcsScene) -> GcsServiceAsyncStub:
    scene.kill_gcs()
    scene.lose_storage()
    return await scene.start_gcs()


def test_a_return_whose_answer_was_lost_takes_no_bundle_that_was_granted_since() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        first, second = [await scene.add_node({"CPU": 1}) for _ in range(2)]
        is_full, answers_lost = True, 1

        async def hold(request: raylet_pb2.PrepareBundlesRequest) -> raylet_pb2.PrepareBundlesReply:
            if is_full:
                return raylet_pb2.PrepareBundlesReply(refusals=["it needs {CPU: 1}"])
            return await second.hold_bundles(request)

        async def lose_answer(request: raylet_pb2.ReturnBundlesRequest) -> None:
            nonlocal answers_lost, is_full
            is_full = False
            if answers_lost:
                answers_lost -= 1
                raise RpcError(StatusCode.UNAVAILABLE, "the connection ended")

        second.on_prepare, first.on_returned = hold, lose_answer
        await register(gcs, group(strategy=Info.STRICT_SPREAD))
        await until(gcs, CREATED)
        await asyncio.sleep(MANY_S)
        assert (await until(gcs, CREATED, RESCHEDULING)).state == CREATED
        assert all(held for node in (first, second) for held in node.bundles[group_id()].values())
        assert len(first.returned_bundles) == 2

    play(script)


def test_a_node_that_made_its_list_before_it_was_asked_returns_what_it_holds() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 4})
        await register(gcs, group())
        await until(gcs, CREATED)
        held, node.bundles = node.bundles, {}
        await comes_back(node)  # it names no bundle
        node.bundles = held
        await until(gcs, CREATED)
        while not node.returned_bundles or node.bundles[group_id()] != {0: True, 1: True}:
            await asyncio.sleep(0.1)

    play(script)


def test_a_node_that_registers_again_while_another_is_waited_for_keeps_what_it_holds() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        first, second = [await scene.add_node({"CPU": 1}) for _ in range(2)]
        goes_on = asyncio.Event()
        hold_later(second, goes_on)
        await register(gcs, group(1, name="name1", strategy=Info.STRICT_SPREAD))
        while not first.bundles:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        await comes_back(first)
        assert not first.unwanted_bundles
        goes_on.set()
        await until(gcs, CREATED)
        assert len(first.prepares) == 1

    play(script)


def test_a_group_that_is_refused_for_ever_is_asked_for_less_and_less_and_written_once() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 4})

        async def refuse(request: raylet_pb2.PrepareBundlesRequest) -> raylet_pb2.PrepareBundlesReply:
            return raylet_pb2.PrepareBundlesReply(refusals=["in parts of accelerators"])

        node.on_prepare = refuse
        await register(gcs, group())
        await asyncio.sleep(MANY_S)
        info = await gcs.GetPlacementGroup(BY_ID)
        assert info.pending_reason == "in parts of accelerators" and info.num_attempts == 1
        assert len([request for request in node.prepares if not request.may_wait]) < MANY_S / 1.5
        assert len([request for request in node.prepares if request.may_wait]) < MANY_S / 1.5
        node.on_prepare = node.hold_bundles
        await until(gcs, CREATED)

    play(script)


def test_a_removal_that_overtook_the_registration_counts() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 4})
        await remove(gcs)
        await register(gcs, group(is_detached=True))
        await until(gcs, REMOVED)
        await asyncio.sleep(1)
        assert not any(node.bundles.values())

    play(script)


# ---- the head ends


@pytest.mark.parametrize("is_placed", [True, False])
def test_a_head_that_ends_between_a_removal_and_the_ends_of_its_actors_leaves_none(is_placed: bool) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 4, "a": 1})
        await register(gcs, group(cpus=(1,) if is_placed else (9,)))
        await until(gcs, CREATED if is_placed else PENDING)
        inside = registration(1, {"a": 1} if is_placed else {"b": 1}, max_restarts=-1)
        inside.creation_spec.strategy.placement_group.placement_group_id = group_id()
        await gcs.RegisterActor(inside)
        if is_placed:
            await until_state(gcs, common_pb2.ALIVE)
        is_over, commit = asyncio.Event(), scene.storage.commit

        async def last_commit(writes: Sequence[Write]) -> None:
            if is_over.is_set():
                await never(writes)
            await commit(writes)
            if any(write.table is Table.PLACEMENT_GROUP for write in writes):
                is_over.set()

        scene.storage.commit = last_commit  # type: ignore[method-assign]
        removing = asyncio.ensure_future(remove(gcs))
        await is_over.wait()
        scene.kill_gcs()
        await asyncio.gather(removing, return_exceptions=True)
        scene.storage.commit = commit  # type: ignore[method-assign]
        gcs = await scene.start_gcs()
        await comes_back(node)
        cause = (await until_state(gcs, common_pb2.DEAD)).death_cause
        assert cause.kind == common_pb2.DeathCause.PLACEMENT_GROUP_REMOVED

    play(script)


def test_an_actor_of_a_group_that_nobody_makes_ends_under_the_next_head_as_well() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        inside = registration(1)
        inside.creation_spec.strategy.placement_group.placement_group_id = group_id()
        await gcs.RegisterActor(inside)
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        await until_state(gcs, common_pb2.DEAD)

    play(script)


@pytest.mark.parametrize("store_is_lost", [True, False])
def test_bundles_of_a_group_that_lost_others_are_opened_by_the_next_head(store_is_lost: bool) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        first, second = [await scene.add_node({"CPU": 1}) for _ in range(2)]
        first.on_commit = second.on_commit = never
        await register(gcs, group(1, name="name1", strategy=Info.STRICT_SPREAD))
        await until(gcs, PREPARED)
        await asyncio.sleep(1)
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=second.node_id))
        await until(gcs, RESCHEDULING)
        first.on_commit = at_once
        if store_is_lost:
            gcs = await loses_its_store(scene)
            await comes_back(first, told_by_node(owner_row(first)))
            await driver_is_told_of(gcs, first)
        else:
            scene.kill_gcs()
            gcs = await scene.start_gcs()
            await comes_back(first)
        while list(first.bundles[group_id()].values()) != [True]:
            await asyncio.sleep(0.1)
        assert (await gcs.GetPlacementGroup(BY_ID)).state == RESCHEDULING

    play(script)


def test_a_group_whose_drivers_node_comes_late_to_a_head_that_lost_its_store_lives() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node, drivers = [await scene.add_node({"CPU": cpus}) for cpus in (2, 0)]
        await register(gcs, group(1, name="name1", strategy=Info.STRICT_PACK))
        await until(gcs, CREATED)
        gcs = await loses_its_store(scene)
        await comes_back(node, told_by_node(others=(drivers,)))
        await asyncio.sleep(12)
        assert (await gcs.GetPlacementGroup(BY_ID)).state == CREATED
        await comes_back(drivers, told_by_node(owner_row(drivers), others=(node,)))
        await driver_is_told_of(gcs, drivers)
        await asyncio.sleep(2 * MANY_S)
        assert (await gcs.GetPlacementGroup(BY_ID)).state == CREATED and not node.returned_bundles

    play(script)


def test_and_it_ends_where_that_node_does_not_come() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node, drivers = [await scene.add_node({"CPU": cpus}) for cpus in (2, 0)]
        await register(gcs, group(1, name="name1", strategy=Info.STRICT_PACK))
        await until(gcs, CREATED)
        gcs = await loses_its_store(scene)
        await comes_back(node, told_by_node(others=(drivers,)))
        await until(gcs, REMOVED)
        await asyncio.sleep(1)
        assert not any(node.bundles.values())

    play(script)


def test_a_group_whose_node_comes_late_is_waited_for_by_those_who_watch_it() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        drivers, node = [await scene.add_node({"CPU": cpus}) for cpus in (0, 2)]
        await register(gcs, group(1, name="name1", strategy=Info.STRICT_PACK))
        await until(gcs, CREATED)
        gcs = await loses_its_store(scene)
        await comes_back(drivers, told_by_node(owner_row(drivers), others=(node,)))
        await driver_is_told_of(gcs, drivers)
        watched = asyncio.ensure_future(until(gcs, CREATED))
        await asyncio.sleep(30)
        await comes_back(node, told_by_node(others=(drivers,)))
        assert places(await watched) == [node.node_id] * 2

    play(script)


def test_a_bundle_that_a_late_node_tells_of_a_group_that_waits_may_be_lost_again() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        first, second = [await scene.add_node({"CPU": 1}) for _ in range(2)]
        await register(gcs, group(1, name="name1", strategy=Info.STRICT_SPREAD))
        await until(gcs, CREATED)
        gcs = await loses_its_store(scene)
        first.bundles.clear()
        await comes_back(first, told_by_node(owner_row(first)))
        await driver_is_told_of(gcs, first)
        await asyncio.sleep(15)
        # Its creator had no answer from the head before.
        await register(gcs, group(1, name="name1", strategy=Info.STRICT_SPREAD))
        await first.process.spawn(first.report(1, {"CPU": 0}))
        first.on_prepare = never
        await comes_back(second, told_by_node())
        await asyncio.sleep(15)
        assert second.node_id in places(await gcs.GetPlacementGroup(BY_ID))
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=second.node_id))
        info = await gcs.GetPlacementGroup(BY_ID)
        assert info.state == PENDING and second.node_id not in places(info)

    play(script)
