"""The ends of actors, their names, and callers' mistakes, through a real GCS in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.scene import (
    GcsScene,
    actor_id,
    play,
    registration,
    until_state,
)

PENDING, ALIVE, RESTARTING, DEAD = (
    common_pb2.PENDING_CREATION,
    common_pb2.ALIVE,
    common_pb2.RESTARTING,
    common_pb2.DEAD,
)
KILL = gcs_pb2.KillActorRequest(actor_id=actor_id(), force=True, no_restart=True)


# ---- ends


def test_kill_ends_the_worker_through_its_raylet() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.RegisterActor(registration(max_restarts=-1, name="one"))
        info = await until_state(gcs, ALIVE)
        await gcs.KillActor(KILL)
        dead = await until_state(gcs, DEAD)
        assert dead.death_cause.kind == common_pb2.DeathCause.KILLED and not dead.HasField("address")
        await asyncio.sleep(1)
        assert [kill.worker_id for kill in node.killed] == [info.address.worker_id]
        assert not node.workers
        await gcs.RegisterActor(registration(2, name="one"))

    play(script)


def test_kill_with_a_restart_left_makes_a_new_incarnation() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        await scene.add_node({"CPU": 4})
        await gcs.RegisterActor(registration(max_restarts=1))
        first = await until_state(gcs, ALIVE)
        await gcs.KillActor(gcs_pb2.KillActorRequest(actor_id=actor_id(), force=True, no_restart=False))
        second = await until_state(gcs, ALIVE, num_restarts=1)
        assert first.address.worker_id != second.address.worker_id

    play(script)


def test_a_raylet_that_cannot_be_reached_is_asked_to_kill_until_it_can() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4}, "far")
        await gcs.RegisterActor(registration())
        await until_state(gcs, ALIVE)
        scene.world.network.partition("head", "far")
        await gcs.KillActor(KILL)
        await asyncio.sleep(8)
        assert not node.killed
        scene.world.network.heal()
        await asyncio.sleep(30)
        assert node.killed and not node.workers

    play(script, health_check_failures_max=100)


def test_an_actor_without_handles_is_asked_to_finish() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.RegisterActor(registration(max_restarts=-1))
        info = await until_state(gcs, ALIVE)
        await gcs.ActorOutOfScope(gcs_pb2.ActorOutOfScopeRequest(actor_id=actor_id()))
        await asyncio.sleep(5)
        [(worker_id, request)] = scene.exits
        assert (worker_id, request.force) == (info.address.worker_id, False)
        assert request.cause.kind == common_pb2.DeathCause.OUT_OF_SCOPE
        # It lives until it has finished.
        assert (await gcs.GetAllActors(common_pb2.Empty())).actors[0].state == ALIVE
        await node.process.spawn(node.crash(node.workers[worker_id]))
        assert (await until_state(gcs, DEAD)).death_cause.kind == common_pb2.DeathCause.OUT_OF_SCOPE
        assert not node.killed

    play(script)


def test_the_name_of_an_actor_without_handles_is_free_before_it_has_finished() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        by_name = gcs_pb2.GetNamedActorRequest(name="one", namespace="space")
        await gcs.RegisterActor(registration(name="one"))
        first = await until_state(gcs, ALIVE)
        assert (await gcs.GetNamedActor(by_name)).actor_id == actor_id()
        await gcs.ActorOutOfScope(gcs_pb2.ActorOutOfScopeRequest(actor_id=actor_id()))
        with pytest.raises(RpcError, match="no actor named 'one'"):
            await gcs.GetNamedActor(by_name)
        assert not (await gcs.ListNamedActors(gcs_pb2.ListNamedActorsRequest(all_namespaces=True))).actors
        assert (await gcs.RegisterActor(registration(2, name="one", get_if_exists=True))).created
        # The first one's end takes nothing from the second.
        await node.process.spawn(node.crash(node.workers[first.address.worker_id]))
        await until_state(gcs, DEAD)
        assert (await gcs.GetNamedActor(by_name)).actor_id == actor_id(2)

    play(script)


def test_a_worker_that_cannot_be_asked_to_finish_is_killed() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.RegisterActor(registration())
        info = await until_state(gcs, ALIVE)
        node.workers[info.address.worker_id].process.kill("unseen")
        await gcs.ActorOutOfScope(gcs_pb2.ActorOutOfScopeRequest(actor_id=actor_id()))
        assert (await until_state(gcs, DEAD)).death_cause.kind == common_pb2.DeathCause.OUT_OF_SCOPE
        assert [kill.worker_id for kill in node.killed] == [info.address.worker_id]

    play(script)


# ---- names and mistakes


def test_of_many_that_race_for_a_name_one_creates_and_the_others_get_it() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        await scene.add_node({"CPU": 4})
        clients = [await scene.connect() for _ in range(8)]
        replies = await asyncio.gather(
            *(
                client.RegisterActor(registration(number, name="one", get_if_exists=True))
                for number, client in enumerate(clients, 1)
            )
        )
        assert sorted(reply.created for reply in replies) == [False] * 7 + [True]
        assert len({reply.actor.actor_id for reply in replies}) == 1
        with pytest.raises(RpcError, match="an actor named 'one' exists in namespace 'space'") as refused:
            await gcs.RegisterActor(registration(9, name="one"))
        assert refused.value.code is StatusCode.ALREADY_EXISTS
        names = await gcs.ListNamedActors(gcs_pb2.ListNamedActorsRequest(namespace="space"))
        assert [(named.name, named.namespace) for named in names.actors] == [("one", "space")]
        assert not (await gcs.ListNamedActors(gcs_pb2.ListNamedActorsRequest(namespace="other"))).actors

    play(script)


def test_what_is_not_known_is_not_found() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        calls = [
            gcs.WatchActor(gcs_pb2.WatchActorRequest(actor_id=actor_id())),
            gcs.KillActor(KILL),
            gcs.ActorOutOfScope(gcs_pb2.ActorOutOfScopeRequest(actor_id=actor_id())),
            gcs.GetNamedActor(gcs_pb2.GetNamedActorRequest(name="none", namespace="space")),
            gcs.MarkJobFinished(gcs_pb2.MarkJobFinishedRequest(job_id=b"none")),
        ]
        for call in calls:
            with pytest.raises(RpcError) as refused:
                await call
            assert refused.value.code is StatusCode.NOT_FOUND

    play(script)


def test_a_malformed_id_is_named() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        with pytest.raises(RpcError, match="actor_id takes 16 bytes, got b'short'"):
            await gcs.WatchActor(gcs_pb2.WatchActorRequest(actor_id=b"short"))
        request = registration()
        request.creation_spec.caller.ClearField("worker_id")
        with pytest.raises(RpcError, match="creation_spec: WorkerID takes 28 bytes, got b''"):
            await gcs.RegisterActor(request)
        request.creation_spec.type = common_pb2.NORMAL_TASK
        with pytest.raises(RpcError, match="must be ACTOR_CREATION_TASK, got NORMAL_TASK"):
            await gcs.RegisterActor(request)

    play(script)


def test_watchers_go_with_their_connections() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        await gcs.RegisterActor(registration(needs={"A": 1}))
        watching = asyncio.ensure_future(
            gcs.WatchActor(gcs_pb2.WatchActorRequest(actor_id=actor_id(), after_version=99))
        )
        await asyncio.sleep(1)
        assert scene.server is not None and scene.server.cluster.actor_table.count_watchers() == 1
        assert scene.client_process is not None
        scene.client_process.kill("gone")
        await asyncio.sleep(1)
        assert scene.server.cluster.actor_table.count_watchers() == 0
        watching.cancel()

    play(script)
