"""Actors from registration to creation and re-creation, through a real GCS in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2, raylet_pb2
from tests.gcs.scene import (
    GcsScene,
    actor_id,
    create_actor,
    error_reply,
    never,
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


def test_an_actor_is_created_on_the_worker_that_a_raylet_grants() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        reply = await gcs.RegisterActor(registration(name="one"))
        assert (reply.created, reply.actor.state) == (True, PENDING)
        info = await until_state(gcs, ALIVE)
        [worker] = node.workers.values()
        assert (info.address, info.pid, info.repr_name) == (worker.address, worker.process.pid, "Counter()")
        [lease], [push] = node.leases, scene.pushed
        assert (lease.for_actor, lease.actor_id, lease.resources.amounts) == (True, actor_id(), {})
        assert lease.placement_resources.amounts == {"CPU": 10_000}
        assert (push.lease_id, push.spec.flat_args) == (lease.lease_id, b"the arguments")
        # Others see what the actor is, not what it was created with.
        assert (info.creation_spec.flat_args, info.serialized_handle) == (b"", b"the handle")
        assert (await gcs.GetNamedActor(gcs_pb2.GetNamedActorRequest(name="one", namespace="space"))) == info

    play(script)


@pytest.mark.parametrize("max_restarts", [0, 2, -1])
def test_a_raylet_is_told_whose_an_actor_is_and_whether_it_may_be_restarted(max_restarts: int) -> None:
    """Where memory runs short, it chooses by that whom it kills."""

    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        wanted = registration(max_restarts=max_restarts)
        await gcs.RegisterActor(wanted)
        await until_state(gcs, ALIVE)
        [lease] = node.leases
        assert lease.is_retriable is (max_restarts != 0)
        assert lease.owner_id == wanted.creation_spec.caller.worker_id != b""

    play(script)


def test_for_what_holds_cpus_the_owners_node_is_asked_first_and_its_spillback_followed() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        nodes = [await scene.add_node({"CPU": 4}) for _ in range(3)]
        owner, other = nodes[2], nodes[0]

        async def spill(request: raylet_pb2.RequestWorkerLeaseRequest) -> raylet_pb2.RequestWorkerLeaseReply:
            return raylet_pb2.RequestWorkerLeaseReply(
                spillback=raylet_pb2.Spillback(
                    node_id=other.node_id, host=other.info.host, port=other.info.node_manager_port
                )
            )

        owner.grant = spill
        wanted = registration(owner_node_id=owner.node_id)
        wanted.creation_spec.resources.CopyFrom(ResourceSet.from_units({"CPU": 1}).to_proto())
        await gcs.RegisterActor(wanted)
        info = await until_state(gcs, ALIVE)
        assert info.address.node_id == other.node_id
        assert (owner.leases[0].grant_or_reject, other.leases[0].grant_or_reject) == (False, True)

    play(script)


def test_a_rejection_is_tried_again_until_it_is_granted() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})

        async def reject_twice(
            request: raylet_pb2.RequestWorkerLeaseRequest,
        ) -> raylet_pb2.RequestWorkerLeaseReply:
            if len(node.leases) > 2:
                return await node.grant_new_worker(request)
            return raylet_pb2.RequestWorkerLeaseReply(
                rejection=raylet_pb2.Rejection(kind=raylet_pb2.Rejection.NOT_HERE, message="no room")
            )

        node.grant = reject_twice
        await gcs.RegisterActor(registration())
        assert (await until_state(gcs, ALIVE)).num_restarts == 0
        assert len(node.leases) == 3

    play(script)


def test_a_runtime_environment_that_fails_is_the_end() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})

        async def fail(request: raylet_pb2.RequestWorkerLeaseRequest) -> raylet_pb2.RequestWorkerLeaseReply:
            rejection = raylet_pb2.Rejection(
                kind=raylet_pb2.Rejection.RUNTIME_ENV_FAILED, message="no such wheel"
            )
            return raylet_pb2.RequestWorkerLeaseReply(rejection=rejection)

        node.grant = fail
        await gcs.RegisterActor(registration(max_restarts=-1))
        info = await until_state(gcs, DEAD)
        assert info.death_cause.kind == common_pb2.DeathCause.CREATION_FAILED
        assert "no such wheel" in info.death_cause.message

    play(script)


@pytest.mark.parametrize("ends_by_itself", [True, False])
def test_a_constructor_that_raises_leaves_its_error_in_the_row_and_no_worker(ends_by_itself: bool) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})

        async def fail(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            reply = error_reply(request)
            reply.worker_exiting = ends_by_itself
            return reply

        scene.push = fail
        await gcs.RegisterActor(registration(max_restarts=-1))
        info = await until_state(gcs, DEAD)
        assert info.death_cause.kind == common_pb2.DeathCause.CREATION_FAILED
        assert info.death_cause.error.data == b"a pickled error"
        await asyncio.sleep(1)
        assert [request.dispose for request in node.returned] == ([] if ends_by_itself else [True])
        assert not node.killed

    play(script)


def test_a_task_given_back_unstarted_is_pushed_to_another_worker_for_free() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})

        async def give_back_once(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            if len(scene.pushed) > 1:
                return await create_actor(request)
            return core_worker_pb2.PushTaskReply(status=core_worker_pb2.PushTaskReply.NOT_STARTED)

        scene.push = give_back_once
        await gcs.RegisterActor(registration())
        assert (await until_state(gcs, ALIVE)).num_restarts == 0
        assert len(node.workers) == 2 and len(node.returned) == 1

    play(script)


def test_a_worker_that_dies_in_the_constructor_costs_a_restart() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})

        async def die_first(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            if len(scene.pushed) == 1:
                await node.crash(node.workers[request.intended_worker_id])
            return await create_actor(request)

        scene.push = die_first
        await gcs.RegisterActor(registration(max_restarts=1))
        info = await until_state(gcs, ALIVE)
        assert info.num_restarts == 1
        assert [push.spec.attempt for push in scene.pushed] == [0, 1]

    play(script)


def test_a_constructor_that_always_kills_its_worker_is_backed_off_and_given_up() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})

        async def die(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            await node.crash(node.workers[request.intended_worker_id])
            raise AssertionError("a dead process does not go on")

        scene.push = die
        began_s = scene.world.clock.time_s()
        await gcs.RegisterActor(registration(max_restarts=4))
        info = await until_state(gcs, DEAD)
        assert (info.num_restarts, info.death_cause.signal) == (4, 11)
        # 0.1 + 0.2 + 0.4 s of pauses: not a hot loop.
        assert 0.7 <= scene.world.clock.time_s() - began_s < 2

    play(script)


@pytest.mark.parametrize("is_created", [True, False])
def test_an_actor_killed_for_its_nodes_memory_pauses_before_it_starts_again(is_created: bool) -> None:
    """Else the raylet, which kills the newest, finds nobody but it, until its restarts are gone."""
    cause = common_pb2.DeathCause(
        kind=common_pb2.DeathCause.OUT_OF_MEMORY, oom_retries=common_pb2.OomRetries(pause_s=3.0)
    )

    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        if not is_created:
            scene.push = never
        await gcs.RegisterActor(registration(max_restarts=1))
        while not scene.pushed:
            await asyncio.sleep(0.01)
        if is_created:
            await until_state(gcs, ALIVE)
        scene.push = create_actor
        killed_s = scene.world.clock.time_s()
        await node.crash(node.workers[scene.pushed[0].intended_worker_id], cause)
        await until_state(gcs, ALIVE, num_restarts=1)
        assert scene.world.clock.time_s() - killed_s >= 3.0

    play(script)


def test_a_worker_whose_death_nobody_reports_is_noticed_by_its_connection() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})

        async def die(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            node.workers[request.intended_worker_id].process.kill("unseen")
            raise AssertionError("a dead process does not go on")

        scene.push = die
        await gcs.RegisterActor(registration())
        info = await until_state(gcs, DEAD)
        assert info.death_cause.kind == common_pb2.DeathCause.WORKER_DIED
        assert "while it created the actor" in info.death_cause.message

    play(script)


def test_another_incarnation_waits_until_the_raylet_has_taken_back_a_worker_that_cannot_be_reached() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4}, "far")
        network = scene.world.network

        async def hang_first(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            if len(scene.pushed) == 1:
                await asyncio.sleep(1000)
            return await create_actor(request)

        scene.push = hang_first
        await gcs.RegisterActor(registration(max_restarts=1))
        while not scene.pushed:
            await asyncio.sleep(0.01)
        network.partition("head", "far")
        for connection in network.connections_between_hosts():
            network.break_connection(connection)
        await asyncio.sleep(3)
        [row] = (await gcs.GetAllActors(common_pb2.Empty())).actors
        assert (row.state, row.num_restarts) == (PENDING, 0)
        network.heal()
        await node.process.spawn(node.join())
        info = await until_state(gcs, ALIVE, num_restarts=1)
        [first, second] = node.leases
        assert [returned.lease_id for returned in node.returned] == [first.lease_id]
        assert info.address.worker_id == scene.pushed[1].intended_worker_id

    play(script)


def test_a_living_actor_is_restarted_elsewhere_when_its_node_dies() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        first = await scene.add_node({"CPU": 4}, "first")
        await gcs.RegisterActor(registration(max_restarts=1))
        await until_state(gcs, ALIVE)
        second = await scene.add_node({"CPU": 4}, "second")
        scene.world.network.crash_host("first")
        info = await until_state(gcs, ALIVE, num_restarts=1)
        assert info.address.node_id == second.node_id
        assert first.node_id != second.node_id

    play(script)


def test_an_actor_that_is_being_created_when_its_machine_falls_silent_goes_elsewhere() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        await scene.add_node({"CPU": 4}, "first")

        async def crash_first_host(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            if len(scene.pushed) == 1:
                scene.world.loop.call_soon(scene.world.network.crash_host, "first")
                await asyncio.sleep(1000)
            return await create_actor(request)

        scene.push = crash_first_host
        await gcs.RegisterActor(registration(max_restarts=1))
        while not scene.pushed:
            await asyncio.sleep(0.01)
        second = await scene.add_node({"CPU": 4}, "second")
        info = await until_state(gcs, ALIVE)
        assert (info.address.node_id, info.num_restarts) == (second.node_id, 1)

    play(script)


# ---- actors that cannot be placed


def test_an_actor_that_fits_nowhere_says_why_and_its_driver_is_told_once() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        errors: list[common_pb2.ErrorInfo] = []

        async def listen() -> None:
            wanted = gcs_pb2.ChannelFilter(channel=gcs_pb2.ERROR, keys=[registration().creation_spec.job_id])
            async for message in gcs.Subscribe(gcs_pb2.SubscribeRequest(channels=[wanted])):
                errors.append(common_pb2.ErrorInfo.FromString(message.payload))

        listening = asyncio.create_task(listen())
        await gcs.RegisterActor(registration(1, {"A": 2}))
        await gcs.RegisterActor(registration(2, {"A": 2}))
        info = await gcs.WatchActor(gcs_pb2.WatchActorRequest(actor_id=actor_id(1), after_version=1))
        assert info.state == PENDING
        assert info.pending_reason == (
            f"Actor Counter needs {{A: 2}}, which no node has; the cluster has node {node.node_id.hex()[:8]} "
            f"({node.info.host}) {{A: 0, CPU: 4}}."
        )
        await asyncio.sleep(60)
        [error] = errors
        assert (error.type, error.message, error.job_id) == ("scheduling", info.pending_reason, info.job_id)
        listening.cancel()
        # When a node that has it joins, both are placed.
        await scene.add_node({"A": 2})
        for number in (1, 2):
            assert (await until_state(gcs, ALIVE, number)).pending_reason == ""

    play(script)


def test_the_driver_of_an_actor_that_waits_is_told_what_living_actors_hold() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4, "memory": 8 << 30, "node:10.0.0.1": 1})
        told: list[str] = []

        async def listen() -> None:
            wanted = gcs_pb2.ChannelFilter(channel=gcs_pb2.ERROR, keys=[registration().creation_spec.job_id])
            async for message in gcs.Subscribe(gcs_pb2.SubscribeRequest(channels=[wanted])):
                told.append(common_pb2.ErrorInfo.FromString(message.payload).message)

        listening = asyncio.create_task(listen())
        holder = registration(1)
        holder.creation_spec.resources.CopyFrom(ResourceSet.from_units({"CPU": 3}).to_proto())
        await gcs.RegisterActor(holder)
        await until_state(gcs, ALIVE)
        await node.process.spawn(node.report(version=1, free={"CPU": 1}))
        node.grant = never
        await gcs.RegisterActor(registration(2, {"CPU": 2}))
        await asyncio.sleep(60)
        listening.cancel()
        assert told == [
            "Actor Counter needs {CPU: 2}, which is in use; the cluster has "
            f"node {node.node_id.hex()[:8]} ({node.info.host}) "
            "{CPU: 4} with {CPU: 1} free. Living actors hold {CPU: 3} until they end."
        ]

    play(script)


def test_an_actor_that_waits_for_what_is_in_use_says_so() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await node.process.spawn(node.report(version=1, free={"CPU": 1}))
        free = asyncio.Event()

        async def queue(request: raylet_pb2.RequestWorkerLeaseRequest) -> raylet_pb2.RequestWorkerLeaseReply:
            await free.wait()
            return await node.grant_new_worker(request)

        node.grant = queue
        await gcs.RegisterActor(registration(needs={"CPU": 3}))
        info = await gcs.WatchActor(gcs_pb2.WatchActorRequest(actor_id=actor_id(), after_version=1))
        assert (
            "needs {CPU: 3}, which is in use" in info.pending_reason
            and "{CPU: 1} free" in info.pending_reason
        )
        free.set()
        assert (await until_state(gcs, ALIVE)).pending_reason == ""

    play(script)


def test_killing_an_actor_that_waits_gives_its_lease_back_even_when_it_was_just_granted() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})

        async def grant_late(
            request: raylet_pb2.RequestWorkerLeaseRequest,
        ) -> raylet_pb2.RequestWorkerLeaseReply:
            await asyncio.sleep(1)
            return await node.grant_new_worker(request)

        node.grant = grant_late
        await gcs.RegisterActor(registration())
        while not node.leases:
            await asyncio.sleep(0.01)
        await gcs.KillActor(KILL)
        info = await until_state(gcs, DEAD)
        assert info.death_cause.kind == common_pb2.DeathCause.KILLED
        await asyncio.sleep(5)
        [lease] = node.leases
        assert node.cancelled == [lease.lease_id]
        assert [(returned.lease_id, returned.dispose) for returned in node.returned] == [
            (lease.lease_id, True)
        ]
        assert not scene.pushed

    play(script)
