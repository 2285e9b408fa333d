"""When the driver of a placement group without a place is told, and of what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from tests.gcs.placement_group.group_scene import (
    CREATED,
    Info,
    begin,
    group,
    group_id,
    register,
    until,
)
from tests.gcs.scene import JOB, GcsScene, play

Told = list[tuple[float, str]]


def play_told(script: Callable[[GcsScene, GcsServiceAsyncStub, Told], Awaitable[None]]) -> None:
    """script(scene, gcs, told): told gets what the driver is told, and after how many seconds."""

    async def run(scene: GcsScene) -> None:
        gcs = await begin(scene)
        told: Told = []
        loop = asyncio.get_running_loop()
        begin_s = loop.time()

        async def listen() -> None:
            wanted = gcs_pb2.ChannelFilter(channel=gcs_pb2.ERROR, keys=[JOB.binary()])
            async for message in gcs.Subscribe(gcs_pb2.SubscribeRequest(channels=[wanted])):
                text = common_pb2.ErrorInfo.FromString(message.payload).message
                told.append((loop.time() - begin_s, text))

        listening = asyncio.create_task(listen())
        await script(scene, gcs, told)
        listening.cancel()

    play(run)


def test_of_groups_that_no_node_could_hold_the_driver_is_told_soon_and_once_for_those_alike() -> None:
    async def script(scene: GcsScene, gcs: GcsServiceAsyncStub, told: Told) -> None:
        node = await scene.add_node({"CPU": 4})
        for number in (1, 2):
            await register(gcs, group(number, (9,)))
        await register(gcs, group(3, (1, 1), strategy=Info.STRICT_SPREAD, name="wide"))
        await asyncio.sleep(1)
        assert not told
        await asyncio.sleep(120)
        assert [round(at_s) for at_s, _ in told] == [2, 2]
        assert told[0][1] == (
            f"Placement group {group_id(1).hex()[:8]} waits: it needs {{CPU: 9}} by PACK, which the only node"
            f" of the cluster could not hold if nothing else ran there (node {node.node_id.hex()[:8]} has"
            " {CPU: 4}). To unblock it: start nodes that have it, make its bundles smaller, or remove it."
        )
        assert told[1][1].startswith(f"Placement group {group_id(3).hex()[:8]} (wide) waits: it needs ")
        assert told[1][1].endswith(
            "start more nodes with {CPU: 1}, give it fewer bundles or another strategy, or remove it."
        )

    play_told(script)


def test_of_a_group_that_other_groups_keep_out_the_driver_is_told_later() -> None:
    async def script(scene: GcsScene, gcs: GcsServiceAsyncStub, told: Told) -> None:
        node = await scene.add_node({"CPU": 4, "A": 1})
        await register(gcs, group(1, (3,)))
        await until(gcs, CREATED)
        await node.process.spawn(node.report(version=1, free={"CPU": 1, "A": 1}))
        await register(gcs, group(2, (2,)))
        await asyncio.sleep(120)
        ((at_s, text),) = told
        assert round(at_s) == 30
        assert text == (
            f"Placement group {group_id(2).hex()[:8]} waits: it needs {{CPU: 2}} by PACK, which is in use."
            " Living actors and placement groups hold {CPU: 3} of {CPU: 4} until they end or are removed."
            " To unblock it: end or remove some of them, add nodes, or remove it."
        )

    play_told(script)


def test_of_a_group_to_which_tasks_give_way_nobody_is_told() -> None:
    async def script(scene: GcsScene, gcs: GcsServiceAsyncStub, told: Told) -> None:
        node = await scene.add_node({"CPU": 4})
        await node.process.spawn(node.report(version=1, free={"CPU": 1}))
        node.on_prepare = scene_waits
        await register(gcs, group(1, (2,)))
        await asyncio.sleep(120)
        assert not told

    play_told(script)


async def scene_waits(request: object) -> None:
    """A node whose tasks have not ended yet."""
    await asyncio.get_running_loop().create_future()
