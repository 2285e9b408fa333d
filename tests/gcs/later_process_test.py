"""A GCS that starts on an empty store, in virtual time: it goes by what it has heard of an actor, and then
hears of a later process of it, or that it lost the one that runs."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2, raylet_pb2
from tests.gcs.lost_head import (
    GRACE_S,
    Lost,
    actor_row,
    its_node_tells,
    job_row,
    owner_row,
    tell,
    told_by_node,
    worker_row,
)
from tests.gcs.scene import (
    OWNER,
    FakeNode,
    FakeWorker,
    GcsScene,
    actor_id,
    create_actor,
    never,
    play,
    registration,
    until_state,
)

NO_ROOM = core_worker_pb2.PushTaskReply(status=core_worker_pb2.PushTaskReply.NO_ROOM)
MANY_S = 100.0


class Creation:
    """The constructor of incarnation 0, which takes its time."""

    def __init__(self, scene: GcsScene, has_room: bool = True) -> None:
        self.begins, self.goes_on = asyncio.Event(), asyncio.Event()
        self._has_room = has_room
        scene.push = self._create

    async def _create(self, request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
        if request.spec.attempt:
            return await create_actor(request)
        self.begins.set()
        await self.goes_on.wait()
        return await create_actor(request) if self._has_room else NO_ROOM


async def owners_node(it: Lost, *others: FakeNode) -> FakeNode:
    """It is there, and names the other ones."""
    node = FakeNode(it.scene, it.scene.world.network.add_host("first").name, {"CPU": 1})
    await node.process.spawn(node.start())
    await node.process.spawn(node.join({}, told_by_node(owner_row(node), others=others)))
    return node


def ended_on(node: FakeNode) -> int:
    return len(node.returned) + len(node.killed)


async def owner_tells_a_restart(it: Lost, told: gcs_pb2.RegisterActorRequest, node: FakeNode) -> None:
    lost = actor_row(told, common_pb2.RESTARTING, num_restarts=1)
    lost.lost_on_node_id = it.node.node_id
    await tell(it.gcs, OWNER.binary(), lost, job=job_row(node))


@pytest.mark.parametrize("ends", ["it returns", "it has no room", "never"])
def test_an_actor_in_its_constructor_that_had_restarted_already_is_placed(ends: str) -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(max_restarts=-1)
        creation = Creation(scene, has_room=ends != "it has no room")
        node = await owners_node(it, it.node)
        told = registration(1, owner_node_id=node.node_id, max_restarts=-1)
        await it.node_joins(worker_row(it.worker))
        grant = raylet_pb2.Grant(lease_id=it.node.leases[0].lease_id, worker=it.worker.address, worker_pid=7)
        row = actor_row(told, common_pb2.PENDING_CREATION, it.worker, grant=grant.SerializeToString())
        await tell(it.gcs, it.worker.worker_id, row, job=job_row(None))
        await creation.begins.wait()
        await owner_tells_a_restart(it, told, node)
        await asyncio.sleep(1)
        if ends != "never":
            creation.goes_on.set()
        info = await until_state(it.gcs, common_pb2.ALIVE, num_restarts=1)
        assert info.num_restarts == 1 and ended_on(it.node)

    play(script)


def test_a_living_process_of_an_actor_that_had_restarted_already_ends_before_that_begins() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(max_restarts=-1)
        node = await owners_node(it, it.node)
        told = registration(1, owner_node_id=node.node_id, max_restarts=-1)
        await it.node_joins(worker_row(it.worker))
        row = actor_row(told, common_pb2.ALIVE, it.worker)
        await tell(it.gcs, it.worker.worker_id, row, job=job_row(None))
        await asyncio.sleep(2 * GRACE_S)
        ended: list[int] = []

        async def create(request: core_worker_pb2.PushTaskRequest) -> core_worker_pb2.PushTaskReply:
            ended.append(ended_on(it.node))
            return await create_actor(request)

        scene.push = create
        await owner_tells_a_restart(it, told, node)
        await until_state(it.gcs, common_pb2.ALIVE, num_restarts=1)
        assert ended == [1]

    play(script)


@pytest.mark.parametrize("has_room", [True, False])
@pytest.mark.parametrize("is_killed", [True, False])
def test_the_second_process_of_an_actor_ends_also_where_the_first_ends_before_its_constructor(
    is_killed: bool, has_room: bool
) -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        restarts = 0 if is_killed else -1
        await it.play(max_restarts=restarts)
        creation = Creation(scene, has_room)
        node = await owners_node(it)
        told = registration(1, owner_node_id=node.node_id, max_restarts=restarts)
        await tell(it.gcs, OWNER.binary(), actor_row(told, common_pb2.PENDING_CREATION), job=job_row(node))
        await creation.begins.wait()
        await its_node_tells(it, told)
        await until_state(it.gcs, common_pb2.ALIVE)
        if is_killed:
            kill = gcs_pb2.KillActorRequest(actor_id=actor_id(1), force=True, no_restart=True)
            await it.gcs.KillActor(kill)
        else:
            await it.node.process.spawn(it.node.crash(it.worker))
        creation.goes_on.set()
        await asyncio.sleep(MANY_S)
        assert ended_on(node) == 1
        state = common_pb2.DEAD if is_killed else common_pb2.ALIVE
        assert (await until_state(it.gcs, state)).state == state

    play(script)


@pytest.mark.parametrize("is_alive", [True, False])
def test_an_actor_that_ends_for_want_of_handles_ends_with_its_later_process(is_alive: bool) -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(name="name", max_restarts=-1)
        scene.on_exit = never
        node = await owners_node(it)
        told = registration(1, owner_node_id=node.node_id, name="name", max_restarts=-1)
        await it.node_joins(worker_row(it.worker))
        row = actor_row(told, common_pb2.ALIVE, it.worker)
        await tell(it.gcs, it.worker.worker_id, row, job=job_row(None))
        await tell(it.gcs, OWNER.binary(), job=job_row(node), owned=())
        while not scene.exits:
            await asyncio.sleep(0.1)
        late = FakeNode(scene, scene.world.network.add_host("late").name, {"CPU": 1})
        await late.process.spawn(late.start())
        worker = FakeWorker(late, b"w" * 28)
        await worker.start()
        late.workers[worker.worker_id] = worker
        await late.process.spawn(late.join({b"l" * 16: worker.worker_id}, told_by_node(worker_row(worker))))
        grant = raylet_pb2.Grant(lease_id=b"l" * 16, worker=worker.address, worker_pid=7).SerializeToString()
        state = common_pb2.ALIVE if is_alive else common_pb2.RESTARTING
        row = actor_row(told, state, worker, num_restarts=1, grant=grant)
        await tell(it.gcs, worker.worker_id, row, job=job_row(None))
        await asyncio.sleep(MANY_S)
        assert it.node.killed
        if is_alive:
            assert [who for who, _ in scene.exits] == [it.worker.worker_id, worker.worker_id]
            await late.process.spawn(late.crash(worker))
        else:
            assert [each.worker_id for each in late.killed] == [worker.worker_id]
        info = await until_state(it.gcs, common_pb2.DEAD)
        assert info.death_cause.kind == common_pb2.DeathCause.OUT_OF_SCOPE
        names = gcs_pb2.ListNamedActorsRequest(namespace="space")
        assert not (await it.gcs.ListNamedActors(names)).actors

    play(script)
