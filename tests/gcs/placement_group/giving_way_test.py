"""Placement groups whose nodes are in use: whose turn it is, what nodes are asked for, and what ends a turn.
A real GCS in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from ray_mono.common.ids import JobID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.placement_group.group_turns import GIVE_WAY_AFTER_S, TURN_FIRST_S
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from tests.gcs.placement_group.group_scene import (
    CREATED,
    REMOVED,
    RESCHEDULING,
    Info,
    begin,
    group,
    group_id,
    places,
    register,
    remove,
    until,
)
from tests.gcs.scene import FakeNode, GcsScene, never, play, registration, until_state

BY_ID = gcs_pb2.GetPlacementGroupRequest(placement_group_id=group_id())
SOON_S = 1.0


class BusyNode:
    """Its tasks hold all that it has. Bundles that may wait do so until these give way."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.node_id = node.node_id
        self.gives_way = asyncio.Event()
        self.refusal = ""
        """What it answers instead."""
        node.on_prepare = self._hold

    async def _hold(self, request: raylet_pb2.PrepareBundlesRequest) -> raylet_pb2.PrepareBundlesReply:
        if not request.may_wait:
            return raylet_pb2.PrepareBundlesReply(refusals=["it is in use"] * len(request.groups))
        await self.gives_way.wait()
        if self.refusal:
            return raylet_pb2.PrepareBundlesReply(refusals=[self.refusal])
        return await self.node.hold_bundles(request)

    @property
    def waited(self) -> list[bytes]:
        """The groups whose bundles waited here, in their order."""
        requests = [request for request in self.node.prepares if request.may_wait]
        return [each.group.placement_group_id for request in requests for each in request.groups]

    @property
    def given_back(self) -> list[bytes]:
        return [each.placement_group_id for request in self.node.returned_bundles for each in request.groups]


async def add_busy_node(scene: GcsScene, total: Mapping[str, float]) -> BusyNode:
    node = await scene.add_node(total)
    await node.process.spawn(node.report(1, dict.fromkeys(total, 0)))
    return BusyNode(node)


async def until_it_waits(*nodes: BusyNode, number: int = 1) -> None:
    while not all(node.waited[-1:] == [group_id(number)] for node in nodes):
        await asyncio.sleep(0.01)


def test_bundles_wait_at_nodes_in_use_and_are_opened_when_all_are_held() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        nodes = [await add_busy_node(scene, {"CPU": 2}) for _ in range(2)]
        await register(gcs, group(cpus=(2, 2), strategy=Info.STRICT_SPREAD))
        await asyncio.sleep(GIVE_WAY_AFTER_S - 0.01)
        assert not any(node.waited for node in nodes)
        await asyncio.sleep(0.1)
        assert [node.waited for node in nodes] == [[group_id()]] * 2
        info = await gcs.GetPlacementGroup(BY_ID)
        text = "it needs {CPU: 2}, {CPU: 2} by STRICT_SPREAD, which is in use"
        assert info.pending_reason == text and not info.is_infeasible
        nodes[0].gives_way.set()
        await asyncio.sleep(SOON_S)
        assert not (await gcs.GetPlacementGroup(BY_ID)).created_time_s
        nodes[1].gives_way.set()
        info = await until(gcs, CREATED)
        assert set(places(info)) == {node.node_id for node in nodes}
        assert not any(node.given_back for node in nodes)

    play(script)


def test_on_the_same_nodes_one_group_has_its_turn_at_a_time_the_oldest_first() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        nodes = [await add_busy_node(scene, {"CPU": 2}) for _ in range(2)]
        for number in (1, 2):
            await register(gcs, group(number, cpus=(1, 1), strategy=Info.STRICT_SPREAD))
        await asyncio.sleep(SOON_S)
        assert [node.waited for node in nodes] == [[group_id(1)]] * 2
        nodes[0].gives_way.set()
        nodes[1].gives_way.set()
        await until(gcs, CREATED, number=2)
        assert [node.waited for node in nodes] == [[group_id(1), group_id(2)]] * 2

    play(script)


def test_after_a_turn_in_vain_all_is_given_back_and_another_node_is_asked() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        nodes = [await add_busy_node(scene, {"CPU": 2}) for _ in range(3)]
        await register(gcs, group(1, cpus=(2, 2), strategy=Info.STRICT_SPREAD))
        while len(asked := [node for node in nodes if node.waited]) < 2:
            await asyncio.sleep(0.01)
        ready, late = asked
        [other] = [node for node in nodes if node not in asked]
        ready.gives_way.set()
        await asyncio.sleep(TURN_FIRST_S)
        assert ready.given_back == late.given_back == [group_id(1)] and not ready.node.bundles[group_id(1)]
        await asyncio.sleep(TURN_FIRST_S - SOON_S)
        assert not other.waited
        await until_it_waits(other)
        other.gives_way.set()
        assert set(places(await until(gcs, CREATED))) == {ready.node_id, other.node_id}
        assert late.waited == [group_id(1)]

    play(script)


