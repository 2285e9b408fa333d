"""What the head says of actors that do not run, and of placement groups that have no place."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.common.ids import TaskID
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.rpc.surface import RpcError
from tests.gcs.placement_group.group_scene import (
    CREATED,
    PENDING,
    Info,
    begin,
    group,
    group_id,
    register,
    remove,
    until,
)
from tests.gcs.scene import FakeNode, GcsScene, actor_id, create_actor, never, play, registration, until_state

Subject = common_pb2.WaitSubject


async def asked(gcs: GcsServiceAsyncStub, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
    return await gcs.Explain(common_pb2.ExplainRequest(subject=subject))


async def of_actor(gcs: GcsServiceAsyncStub) -> common_pb2.WaitReason:
    return await asked(gcs, Subject(kind=Subject.ACTOR, id=actor_id()))


async def of_group(gcs: GcsServiceAsyncStub, number: int = 1) -> common_pb2.WaitReason:
    return await asked(gcs, Subject(kind=Subject.PLACEMENT_GROUP, id=group_id(number)))


async def until_code(gcs: GcsServiceAsyncStub, code: str) -> common_pb2.WaitReason:
    while (told := await of_actor(gcs)).code != code:
        await asyncio.sleep(0.1)
    return told


def test_an_actor_that_no_node_can_hold_waits_for_nobody() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        await scene.add_node({"CPU": 1})
        await gcs.RegisterActor(registration(needs={"GPU": 1}))
        told = await until_code(gcs, "INFEASIBLE")
        assert "Actor Counter needs {GPU: 1}, which no node has" in told.text and told.unblock
        assert not told.waits_for

    play(script)


def test_an_actor_that_awaits_its_arguments_waits_for_what_its_owner_knows_of_them() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        request = registration(name="name", awaits_arguments=True)
        await gcs.RegisterActor(request)
        told = await of_actor(gcs)
        assert told.code == "DEPENDENCIES" and "waits for arguments of its constructor" in told.text
        (creation,) = told.waits_for
        assert creation.id == TaskID.for_actor_creation(actor_id()).binary()
        assert (creation.kind, creation.at) == (Subject.TASK, request.creation_spec.caller)
        # Its owner lists what waits there.
        assert not (await gcs.ListWaiting(common_pb2.Empty())).alike

    play(script)


def test_an_actor_that_a_raylet_is_asked_for_waits_for_that_lease() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 1})
        node.grant = never
        await gcs.RegisterActor(registration())
        while not node.leases:
            await asyncio.sleep(0.1)
        told = await until_code(gcs, "LEASE")
        (lease,) = told.waits_for
        assert (lease.kind, lease.id) == (Subject.LEASE, node.leases[0].lease_id)
        assert lease.at.node_id == node.node_id and lease.at.port and not lease.at.worker_id

    play(script)


def test_an_actor_whose_constructor_runs_waits_for_that_worker_and_one_that_lives_for_nobody() -> None:
    async def script(scene: GcsScene) -> None:
        goes_on = asyncio.Event()
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 1})

        async def create_later(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            await goes_on.wait()
            return await create_actor(request)

        scene.push = create_later
        await gcs.RegisterActor(registration())
        told = await until_code(gcs, "ACTOR")
        (worker,) = told.waits_for
        assert (worker.kind, worker.at.worker_id) == (Subject.WORKER, worker.id)
        assert worker.id in node.workers
        goes_on.set()
        await until_state(gcs, common_pb2.ALIVE)
        assert (await of_actor(gcs)).code == "READY"
        await gcs.KillActor(gcs_pb2.KillActorRequest(actor_id=actor_id(), force=True, no_restart=True))
        await until_state(gcs, common_pb2.DEAD)
        assert "is dead: " in (await until_code(gcs, "ACTOR_DEAD")).text

    play(script)


def test_a_group_waits_for_whoever_has_what_it_needs_on_the_nodes_that_have_it() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        nodes: list[FakeNode] = [await scene.add_node({"CPU": 2}), await scene.add_node({"A": 2})]
        await register(gcs, group(1, cpus=(2,), strategy=Info.PACK))
        await until(gcs, CREATED)
        await register(gcs, group(2, cpus=(1,), strategy=Info.PACK))
        await until(gcs, PENDING, number=2)
        told = await of_group(gcs, 2)
        assert told.code == "RESOURCES" and told.any and "which is in use" in told.text
        (there,) = told.waits_for
        assert (there.kind, there.id) == (Subject.NODE, nodes[0].node_id)
        assert dict(there.needs.amounts) == {"CPU": 10000}
        assert (await of_group(gcs, 1)).code == "READY"
        await register(gcs, group(3, cpus=(9,), strategy=Info.PACK))
        await until(gcs, PENDING, number=3)
        assert (await of_group(gcs, 3)).code == "INFEASIBLE"
        await remove(gcs, 3)
        assert (await of_group(gcs, 3)).code == "PLACEMENT_GROUP_REMOVED"

    play(script)


def test_actors_and_groups_that_wait_are_listed_alike_together() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        await scene.add_node({"CPU": 1})
        for number in (1, 2):
            await gcs.RegisterActor(registration(number, needs={"GPU": 1}))
            await register(gcs, group(number, cpus=(9,)))
        await register(gcs, group(3, cpus=(8,)))
        await register(gcs, group(4, cpus=(1,)))
        await until(gcs, CREATED, number=4)
        told = (await gcs.ListWaiting(common_pb2.Empty())).alike
        kinds = [(each.example.kind, each.example.name, each.count) for each in told]
        assert kinds == [
            (Subject.ACTOR, "Counter", 2),
            (Subject.PLACEMENT_GROUP, "", 2),
            (Subject.PLACEMENT_GROUP, "", 1),
        ]

    play(script)


def test_actors_of_one_class_that_ask_for_different_things_are_listed_apart() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        await scene.add_node({"CPU": 1})
        for number, needs in enumerate(({"GPU": 1}, {"typo": 1}, {"GPU": 1}), 1):
            await gcs.RegisterActor(registration(number, needs=needs))
        told = (await gcs.ListWaiting(common_pb2.Empty())).alike
        assert [each.count for each in told] == [2, 1]
        reasons = [(await asked(gcs, each.example)).text for each in told]
        assert "needs {GPU: 1}" in reasons[0] and "needs {typo: 1}" in reasons[1]

    play(script)


def test_what_the_head_does_not_know_is_said() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        assert (await of_actor(gcs)).code == (await of_group(gcs)).code == "UNKNOWN"
        with pytest.raises(RpcError, match="the head can tell of ACTOR, PLACEMENT_GROUP and HEAD, .* TASK"):
            await asked(gcs, Subject(kind=Subject.TASK, id=b"t"))
        with pytest.raises(RpcError, match="INVALID_ARGUMENT"):
            await asked(gcs, Subject(kind=Subject.ACTOR, id=b"short"))

    play(script)


def test_an_actor_that_lost_its_process_tells_how_often_and_why_and_that_it_pauses() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await begin(scene)
        node = await scene.add_node({"CPU": 1})
        await gcs.RegisterActor(registration(max_restarts=4))
        await until_state(gcs, common_pb2.ALIVE)
        assert not (await of_actor(gcs)).history
        cause = common_pb2.DeathCause(message="worker exited with code 3.\nIt wrote last:\n    no")
        scene.push = never
        for number in range(1, 4):
            await node.crash([*node.workers.values()][-1], cause)
            while len(node.workers) == number:
                told = await of_actor(gcs)
                await asyncio.sleep(0.01)
        assert told.code == "ACTOR_RESTARTING" and "starts again after a pause, in " in told.text
        told = await until_code(gcs, "ACTOR")
        expected = "has restarted 3 times (restarts left: 1), last since it lost its process: "
        assert told.history.endswith(f"{expected}worker exited with code 3")

    play(script)
