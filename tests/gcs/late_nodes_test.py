"""A GCS that starts on an empty store, in virtual time: others name a node that comes late, or never."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.lost_head import (
    EMPTY,
    GRACE_S,
    Lost,
    actor_row,
    its_node_tells,
    job_row,
    named,
    owner_row,
    owner_tells,
    tell,
    told_by_node,
    worker_row,
)
from tests.gcs.scene import (
    JOB,
    OWNER,
    FakeNode,
    GcsScene,
    create_actor,
    play,
    registration,
    until_state,
)

LATE_S = 60.0
"""Where a node comes after that, who was there has told."""


def test_a_node_that_others_named_has_its_time_to_come_and_what_is_there_lives() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(name="name", max_restarts=1)
        first = FakeNode(scene, scene.world.network.add_host("first").name, {"CPU": 1})
        await first.process.spawn(first.start())
        await first.process.spawn(first.join({}, told_by_node(owner_row(first), others=(it.node,))))
        # The owner, on the first node, tells of the actor, whose node comes late.
        told = registration(1, owner_node_id=first.node_id, name="name", max_restarts=1)
        row = actor_row(told, common_pb2.ALIVE, it.worker)
        await tell(it.gcs, OWNER.binary(), row, job=job_row(first))
        await asyncio.sleep(2 * GRACE_S)
        assert (await named(it.gcs, "name")).num_restarts == 0
        assert await it.node_joins(worker_row(it.worker)) == []
        await tell(it.gcs, it.worker.worker_id, row, job=job_row(None))
        await asyncio.sleep(100)
        info = await named(it.gcs, "name")
        assert (info.num_restarts, info.address) == (0, it.worker.address)
        assert it.node.returned == []

    play(script)


@pytest.mark.parametrize("lives", [True, False])
def test_a_job_whose_drivers_node_comes_late_runs_on_where_the_driver_does(lives: bool) -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        far = FakeNode(scene, scene.world.network.add_host("far").name, {"CPU": 1})
        await far.process.spawn(far.start())
        scene.kill_gcs()
        scene.lose_storage()
        it.gcs = await scene.start_gcs()
        await it.node_joins(worker_row(it.worker), others=(far,))
        told = registration(1, owner_node_id=far.node_id, name="name")
        await tell(
            it.gcs, it.worker.worker_id, actor_row(told, common_pb2.ALIVE, it.worker), job=job_row(None)
        )
        await asyncio.sleep(2 * GRACE_S)
        await far.process.spawn(far.join({}, told_by_node(*([owner_row(far)] if lives else []))))
        if lives:
            await tell(it.gcs, OWNER.binary(), job=job_row(far))
        await asyncio.sleep(200)
        job = await it.gcs.GetJob(gcs_pb2.GetJobRequest(job_id=JOB.binary()))
        [actor] = (await it.gcs.GetAllActors(EMPTY)).actors
        expected = (False, common_pb2.ALIVE) if lives else (True, common_pb2.DEAD)
        assert (job.is_finished, actor.state) == expected

    play(script)


@pytest.mark.parametrize("named_after_s", [5, 58, 100])
@pytest.mark.parametrize("comes", [True, False])
def test_a_node_has_its_time_to_come_from_when_it_was_named(comes: bool, named_after_s: float) -> None:
    """Its raylet answers health checks."""

    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        if named_after_s > LATE_S:
            first = FakeNode(scene, scene.world.network.add_host("first").name, {"CPU": 1})
            await first.process.spawn(first.start())
            await first.process.spawn(first.join({}, told_by_node(owner_row(first))))
        await asyncio.sleep(named_after_s)
        far = FakeNode(scene, scene.world.network.add_host("far").name, {"CPU": 1})
        await far.process.spawn(far.start(joins=False))
        await it.node_joins(owner_row(it.node), others=(far,))
        waits = actor_row(it.told, common_pb2.PENDING_CREATION)
        await tell(it.gcs, OWNER.binary(), waits, job=job_row(it.node))
        await asyncio.sleep(50)
        if comes:
            await far.process.spawn(far.join({}, told_by_node()))
        await asyncio.sleep(50)
        rows = (await it.gcs.GetAllNodes(EMPTY)).nodes
        states = [row.state for row in rows if row.node_id == far.node_id]
        assert states == [common_pb2.NODE_ALIVE if comes else common_pb2.NODE_DEAD]
        await until_state(it.gcs, common_pb2.ALIVE)

    play(script)


def test_an_actor_whose_node_comes_late_with_its_worker_is_not_placed_again() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        first, told = await owner_tells(it)
        await asyncio.sleep(2 * GRACE_S)
        await its_node_tells(it, told)
        info = await until_state(it.gcs, common_pb2.ALIVE)
        await asyncio.sleep(100)
        assert info.address == it.worker.address
        assert not first.leases and it.node.returned == []

    play(script)


def test_an_actor_that_was_begun_again_when_its_process_is_told_of_late_ends_its_second_one() -> None:
    """Nobody had named the node, so the head placed the actor elsewhere."""

    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        begins, goes_on = asyncio.Event(), asyncio.Event()

        async def create_later(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            begins.set()
            await goes_on.wait()
            return await create_actor(request)

        scene.push = create_later
        first = FakeNode(scene, scene.world.network.add_host("first").name, {"CPU": 1})
        await first.process.spawn(first.start())
        await first.process.spawn(first.join({}, told_by_node(owner_row(first))))
        told = registration(1, owner_node_id=first.node_id)
        await tell(it.gcs, OWNER.binary(), actor_row(told, common_pb2.PENDING_CREATION), job=job_row(first))
        await begins.wait()
        await its_node_tells(it, told)
        goes_on.set()
        while not first.killed:
            await asyncio.sleep(0.1)
        assert [each.worker_id for each in first.killed] == [scene.pushed[-1].intended_worker_id]
        assert (await until_state(it.gcs, common_pb2.ALIVE)).address == it.worker.address
        assert it.node.returned == it.node.killed == []

    play(script)


async def only_the_owner_tells(it: Lost) -> tuple[FakeNode, gcs_pb2.RegisterActorRequest]:
    """And the head after the one that heard that has begun, on its store."""
    first, told = await owner_tells(it)
    await asyncio.sleep(2 * GRACE_S)
    it.scene.kill_gcs()
    it.gcs = await it.scene.start_gcs()
    await first.process.spawn(first.join({}))
    return first, told


def test_an_actor_that_waits_for_a_missing_node_waits_under_the_next_head_as_well() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        first, told = await only_the_owner_tells(it)
        await asyncio.sleep(1)
        await its_node_tells(it, told)
        assert (await until_state(it.gcs, common_pb2.ALIVE)).address == it.worker.address
        assert not first.leases and it.node.returned == []

    play(script)


def test_and_it_is_placed_where_that_node_does_not_come_to_the_next_head() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        first, _ = await only_the_owner_tells(it)
        assert (await until_state(it.gcs, common_pb2.ALIVE)).address.node_id == first.node_id

    play(script)


@pytest.mark.parametrize("comes_after_s", [0, 20])
def test_a_node_that_was_held_to_be_dead_and_is_taken_back_ends_its_actor_before_that_starts_elsewhere(
    comes_after_s: float,
) -> None:
    """The head before waited for its lease. This one does not know of it, and its owner does."""

    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        scene.head_lease_s = 60.0
        await it.play(max_restarts=1)
        happened: list[str] = []

        async def create(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            happened.append("it starts again")
            return await create_actor(request)

        async def end_worker(request: raylet_pb2.ReturnWorkerRequest) -> None:
            await asyncio.sleep(2)
            happened.append("its worker has ended")

        scene.push, scene.on_return = create, end_worker
        near = FakeNode(scene, scene.world.network.add_host("near").name, {"CPU": 1})
        silent = common_pb2.WorkerInfo(worker_id=b"s" * 28, node_id=near.node_id)
        await near.process.spawn(near.start(told_by_node(owner_row(near), silent)))
        told = registration(1, owner_node_id=near.node_id, max_restarts=1)
        lost = actor_row(told, common_pb2.RESTARTING, num_restarts=1)
        lost.lost_on_node_id = it.node.node_id
        await tell(it.gcs, OWNER.binary(), lost, job=job_row(near))
        await asyncio.sleep(comes_after_s)
        await it.node_joins(worker_row(it.worker))
        await asyncio.sleep(1)
        await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))
        await until_state(it.gcs, common_pb2.ALIVE, num_restarts=1)
        assert happened == ["its worker has ended", "it starts again"]

    play(script)


@pytest.mark.parametrize("comes_first", [False, True])
def test_a_node_that_another_one_knows_to_be_dead_is_not_taken_back(comes_first: bool) -> None:
    """Raylets and drivers would not use it any more."""

    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(max_restarts=1)
        told = told_by_node(others=(it.node,))
        told.other_nodes[0].state = common_pb2.NODE_DEAD
        told.other_nodes[0].death_cause.message = "it was silent"
        rows = owner_row(it.node), worker_row(it.worker)
        if comes_first:
            await it.node_joins(*rows)
        await scene.add_node({"CPU": 1}, told=told)
        with pytest.raises(RpcError, match="it was silent") as refused:
            await it.node_joins(*rows)
        assert refused.value.code is StatusCode.FAILED_PRECONDITION
        states = [row.state for row in (await it.gcs.GetAllNodes(EMPTY)).nodes]
        assert states == [common_pb2.NODE_ALIVE, common_pb2.NODE_DEAD]

    play(script)