def test_others_have_their_turns_on_other_nodes_meanwhile_and_on_the_same_in_its_pauses() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        late, busy = [await add_busy_node(scene, {"CPU": 2, name: 1}) for name in ("A", "B")]
        ready = await add_busy_node(scene, {"CPU": 2, "C": 1})
        ready.gives_way.set()

        def on(number: int, *names: str) -> Info:
            info = group(number, cpus=(), strategy=Info.STRICT_SPREAD)
            for name in names:
                resources = ResourceSet.from_units({"CPU": 2, name: 1})
                info.bundles.add(resources=resources.to_proto())
            return info

        await register(gcs, on(1, "A", "B"))
        await until_it_waits(late, busy)
        async with asyncio.timeout(SOON_S):
            await register(gcs, on(2, "C"))
            await until(gcs, CREATED, number=2)
            await remove(gcs, number=2)
        await register(gcs, on(3, "B", "C"))
        await asyncio.sleep(TURN_FIRST_S - 2 * SOON_S)
        assert ready.waited == [group_id(2)]
        busy.gives_way.set()
        async with asyncio.timeout(3 * SOON_S):
            await until(gcs, CREATED, number=3)
        assert late.waited == [group_id(1)]

    play(script)


def test_no_group_comes_before_an_older_one_that_wants_the_same() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 1})
        refuses = [True]

        async def refuse_once(request: raylet_pb2.PrepareBundlesRequest) -> raylet_pb2.PrepareBundlesReply:
            if refuses.pop():
                refuses.append(False)
                return raylet_pb2.PrepareBundlesReply(refusals=["it is in use"])
            refuses.append(False)
            return await node.hold_bundles(request)

        node.on_prepare = refuse_once
        await register(gcs, group(1, cpus=(1,)))
        while refuses == [True]:
            await asyncio.sleep(0.001)
        # The first is left alone for a while, since it was refused, and this one was not.
        await register(gcs, group(2, cpus=(1,)))
        await until(gcs, CREATED)
        assert list(node.bundles) == [group_id(1)]

    play(script)


def test_jobs_have_their_places_in_turn() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        driver = common_pb2.Address(worker_id=b"1" * 28, node_id=b"0" * 28)
        job = await gcs.AddJob(gcs_pb2.AddJobRequest(job=common_pb2.JobInfo(driver=driver)))
        await scene.add_node({"CPU": 1})
        for number in range(1, 11):
            await register(gcs, group(number, cpus=(1,)))
        await until(gcs, CREATED, number=1)
        late = group(11, cpus=(1,))
        late.job_id = job.job_id
        late.placement_group_id = late.placement_group_id[: -JobID.SIZE] + late.job_id
        await register(gcs, late)
        by_id = gcs_pb2.GetPlacementGroupRequest(placement_group_id=late.placement_group_id)
        await asyncio.sleep(SOON_S)
        assert not (await gcs.GetPlacementGroup(by_id)).created_time_s
        await remove(gcs, number=1)
        await asyncio.sleep(SOON_S)
        assert (await gcs.GetPlacementGroup(by_id)).created_time_s

    play(script)


def test_turns_grow_and_so_do_the_pauses_between_them() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await add_busy_node(scene, {"CPU": 1})
        await register(gcs, group(cpus=(1,)))
        begin_s, begins_s, ends_s = asyncio.get_running_loop().time(), [], []
        while len(ends_s) < 3:
            await asyncio.sleep(0.1)
            now_s = asyncio.get_running_loop().time() - begin_s
            begins_s += [now_s] * (len(node.waited) - len(begins_s))
            ends_s += [now_s] * (len(node.given_back) - len(ends_s))
        assert [round(ends - begins) for begins, ends in zip(begins_s, ends_s, strict=True)] == [8, 32, 128]
        assert [round(begins - ends) for begins, ends in zip(begins_s[1:], ends_s, strict=False)] == [8, 32]

    play(script)


def test_a_group_that_is_removed_in_its_turn_leaves_nothing_and_the_next_has_its_own() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        nodes = [await add_busy_node(scene, {"CPU": 2}) for _ in range(2)]
        for number in (1, 2):
            await register(gcs, group(number, cpus=(2, 2), strategy=Info.STRICT_SPREAD))
        nodes[0].gives_way.set()
        await until_it_waits(*nodes)
        await remove(gcs)
        await until(gcs, REMOVED)
        await asyncio.sleep(SOON_S)
        assert [node.given_back for node in nodes] == [[group_id(1)]] * 2
        assert [node.waited[1:] for node in nodes] == [[group_id(2)]] * 2

    play(script)


