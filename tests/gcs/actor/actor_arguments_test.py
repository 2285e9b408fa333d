"""Constructors whose arguments have no room on the chosen node, through a real GCS in virtual time."""

from __future__ import annotations

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.gcs.scene import FakeNode, GcsScene, create_actor, play, registration, until_state

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
