"""A node falls silent: its tasks are retried soon, its actors start elsewhere when it has stopped running
them, or when it must have."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.scene import FakeNode, GcsScene, actor_id, play, registration, until_state

EMPTY = common_pb2.Empty()
LEASE_S = 60.0
WAIT_S = 65.0
"""The lease, a twentieth of it, and the margin."""


async def start(scene: GcsScene, near: str = "CPU") -> tuple[GcsServiceAsyncStub, FakeNode]:
    """An actor on a node "far", which has a lease; its host can fall silent. There is another node, with
    some of this resource."""
    scene.head_lease_s = LEASE_S
    gcs = await scene.start_gcs()
    far = await scene.add_node({"CPU": 4}, "far")
    await gcs.RegisterActor(registration(max_restarts=1))
    await until_state(gcs, common_pb2.ALIVE)
    await scene.add_node({near: 4}, "near")
    return gcs, far


async def until_it_lives_under_the_next_head_s(scene: GcsScene) -> float:
    """A head starts, and another node joins it: how long it takes until the actor lives again."""
    started_s = scene.world.clock.time_s()
    gcs = await scene.start_gcs()
    await scene.add_node({"CPU": 4})
    await until_state(gcs, common_pb2.ALIVE, num_restarts=1)
    return scene.world.clock.time_s() - started_s


async def state_of_nodes(gcs: GcsServiceAsyncStub) -> list[int]:
    return [row.state for row in (await gcs.GetAllNodes(EMPTY)).nodes]


async def told_why(gcs: GcsServiceAsyncStub) -> str:
    [row] = (await gcs.GetAllActors(EMPTY)).actors
    return row.pending_reason


def test_an_actor_of_a_silent_node_starts_elsewhere_when_the_node_must_have_ended_it() -> None:
    async def script(scene: GcsScene) -> None:
        gcs, far = await start(scene)
        await asyncio.sleep(20)
        await far.process.spawn(far.is_confirmed())
        confirmed_s = scene.world.clock.time_s()
        await asyncio.sleep(3)
        scene.world.network.crash_host("far")
        lost = await until_state(gcs, common_pb2.RESTARTING)
        assert lost.num_restarts == 1
        assert scene.world.clock.time_s() - confirmed_s < 45
        await asyncio.sleep(1)
        assert "is silent and may run it for up to" in await told_why(gcs)
        assert common_pb2.NODE_DEAD in await state_of_nodes(gcs)
        await until_state(gcs, common_pb2.ALIVE, num_restarts=1)
        assert 0 <= scene.world.clock.time_s() - confirmed_s - WAIT_S < 1

    play(script)


def test_where_the_machine_says_that_nobody_listens_it_starts_at_once() -> None:
    async def script(scene: GcsScene) -> None:
        gcs, far = await start(scene)
        far.process.kill("SIGKILL")
        killed_s = scene.world.clock.time_s()
        await until_state(gcs, common_pb2.ALIVE, num_restarts=1)
        assert scene.world.clock.time_s() - killed_s < 2

    play(script)


def test_where_it_ended_together_with_the_head_its_actors_start_as_soon_under_the_next_one() -> None:
    async def script(scene: GcsScene) -> None:
        _, far = await start(scene)
        scene.kill_gcs()
        far.process.kill("SIGKILL")
        assert await until_it_lives_under_the_next_head_s(scene) < 2

    play(script)


def test_a_node_that_the_head_before_has_seen_end_is_not_waited_for_by_the_next_one() -> None:
    async def script(scene: GcsScene) -> None:
        gcs, far = await start(scene, near="other")
        far.process.kill("SIGKILL")
        await until_state(gcs, common_pb2.RESTARTING)
        await asyncio.sleep(10)
        scene.kill_gcs()
        assert await until_it_lives_under_the_next_head_s(scene) < 2

    play(script)


def test_where_a_silent_machine_comes_back_without_its_raylet_it_starts_at_once() -> None:
    async def script(scene: GcsScene) -> None:
        gcs, _ = await start(scene)
        scene.world.network.crash_host("far")
        crashed_s = scene.world.clock.time_s()
        await until_state(gcs, common_pb2.RESTARTING)
        scene.world.network.add_host("far")
        await until_state(gcs, common_pb2.ALIVE, num_restarts=1)
        assert scene.world.clock.time_s() - crashed_s < LEASE_S - 10

    play(script)


def test_where_a_node_leaves_in_order_its_actors_start_elsewhere_when_its_workers_have_ended() -> None:
    async def script(scene: GcsScene) -> None:
        gcs, far = await start(scene)
        cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.KILLED, message="it leaves")
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=far.node_id, cause=cause))
        await asyncio.sleep(5)
        await until_state(gcs, common_pb2.RESTARTING)
        assert (await gcs.GetAllActors(EMPTY)).actors[0].state == common_pb2.RESTARTING
        far.process.kill("its workers have ended, and so does it")
        left_s = scene.world.clock.time_s()
        await until_state(gcs, common_pb2.ALIVE, num_restarts=1)
        assert scene.world.clock.time_s() - left_s < 2

    play(script)


def test_a_head_that_takes_over_waits_as_if_the_one_before_had_confirmed_everybody_last() -> None:
    async def script(scene: GcsScene) -> None:
        gcs, _ = await start(scene)
        scene.world.network.crash_host("far")
        await until_state(gcs, common_pb2.RESTARTING)
        await asyncio.sleep(10)
        scene.kill_gcs()
        assert 0 <= await until_it_lives_under_the_next_head_s(scene) - WAIT_S < 1

    play(script)


def test_a_head_that_takes_over_while_a_node_is_silent_waits_for_that_too() -> None:
    async def script(scene: GcsScene) -> None:
        gcs, _ = await start(scene)
        scene.world.network.crash_host("far")
        scene.kill_gcs()
        assert await until_it_lives_under_the_next_head_s(scene) >= WAIT_S

    play(script)


def test_a_node_that_is_held_to_be_dead_hears_so_and_an_unknown_one_has_to_register() -> None:
    async def script(scene: GcsScene) -> None:
        gcs, far = await start(scene)
        assert await far.process.spawn(far.is_confirmed())
        cause = common_pb2.DeathCause(message="it was given up")
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=far.node_id, cause=cause))
        with pytest.raises(RpcError, match="it was given up") as raised:
            await far.process.spawn(far.is_confirmed())
        assert raised.value.code is StatusCode.FAILED_PRECONDITION
        reply = await gcs.CheckAlive(gcs_pb2.CheckAliveRequest(node_ids=[b"x" * 28]))
        assert list(reply.raylet_alive) == [False]

    play(script)


def test_an_actor_without_restarts_is_dead_as_soon_as_its_node_is_held_to_be() -> None:
    async def script(scene: GcsScene) -> None:
        gcs, _ = await start(scene)
        await gcs.RegisterActor(registration(2))
        await until_state(gcs, common_pb2.ALIVE, number=2)
        crashed_s = scene.world.clock.time_s()
        for host in ("far", "near"):
            scene.world.network.crash_host(host)
        dead = await until_state(gcs, common_pb2.DEAD, number=2)
        assert "did not answer health checks" in dead.death_cause.message
        assert scene.world.clock.time_s() - crashed_s < 45
        assert dead.actor_id == actor_id(2)

    play(script)