def test_what_is_free_elsewhere_is_taken_at_once() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        busy = await add_busy_node(scene, {"CPU": 2})
        await register(gcs, group(cpus=(1, 1), strategy=Info.STRICT_PACK))
        await until_it_waits(busy)
        new = await scene.add_node({"CPU": 2})
        async with asyncio.timeout(SOON_S):
            assert places(await until(gcs, CREATED)) == [new.node_id] * 2
        assert busy.given_back == [group_id()]

    play(script)


def test_what_looks_free_elsewhere_and_is_kept_there_does_not_end_a_turn() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        busy = await add_busy_node(scene, {"CPU": 2})
        await register(gcs, group(cpus=(1, 1), strategy=Info.STRICT_PACK))
        await until_it_waits(busy)
        other = BusyNode(await scene.add_node({"CPU": 2}))
        await asyncio.sleep(TURN_FIRST_S - SOON_S)
        assert other.node.prepares and not other.waited
        assert busy.waited == [group_id()] and not busy.given_back
        busy.gives_way.set()
        assert places(await until(gcs, CREATED)) == [busy.node_id] * 2

    play(script)


@pytest.mark.parametrize("dies", [True, False], ids=["it dies", "it refuses"])
def test_where_a_node_dies_or_refuses_in_a_turn_another_one_is_asked(dies: bool) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        first, second = [await add_busy_node(scene, {"CPU": 2}) for _ in range(2)]
        await register(gcs, group(cpus=(1, 1), strategy=Info.STRICT_PACK))
        while not (first.waited or second.waited):
            await asyncio.sleep(0.01)
        asked, other = (first, second) if first.waited else (second, first)
        if dies:
            await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=asked.node_id))
        else:
            asked.refusal = "it is drained"
            asked.gives_way.set()
        async with asyncio.timeout(SOON_S):
            await until_it_waits(other)
        other.gives_way.set()
        assert places(await until(gcs, CREATED)) == [other.node_id] * 2

    play(script)


def test_lost_bundles_have_their_turn_and_the_others_stay() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        first, second = [await scene.add_node({"CPU": 1}) for _ in range(2)]
        await register(gcs, group(strategy=Info.STRICT_SPREAD))
        await until(gcs, CREATED)
        third = await add_busy_node(scene, {"CPU": 1})
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=first.node_id))
        await until(gcs, RESCHEDULING)
        await until_it_waits(third)
        # The rest is lost as well, while the first waits.
        fourth = await add_busy_node(scene, {"CPU": 1})
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=second.node_id))
        third.gives_way.set()
        await until_it_waits(third, fourth)
        fourth.gives_way.set()
        assert set(places(await until(gcs, CREATED))) == {third.node_id, fourth.node_id}

    play(script)


def test_nobody_is_asked_to_give_way_for_what_groups_and_actors_hold() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 4})
        await register(gcs, group(1, cpus=(1,)))
        await until(gcs, CREATED, number=1)
        request = registration(1, {"CPU": 1})
        request.creation_spec.resources.CopyFrom(ResourceSet.from_units({"CPU": 1}).to_proto())
        await gcs.RegisterActor(request)
        await until_state(gcs, common_pb2.ALIVE)
        await node.process.spawn(node.report(1, {"CPU": 0}))
        busy = BusyNode(node)
        await register(gcs, group(2, cpus=(3,)))
        await asyncio.sleep(10 * SOON_S)
        assert not busy.waited
        await remove(gcs, number=1)
        await until_it_waits(busy, number=2)

    play(script)


def test_the_next_head_gives_the_turn_anew() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        ready, late = [await add_busy_node(scene, {"CPU": 1}) for _ in range(2)]
        await register(gcs, group(strategy=Info.STRICT_SPREAD))
        ready.gives_way.set()
        await until_it_waits(ready, late)
        await asyncio.sleep(0.1)
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        for busy in (ready, late):
            told = gcs_pb2.RegisterNodeRequest()
            if held := busy.node.bundles.get(group_id()):
                told.bundles.add(group=group(strategy=Info.STRICT_SPREAD), indices=sorted(held))
            await busy.node.process.spawn(busy.node.join(told=told))
            await busy.node.process.spawn(busy.node.report(2, {"CPU": 0}))
        # What was held for the head before is not this one's.
        assert [each.placement_group_id for each in ready.node.unwanted_bundles] == [group_id()]
        late.gives_way.set()
        info = await until(gcs, CREATED)
        assert set(places(info)) == {ready.node_id, late.node_id}
        assert late.waited == [group_id()] * 2

    play(script)


def test_a_node_that_does_not_answer_keeps_no_other_group_from_what_is_free() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        busy = await add_busy_node(scene, {"CPU": 8})
        busy.node.on_prepare = never
        await register(gcs, group(1, cpus=(8,)))
        await until_it_waits(busy)
        await scene.add_node({"CPU": 2})
        async with asyncio.timeout(SOON_S):
            await register(gcs, group(2))
            await until(gcs, CREATED, number=2)
        assert busy.waited == [group_id(1)]

    play(script)
