"""A head on an empty store ends before it has heard all, and another one comes."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.protobuf import common_pb2, gcs_pb2
from tests.gcs.lost_head import (
    BEFORE,
    EMPTY,
    GRACE_S,
    Lost,
    job_row,
    owner_row,
    tell,
    told_by_node,
    worker_row,
)
from tests.gcs.scene import (
    OWNER,
    GcsScene,
    play,
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
