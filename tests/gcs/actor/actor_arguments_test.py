"""Constructors whose arguments are not there yet, or have no room on the chosen node, through a real GCS in
virtual time."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.placement_group.group_scene import begin, group, group_id, register, remove
from tests.gcs.scene import (
    OWNER,
    FakeNode,
    GcsScene,
    actor_id,
    create_actor,
    play,
    registration,
    until_state,
)

Reply = core_worker_pb2.PushTaskReply


@pytest.mark.parametrize("is_bound", [False, True])
def test_an_actor_whose_argument_has_no_room_is_placed_once_where_it_lies_unless_it_is_bound(
    is_bound: bool,
) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        nodes = [await scene.add_node({"CPU": 4}) for _ in range(3)]
        full, holder = nodes[2], nodes[0]

        async def refuse(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            return await create_actor(request) if request.waits_for_room else Reply(status=Reply.NO_ROOM)

        scene.push = refuse
        wanted = registration(owner_node_id=full.node_id)
        # One that holds nothing would not begin on its owner's node.
        wanted.creation_spec.resources.CopyFrom(ResourceSet.from_units({"CPU": 1}).to_proto())
        wanted.creation_spec.args.add(location_node_ids=[full.node_id], size_bytes=3)
        wanted.creation_spec.args.add(location_node_ids=[holder.node_id], size_bytes=2)
        if is_bound:
            wanted.creation_spec.strategy.node_affinity.node_id = full.node_id
        await gcs.RegisterActor(wanted)
        info = await until_state(gcs, common_pb2.ALIVE)
        chosen: FakeNode = full if is_bound else holder
        assert info.address.node_id == chosen.node_id
        asked = chosen.leases[-1].strategy.node_affinity
        assert (asked.node_id, asked.soft) == (chosen.node_id, not is_bound)
        assert [request.waits_for_room for request in scene.pushed] == [False, True]
        # The worker that did not run the constructor goes back, and is not used again.
        assert [request.dispose for request in full.returned] == [True]

    play(script)


# ---- arguments that are late


async def named(gcs: GcsServiceAsyncStub) -> common_pb2.ActorInfo:
    return await gcs.GetNamedActor(gcs_pb2.GetNamedActorRequest(name="name", namespace="space"))


def failed() -> gcs_pb2.RegisterActorRequest:
    """One of its arguments is an error."""
    request = registration(name="name", awaits_arguments=True)
    request.failure.kind = common_pb2.DeathCause.CREATION_FAILED
    request.failure.error.data = b"a pickled error"
    return request


@pytest.mark.parametrize("head", ["stays", "is killed"])
def test_an_actor_is_placed_when_its_owner_has_told_its_arguments(head: str) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 1})
        reply = await gcs.RegisterActor(registration(name="name", awaits_arguments=True))
        assert reply.created and reply.actor.state == common_pb2.DEPENDENCIES_UNREADY
        assert (await named(gcs)).actor_id == actor_id()
        with pytest.raises(RpcError) as taken:
            await gcs.RegisterActor(registration(2, name="name"))
        assert taken.value.code is StatusCode.ALREADY_EXISTS
        if head == "is killed":
            scene.kill_gcs()
            gcs = await scene.start_gcs()
            await node.process.spawn(node.join())
            assert (await named(gcs)).state == common_pb2.DEPENDENCIES_UNREADY
        await asyncio.sleep(5)
        assert not node.leases
        for _ in range(2):  # its owner may have missed the answer
            assert (await gcs.RegisterActor(registration(name="name"))).created
        await until_state(gcs, common_pb2.ALIVE)
        (pushed,) = scene.pushed
        assert pushed.spec.flat_args == b"the arguments"

    play(script)


@pytest.mark.parametrize("is_known", [True, False])
def test_an_actor_of_which_an_argument_failed_is_dead_of_that_and_leaves_its_name(is_known: bool) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 1})
        if is_known:
            await gcs.RegisterActor(registration(name="name", awaits_arguments=True))
        for _ in range(2):
            assert (await gcs.RegisterActor(failed())).created
        info = await until_state(gcs, common_pb2.DEAD)
        assert info.death_cause == failed().failure
        assert (await gcs.RegisterActor(registration(2, name="name"))).created
        # Which has it now.
        with pytest.raises(RpcError, match="an actor named 'name' exists"):
            request = failed()
            request.creation_spec.actor_creation.actor_id = actor_id(3)
            await gcs.RegisterActor(request)
        await until_state(gcs, common_pb2.ALIVE, 2)
        assert len(node.leases) == 1

    play(script)


def test_an_actor_that_awaits_its_arguments_ends_with_its_owner_and_with_its_placement_group() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 1})
        await register(gcs, group())
        in_group = registration(1, name="name", awaits_arguments=True)
        in_group.creation_spec.strategy.placement_group.placement_group_id = group_id()
        await gcs.RegisterActor(in_group)
        await gcs.RegisterActor(registration(2, name="other", is_detached=True, awaits_arguments=True))
        await remove(gcs)
        info = await until_state(gcs, common_pb2.DEAD, 1)
        assert info.death_cause.kind == common_pb2.DeathCause.PLACEMENT_GROUP_REMOVED
        cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.WORKER_DIED, message="signal 9")
        await node.process.spawn(node.report_death(OWNER.binary(), cause))
        info = await until_state(gcs, common_pb2.DEAD, 2)
        assert info.death_cause.kind == common_pb2.DeathCause.OWNER_DIED

    play(script)
