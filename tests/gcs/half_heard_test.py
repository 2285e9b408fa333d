"""A head on an empty store ends before it has heard all, and another one comes."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.surface import RpcError
from tests.gcs.lost_head import (
    BEFORE,
    EMPTY,
    GRACE_S,
    Lost,
    actor_row,
    job_row,
    owner_row,
    tell,
    told_by_node,
    worker_row,
)
from tests.gcs.scene import (
    OWNER,
    FakeNode,
    GcsScene,
    play,
    registration,
    until_state,
)


@pytest.mark.parametrize("knows_the_second", [False, True])
def test_what_a_head_had_half_heard_when_it_ended_is_told_again(knows_the_second: bool) -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        second = (await it.gcs.GetClusterInfo(EMPTY)).cluster_id
        await it.node_joins(owner_row(it.node), worker_row(it.worker))
        await tell(it.gcs, OWNER.binary(), job=job_row(it.node))
        await it.gcs.KvPut(gcs_pb2.KvPutRequest(namespace=b"mine", key=b"key", value=b"value"))
        scene.kill_gcs()
        it.gcs = await scene.start_gcs()
        assert (await it.gcs.GetClusterInfo(EMPTY)).cluster_id not in (second, BEFORE)
        await it.all_tell(second if knows_the_second else BEFORE)
        info = await until_state(it.gcs, common_pb2.ALIVE)
        assert info.address == it.info.address and info.num_restarts == 0
        assert (await it.gcs.KvGet(gcs_pb2.KvGetRequest(namespace=b"mine", key=b"key"))).value == b"value"

    play(script)


def test_a_head_that_ended_before_anybody_told_it_anything_leaves_an_empty_store() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        scene.kill_gcs()
        it.gcs = await scene.start_gcs()
        await it.all_tell()
        assert (await until_state(it.gcs, common_pb2.ALIVE)).address == it.info.address

    play(script)


def test_a_late_node_is_adopted_by_the_head_after_the_one_that_heard_the_others() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        other = await scene.add_node({"CPU": 1}, told=told_by_node())
        await asyncio.sleep(GRACE_S + 1)
        scene.kill_gcs()
        it.gcs = await scene.start_gcs()
        await other.process.spawn(other.join())
        await it.all_tell()
        assert (await until_state(it.gcs, common_pb2.ALIVE)).address == it.info.address

    play(script)


async def late_node_is_half_heard(it: Lost) -> None:
    """Others were heard. Then the node comes, its driver tells, and the head ends before its worker does."""
    it.other = await it.scene.add_node({"CPU": 4}, told=told_by_node())
    await asyncio.sleep(GRACE_S + 1)
    await it.node_joins(owner_row(it.node), worker_row(it.worker))
    pending = actor_row(it.told, common_pb2.PENDING_CREATION)
    await tell(it.gcs, OWNER.binary(), pending, job=job_row(it.node))
    it.scene.kill_gcs()
    it.gcs = await it.scene.start_gcs()
    await it.other.process.spawn(it.other.join())


def test_a_silent_node_that_nobody_named_has_its_time_under_the_head_after_that_as_well() -> None:
    """The actor's owner has heard that it is lost there, and nobody else knows of that node."""

    async def script(scene: GcsScene) -> None:
        scene.head_lease_s = 60.0
        it = Lost(scene)
        await it.play(max_restarts=1)
        scene.world.network.crash_host(it.node.process.host_name)
        other = FakeNode(scene, scene.world.network.add_host("other").name, {"CPU": 1})
        await other.process.spawn(other.start(told_by_node(owner_row(other))))
        told = registration(1, owner_node_id=other.node_id, max_restarts=1)
        lost = actor_row(told, common_pb2.RESTARTING, num_restarts=1)
        lost.lost_on_node_id = it.node.node_id
        await tell(it.gcs, OWNER.binary(), lost, job=job_row(other))
        await asyncio.sleep(GRACE_S + 1)
        scene.kill_gcs()
        began_s = scene.world.clock.time_s()
        it.gcs = await scene.start_gcs()
        await other.process.spawn(other.join())
        await until_state(it.gcs, common_pb2.ALIVE, num_restarts=1)
        assert 65 <= scene.world.clock.time_s() - began_s < 70

    play(script)


