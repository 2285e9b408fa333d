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
