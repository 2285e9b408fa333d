"""The head's part of draining a node: who is asked, what the row says, and which actors move."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ray_mono.gcs.storage.table_storage import Write
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2, raylet_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.scene import OWNER, FakeNode, GcsScene, actor_id, never, play, registration, until_state

EMPTY = common_pb2.Empty()
IDLE = common_pb2.DRAIN_NODE_REASON_IDLE_TERMINATION
PREEMPTION = common_pb2.DRAIN_NODE_REASON_PREEMPTION
MANY_S = 30.0


async def drain(
    gcs: GcsServiceAsyncStub,
    node_id: bytes,
    reason: common_pb2.DrainNodeReason = PREEMPTION,
    deadline_ms: int = 0,
) -> gcs_pb2.DrainNodeReply:
    return await gcs.DrainNode(
        gcs_pb2.DrainNodeRequest(
            node_id=node_id, reason=reason, reason_message="spot", deadline_timestamp_ms=deadline_ms
        )
    )


async def row_of(gcs: GcsServiceAsyncStub, node: FakeNode) -> common_pb2.NodeInfo:
    rows = (await gcs.GetAllNodes(EMPTY)).nodes
    return next(row for row in rows if row.node_id == node.node_id)


async def actor_on(scene: GcsScene, gcs: GcsServiceAsyncStub, max_restarts: int) -> FakeNode:
    """The only node, with an actor on it."""
    node = await scene.add_node({"CPU": 4})
    await gcs.RegisterActor(registration(max_restarts=max_restarts))
    await until_state(gcs, common_pb2.ALIVE)
    return node


def test_the_nodes_raylet_is_asked_and_its_row_says_what_holds() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        assert (await drain(gcs, node.node_id, deadline_ms=5)).is_accepted
        held = common_pb2.NodeDrain(reason=PREEMPTION, reason_message="spot", deadline_timestamp_ms=5)
        assert node.drains == [held]
        row = await row_of(gcs, node)
        assert row.drain == held and row.state == common_pb2.NODE_ALIVE

    play(script)


def test_a_raylet_that_refuses_is_left_as_it_is() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        reply = await drain(gcs, node.node_id, IDLE)
        assert not reply.is_accepted and reply.rejection_reason_message == "it is in use"
        assert not (await row_of(gcs, node)).HasField("drain")

    play(script)


def test_a_dead_node_counts_as_drained_and_an_unknown_one_is_refused() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=node.node_id))
        assert (await drain(gcs, node.node_id)).is_accepted and not node.drains
        reply = await drain(gcs, b"?" * 28)
        assert not reply.is_accepted and "is not in this cluster" in reply.rejection_reason_message

    play(script)


@pytest.mark.parametrize(
    ("bad", "named"),
    [({"reason": common_pb2.DRAIN_NODE_REASON_UNSPECIFIED}, "reason"), ({"deadline_ms": -1}, "deadline")],
)
def test_bad_requests_say_what_is_wrong(bad: dict[str, int], named: str) -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        with pytest.raises(RpcError, match=named) as caught:
            await drain(gcs, node.node_id, **bad)  # type: ignore[arg-type]
        assert caught.value.code is StatusCode.INVALID_ARGUMENT and not node.drains

    play(script)


def test_new_actors_are_placed_elsewhere() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        other = await scene.add_node({"CPU": 1})
        await drain(gcs, node.node_id)
        await gcs.RegisterActor(registration())
        await until_state(gcs, common_pb2.ALIVE)
        assert other.leases and not node.leases

    play(script)


def test_an_actor_moves_when_there_is_room_elsewhere_and_that_costs_no_restart() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await actor_on(scene, gcs, max_restarts=1)
        await drain(gcs, node.node_id)
        await asyncio.sleep(MANY_S)
        assert not scene.exits
        other = await scene.add_node({"CPU": 4})
        info = await until_state(gcs, common_pb2.ALIVE, num_restarts=1)
        assert info.address.node_id == other.node_id and not node.killed
        [(worker_id, exit_)] = scene.exits
        assert worker_id in node.workers and exit_.moves and exit_.cause.is_preempted
        assert info.num_restarts_due_to_node_preemption == 1 and not info.is_moving
        pushed = scene.pushed[-1].spec
        assert (pushed.attempt, pushed.actor_creation.num_restarts_due_to_node_preemption) == (1, 1)
        await other.crash(next(iter(other.workers.values())))
        info = await until_state(gcs, common_pb2.ALIVE, num_restarts=2)
        assert info.num_restarts_due_to_node_preemption == 1

    play(script)


def test_an_actor_without_restarts_stays_until_the_node_ends_and_then_tells_of_the_preemption() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await actor_on(scene, gcs, max_restarts=0)
        await scene.add_node({"CPU": 4})
        await drain(gcs, node.node_id)
        await asyncio.sleep(MANY_S)
        assert not node.killed and not scene.exits
        cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.NODE_DIED, message="it was drained: spot")
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=node.node_id, cause=cause))
        dead = await until_state(gcs, common_pb2.DEAD)
        assert dead.death_cause.is_preempted and "it was drained: spot" in dead.death_cause.message

    play(script)


@pytest.mark.parametrize("store_is_slow", [True, False])
def test_of_two_actors_only_one_moves_where_there_is_room_for_one(store_is_slow: bool) -> None:
    """Whatever the nodes report, while the first is on its way, and before its new node tells of it."""

    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        for number in (1, 2):
            await gcs.RegisterActor(registration(number, max_restarts=-1))
            await until_state(gcs, common_pb2.ALIVE, number)
        other = await scene.add_node({"CPU": 1})
        if store_is_slow:
            commit = scene.storage.commit

            async def slow_commit(writes: Sequence[Write]) -> None:
                await asyncio.sleep(1.0)
                await commit(writes)

            scene.storage.commit = slow_commit  # type: ignore[method-assign]
        await drain(gcs, node.node_id)
        while not scene.exits:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        await node.process.spawn(node.report(1, {"CPU": 3}))
        while not other.workers:
            await asyncio.sleep(0.01)
        await node.process.spawn(node.report(2, {"CPU": 3}))
        await asyncio.sleep(0.05)
        await other.process.spawn(other.report(1, {"CPU": 0}))
        await asyncio.sleep(MANY_S)
        assert len(scene.exits) == 1 and len(other.leases) == 1
        second = [actor for actor in (await gcs.GetAllActors(EMPTY)).actors if not actor.num_restarts]
        assert [actor.state for actor in second] == [common_pb2.ALIVE]

    play(script)


def test_it_starts_there_when_the_calls_that_run_are_over() -> None:
    async def script(scene: GcsScene) -> None:
        is_over = asyncio.Event()

        async def on_exit(request: core_worker_pb2.ExitRequest) -> None:
            await is_over.wait()

        scene.on_exit = on_exit
        gcs = await scene.start_gcs()
        node = await actor_on(scene, gcs, max_restarts=1)
        other = await scene.add_node({"CPU": 4})
        await drain(gcs, node.node_id)
        await asyncio.sleep(MANY_S)
        assert (await until_state(gcs, common_pb2.ALIVE)).address.node_id == node.node_id
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        await node.process.spawn(node.join())
        await other.process.spawn(other.join())
        await asyncio.sleep(MANY_S)
        assert (await until_state(gcs, common_pb2.ALIVE)).num_restarts == 0
        is_over.set()
        info = await until_state(gcs, common_pb2.ALIVE, num_restarts=1)
        assert info.address.node_id == other.node_id and not node.killed
        assert all(exit_.moves for _, exit_ in scene.exits), "the next head asked again"

    play(script)


def test_one_whose_process_cannot_be_asked_is_killed() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await actor_on(scene, gcs, max_restarts=1)
        await scene.add_node({"CPU": 4})

        async def on_exit(request: core_worker_pb2.ExitRequest) -> None:
            raise RpcError(StatusCode.INTERNAL, "deaf")

        scene.on_exit = on_exit
        await drain(gcs, node.node_id)
        info = await until_state(gcs, common_pb2.ALIVE, num_restarts=1)
        assert len(node.killed) == 1 and info.num_restarts_due_to_node_preemption == 1

    play(script)


def test_an_actor_that_must_live_on_a_node_that_is_drained_cannot_be_placed() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await drain(gcs, node.node_id)
        pinned = registration()
        pinned.creation_spec.strategy.node_affinity.node_id = node.node_id
        await gcs.RegisterActor(pinned)
        dead = await until_state(gcs, common_pb2.DEAD)
        assert dead.death_cause.kind == common_pb2.DeathCause.UNSCHEDULABLE
        assert "which is drained" in dead.death_cause.message

    play(script)


def test_as_many_actors_move_as_there_is_room_for() -> None:
    async def script(scene: GcsScene) -> None:
        scene.on_exit = never
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        for number in (1, 2, 3):
            await gcs.RegisterActor(registration(number, max_restarts=-1))
            await until_state(gcs, common_pb2.ALIVE, number)
        full = await scene.add_node({"CPU": 2})
        await drain(gcs, node.node_id)
        assert len(scene.exits) <= 2
        await asyncio.sleep(MANY_S)
        await full.process.spawn(full.report(1, {"CPU": 2}))
        await asyncio.sleep(MANY_S)
        assert len(scene.exits) == 2, "those that were told have calls that run, and need the room"
        await scene.add_node({"CPU": 1})
        await asyncio.sleep(MANY_S)
        assert len(scene.exits) == 3

    play(script)


def test_the_next_head_on_the_store_goes_on() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await actor_on(scene, gcs, max_restarts=1)
        await drain(gcs, node.node_id)
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        assert (await row_of(gcs, node)).drain.reason_message == "spot"
        await node.process.spawn(node.join())
        assert (await row_of(gcs, node)).drain.reason_message == "spot"
        other = await scene.add_node({"CPU": 4})
        info = await until_state(gcs, common_pb2.ALIVE, num_restarts=1)
        assert info.address.node_id == other.node_id

    play(script)


@pytest.mark.parametrize("who", ["its worker", "its owner"])
def test_a_head_on_an_empty_store_hears_of_the_drain_and_which_restarts_did_not_count(who: str) -> None:
    """The actor moves on from there, and has the restart that it had."""

    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        told = registration(max_restarts=1, owner_node_id=node.node_id)
        told.creation_spec.attempt = 2
        told.creation_spec.actor_creation.num_restarts_due_to_node_preemption = 2
        worker = (
            await node.process.spawn(node.grant_new_worker(raylet_pb2.RequestWorkerLeaseRequest()))
        ).grant
        row = common_pb2.ActorInfo(
            creation_spec=told.creation_spec,
            class_name=told.class_name,
            state=common_pb2.ALIVE if who == "its worker" else common_pb2.RESTARTING,
            num_restarts=2,
            num_restarts_due_to_node_preemption=2,
            is_moving=who == "its owner",
        )
        if who == "its worker":
            row.address.CopyFrom(worker.worker)
        node.info.drain.reason = PREEMPTION
        living = [
            common_pb2.WorkerInfo(worker_id=worker_id, node_id=node.node_id, is_alive=True, type=type_)
            for worker_id, type_ in (
                (worker.worker.worker_id, common_pb2.WORKER),
                (OWNER.binary(), common_pb2.DRIVER),
            )
        ]
        before = gcs_pb2.RegisterNodeRequest(known_cluster_ids=[b"before"], workers=living, last_job_number=1)
        scene.kill_gcs()
        scene.lose_storage()
        gcs = await scene.start_gcs()
        await node.process.spawn(node.join({b"lease": worker.worker.worker_id}, before))
        other = await scene.add_node({"CPU": 4})
        await gcs.Adopt(gcs_pb2.AdoptRequest(worker_id=worker.worker.worker_id, actors=[row]))
        await gcs.Adopt(gcs_pb2.AdoptRequest(worker_id=OWNER.binary(), owned_actor_ids=[actor_id()]))
        num_restarts = 3 if who == "its worker" else 2
        info = await until_state(gcs, common_pb2.ALIVE, num_restarts=num_restarts)
        assert info.num_restarts_due_to_node_preemption == num_restarts
        assert info.address.node_id == other.node_id and not node.killed
        await other.process.spawn(other.crash(other.workers[info.address.worker_id]))
        await until_state(gcs, common_pb2.ALIVE, num_restarts=num_restarts + 1)

    play(script)


def test_a_head_that_knew_nothing_learns_it_from_the_raylet() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        node.info.drain.reason = PREEMPTION
        await node.process.spawn(node.join())
        assert (await row_of(gcs, node)).drain.reason == PREEMPTION
        other = await scene.add_node({"CPU": 1})
        await gcs.RegisterActor(registration())
        await until_state(gcs, common_pb2.ALIVE)
        assert other.leases and not node.leases

    play(script)