def test_what_a_late_node_had_half_told_when_the_head_ended_is_heard_by_the_next() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        await late_node_is_half_heard(it)
        cluster_id = (await it.gcs.GetClusterInfo(EMPTY)).cluster_id
        await it.node_joins(known_cluster_ids=(cluster_id, BEFORE))
        await asyncio.sleep(1)
        await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))
        info = await until_state(it.gcs, common_pb2.ALIVE)
        assert info.address == it.info.address and info.num_restarts == 0
        assert not it.other.leases and len(it.node.leases) == 1

    play(script)


def test_a_late_nodes_actor_whose_worker_tells_no_head_is_placed_after_the_grace() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        await late_node_is_half_heard(it)
        begun_s = asyncio.get_running_loop().time()
        cluster_id = (await it.gcs.GetClusterInfo(EMPTY)).cluster_id
        await it.node_joins(known_cluster_ids=(cluster_id, BEFORE))
        info = await until_state(it.gcs, common_pb2.ALIVE)
        assert info.address != it.info.address
        assert asyncio.get_running_loop().time() >= begun_s + GRACE_S - 1

    play(script)


def test_what_a_process_tells_after_the_grace_is_heard_by_the_head_after_that_as_well() -> None:
    """It was stopped for that long, and has told nobody of the second actor."""

    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        await it.node_joins(owner_row(it.node), worker_row(it.worker))
        await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))
        await asyncio.sleep(GRACE_S + 1)
        cluster_id = (await it.gcs.GetClusterInfo(EMPTY)).cluster_id
        scene.kill_gcs()
        it.gcs = await scene.start_gcs()
        await it.node_joins(known_cluster_ids=(cluster_id, BEFORE))
        second = registration(2, owner_node_id=it.node.node_id)
        waits = actor_row(second, common_pb2.PENDING_CREATION)
        await tell(it.gcs, OWNER.binary(), it.row(), waits, job=job_row(it.node))
        await until_state(it.gcs, common_pb2.ALIVE, 2)
        assert (await until_state(it.gcs, common_pb2.ALIVE)).address == it.info.address

    play(script)


def test_a_late_node_that_was_heard_is_not_waited_for_by_the_next_head() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        await scene.add_node({"CPU": 1}, told=told_by_node())
        await asyncio.sleep(GRACE_S + 1)
        await it.all_tell()
        await until_state(it.gcs, common_pb2.ALIVE)
        await asyncio.sleep(1)
        scene.kill_gcs()
        it.gcs = await scene.start_gcs()
        begun_s = asyncio.get_running_loop().time()
        with pytest.raises(RpcError, match="no actor named 'none'"):
            await it.gcs.GetNamedActor(gcs_pb2.GetNamedActorRequest(name="none", namespace="space"))
        assert asyncio.get_running_loop().time() < begun_s + 1

    play(script)


BETWEEN = b"a cluster between"


@pytest.mark.parametrize("comes_first", [(BETWEEN, BEFORE), (BEFORE,)])
def test_nodes_that_knew_different_heads_before_are_adopted_where_one_of_them_knew_both(
    comes_first: tuple[bytes, ...],
) -> None:
    """Two heads lost their stores, and only some nodes had found the second."""

    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        told = told_by_node(others=(it.node,), known_cluster_ids=comes_first)
        await scene.add_node({"CPU": 1}, told=told)
        await it.all_tell(*((BEFORE,) if len(comes_first) == 2 else (BETWEEN, BEFORE)))
        info = await until_state(it.gcs, common_pb2.ALIVE)
        assert info.address == it.info.address and info.num_restarts == 0

    play(script)


def test_a_node_of_a_head_between_is_not_adopted_once_a_job_may_have_begun() -> None:
    """Its jobs and the new ones could have the same numbers."""

    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        await scene.add_node({"CPU": 1}, told=told_by_node())
        await asyncio.sleep(GRACE_S + 1)
        unwanted = await it.node_joins(worker_row(it.worker), known_cluster_ids=(BETWEEN, BEFORE))
        assert unwanted == [it.node.leases[0].lease_id]

    play(script)
