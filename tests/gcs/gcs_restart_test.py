"""A GCS that is killed and started again on the same store, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.gcs.storage.memory_storage import MemoryStorage
from ray_mono.gcs.storage.table_storage import StorageError, Table
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.scene import (
    JOB,
    OWNER,
    GcsScene,
    actor_id,
    create_actor,
    never,
    play,
    registration,
    until_state,
)
from tests.simulation.loop import SimulationError

EMPTY = common_pb2.Empty()


def driver_job(node_id: bytes, worker_id: bytes = OWNER.binary()) -> gcs_pb2.AddJobRequest:
    driver = common_pb2.Address(worker_id=worker_id, node_id=node_id)
    return gcs_pb2.AddJobRequest(job=common_pb2.JobInfo(driver=driver, entrypoint="python x.py"))


class SlowStorage(MemoryStorage):
    """Is opened when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def open(self) -> int:
        await self.gate.wait()
        return await super().open()


def test_calls_that_come_while_the_store_is_taken_over_wait_for_that() -> None:
    async def script(scene: GcsScene) -> None:
        scene.storage = storage = SlowStorage()
        starting = asyncio.ensure_future(scene.start_gcs())
        await asyncio.sleep(0.1)
        gcs = await scene.connect()
        asked = asyncio.ensure_future(gcs.GetClusterInfo(EMPTY))
        subscription = gcs.Subscribe(
            gcs_pb2.SubscribeRequest(channels=[gcs_pb2.ChannelFilter(channel=gcs_pb2.NODE)])
        )
        row = asyncio.ensure_future(anext(aiter(subscription)))
        await asyncio.sleep(10)
        assert not asked.done() and not starting.done()
        storage.gate.set()
        await starting
        assert (await asked).head_number == 1
        node = await scene.add_node({"CPU": 1})
        [first] = gcs_pb2.NodeNews.FromString((await row).payload).nodes
        assert first.node_id == node.node_id

    play(script)


def test_a_gcs_started_again_goes_on_where_the_last_one_was_killed() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.AddJob(driver_job(node.node_id))
        await gcs.KvPut(gcs_pb2.KvPutRequest(namespace=b"ns", key=b"key", value=b"value"))
        await gcs.RegisterActor(registration(1, name="alive", max_restarts=1))
        before = await until_state(gcs, common_pb2.ALIVE)
        await gcs.RegisterActor(registration(2, {"A": 1}, name="waits"))
        cluster_id = (await gcs.GetClusterInfo(EMPTY)).cluster_id
        scene.kill_gcs()

        gcs = await scene.start_gcs()
        await node.process.spawn(node.join())
        assert (await gcs.GetClusterInfo(EMPTY)).cluster_id == cluster_id
        assert (await gcs.KvGet(gcs_pb2.KvGetRequest(namespace=b"ns", key=b"key"))).value == b"value"
        assert (await gcs.AddJob(driver_job(node.node_id, b"e" * 28))).job_id == b"\2\0\0\0"
        assert (
            await gcs.GetNamedActor(gcs_pb2.GetNamedActorRequest(name="alive", namespace="space"))
        ) == before
        # The actor that waited is placed, with the arguments of then, and the one that lived can restart.
        await scene.add_node({"A": 1, "CPU": 1})
        await until_state(gcs, common_pb2.ALIVE, 2)
        await node.process.spawn(node.crash(node.workers[before.address.worker_id]))
        await until_state(gcs, common_pb2.ALIVE, 1, num_restarts=1)
        assert [push.spec.flat_args for push in scene.pushed] == [b"the arguments"] * 3

    play(script)


def test_on_rows_from_before_a_job_its_number_is_not_given_again() -> None:
    async def script(scene: GcsScene) -> None:
        await scene.start_gcs()
        node = await scene.add_node({"CPU": 1})
        scene.kill_gcs()

        gcs = await scene.start_gcs()
        told = gcs_pb2.RegisterNodeRequest(last_job_number=6)
        await node.process.spawn(node.join(told=told))
        assert (await gcs.AddJob(driver_job(node.node_id))).job_id == b"\7\0\0\0"

    play(script)


def test_a_creation_under_way_when_the_gcs_was_killed_goes_on_where_it_is() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        scene.push = never
        await gcs.RegisterActor(registration())
        while not scene.pushed:
            await asyncio.sleep(0.01)
        [worker_id] = node.workers
        scene.kill_gcs()
        scene.push = create_actor
        gcs = await scene.start_gcs()
        assert await node.process.spawn(node.join({node.leases[0].lease_id: worker_id})) == []
        info = await until_state(gcs, common_pb2.ALIVE)
        assert info.address.worker_id == worker_id and info.num_restarts == 0 and node.killed == []
        # It is the same creation, of the same lease.
        first, again = scene.pushed
        assert first == again and first.lease_id == node.leases[0].lease_id

    play(script)


def test_a_creation_whose_worker_ended_while_there_was_no_gcs_is_begun_anew_as_restarts_allow() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        scene.push = never
        await gcs.RegisterActor(registration(max_restarts=1))
        while not scene.pushed:
            await asyncio.sleep(0.01)
        [worker] = node.workers.values()
        scene.kill_gcs()
        worker.process.kill("a fault")
        scene.push = create_actor
        gcs = await scene.start_gcs()
        await node.process.spawn(node.join())
        info = await until_state(gcs, common_pb2.ALIVE)
        assert info.address.worker_id != worker.worker_id and info.num_restarts == 1

    play(script)


def test_a_lease_is_wanted_while_it_is_awaited_or_its_worker_is_an_actors_and_by_no_other_gcs() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.RegisterActor(registration(1))
        alive = (await until_state(gcs, common_pb2.ALIVE)).address.worker_id
        node.grant = never
        await gcs.RegisterActor(registration(2))
        while len(node.leases) < 2:
            await asyncio.sleep(0.01)
        granted, awaited = (request.lease_id for request in node.leases)
        held = {granted: alive, awaited: b"b" * 28, b"of nobody": b"c" * 28}
        assert await node.process.spawn(node.join(held)) == [b"of nobody"]

        scene.kill_gcs()
        gcs = await scene.start_gcs()
        assert await node.process.spawn(node.join(held)) == [awaited, b"of nobody"]
        await gcs.KillActor(gcs_pb2.KillActorRequest(actor_id=actor_id(1), force=True, no_restart=True))
        assert await node.process.spawn(node.join(held)) == [granted, awaited, b"of nobody"]

    play(script)


def test_an_actor_that_was_asked_to_finish_is_asked_again_and_not_restarted() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.RegisterActor(registration(max_restarts=-1))
        await until_state(gcs, common_pb2.ALIVE)
        await gcs.ActorOutOfScope(gcs_pb2.ActorOutOfScopeRequest(actor_id=actor_id()))
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        await node.process.spawn(node.join())
        [row] = (await gcs.GetAllActors(EMPTY)).actors
        assert row.state == common_pb2.ALIVE and not row.HasField("death_cause")
        await asyncio.sleep(1)
        [worker] = node.workers.values()
        assert scene.exits[-1][0] == worker.worker_id
        await node.process.spawn(node.crash(worker))
        dead = await until_state(gcs, common_pb2.DEAD)
        assert dead.death_cause.kind == common_pb2.DeathCause.OUT_OF_SCOPE

    play(script)


def test_a_node_that_does_not_come_back_is_dead_with_its_actors() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        await scene.add_node({"CPU": 4}, "far")
        await gcs.RegisterActor(registration())
        await until_state(gcs, common_pb2.ALIVE)
        scene.kill_gcs()
        scene.world.network.crash_host("far")
        gcs = await scene.start_gcs()
        dead = await until_state(gcs, common_pb2.DEAD)
        assert dead.death_cause.kind == common_pb2.DeathCause.NODE_DIED

    play(script)


def test_a_job_is_over_whose_driver_ended_with_its_node_before_a_head_heard_where_it_was() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        await scene.add_node({"CPU": 4}, "far")
        await gcs.AddJob(driver_job(b""))
        scene.kill_gcs()
        scene.world.network.crash_host("far")
        gcs = await scene.start_gcs()
        while not (await gcs.GetAllJobs(EMPTY)).jobs[0].is_over:
            await asyncio.sleep(1)

    play(script)


def test_a_job_runs_on_whose_driver_joins_late() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.AddJob(driver_job(b""))
        await asyncio.sleep(30)
        await gcs.AddWorker(
            common_pb2.WorkerInfo(
                worker_id=OWNER.binary(), node_id=node.node_id, type=common_pb2.DRIVER, is_alive=True
            )
        )
        await asyncio.sleep(300)
        assert not (await gcs.GetAllJobs(EMPTY)).jobs[0].is_finished

    play(script)


def test_a_raylet_that_answers_but_never_registers_again_is_given_up() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        await scene.add_node({"CPU": 4})
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        await asyncio.sleep(9)
        assert (await gcs.GetAllNodes(EMPTY)).nodes[0].state == common_pb2.NODE_ALIVE
        await asyncio.sleep(2)
        [row] = (await gcs.GetAllNodes(EMPTY)).nodes
        assert row.state == common_pb2.NODE_DEAD and "did not register again" in row.death_cause.message

    play(script, node_return_timeout_s=10)


def test_a_store_that_refuses_a_write_ends_the_server() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()

        async def refuse(writes: object) -> None:
            raise StorageError("disk full")

        scene.storage.commit = refuse  # type: ignore[method-assign]
        await gcs.KvPut(gcs_pb2.KvPutRequest(namespace=b"ns", key=b"key", value=b"value"))

    # A run of the simulator ends with the first error that a service logs.
    with pytest.raises(SimulationError, match="write-through failed(.|\n)*disk full"):
        play(script)


def test_what_ended_too_long_ago_is_deleted_from_the_store_though_nothing_else_ends() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 1})
        await gcs.AddJob(gcs_pb2.AddJobRequest())
        await gcs.RegisterActor(registration(1))
        info = await until_state(gcs, common_pb2.ALIVE)
        await gcs.AddWorker(
            common_pb2.WorkerInfo(worker_id=info.address.worker_id, node_id=info.address.node_id)
        )
        await node.crash(node.workers[info.address.worker_id])
        await gcs.AddTaskEvents(gcs_pb2.TaskEvents(job_id=JOB.binary(), name_indices=[0]))
        await gcs.MarkJobFinished(gcs_pb2.MarkJobFinishedRequest(job_id=JOB.binary()))
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=node.node_id))
        over = (Table.ACTOR, Table.WORKER, Table.JOB, Table.NODE)
        assert all([await scene.storage.load_all(table) for table in over])
        assert len((await gcs.GetTaskEvents(gcs_pb2.GetTaskEventsRequest())).batches) == 1
        await asyncio.sleep(200)
        assert not any([await scene.storage.load_all(table) for table in over])
        assert not (await gcs.GetTaskEvents(gcs_pb2.GetTaskEventsRequest())).batches

    play(script, dead_age_max_s=100.0)


def test_the_rows_of_the_long_dead_are_deleted_from_the_store() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        for number in (1, 2, 3):
            await gcs.RegisterActor(registration(number, {"A": 1}))
            await gcs.ActorOutOfScope(gcs_pb2.ActorOutOfScopeRequest(actor_id=actor_id(number)))
        rows = await scene.storage.load_all(Table.ACTOR)
        assert sorted(rows) == [actor_id(2), actor_id(3)]
        # Arguments are kept for restarts, and the dead have none.
        assert common_pb2.ActorInfo.FromString(rows[actor_id(3)]).creation_spec.flat_args == b""
        with pytest.raises(RpcError) as refused:
            await gcs.WatchActor(gcs_pb2.WatchActorRequest(actor_id=actor_id(1), after_version=99))
        assert refused.value.code is StatusCode.NOT_FOUND

    play(script, dead_actors_max=2)


def test_a_head_tells_the_nodes_that_do_not_come_by_themselves_where_it_is() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        by_itself, holds_on = await scene.add_node({"CPU": 1}), await scene.add_node({"CPU": 1}, "far")
        cluster_id = (await gcs.GetClusterInfo(EMPTY)).cluster_id
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        await by_itself.process.spawn(by_itself.join())
        while not holds_on.heads:
            await asyncio.sleep(0.1)
        told = holds_on.heads[0]
        info = await gcs.GetClusterInfo(EMPTY)
        assert (told.address, told.head_number) == (f"{info.host}:{info.port}", info.head_number)
        assert told.cluster_id == cluster_id
        await holds_on.process.spawn(holds_on.join())
        num_told = len(holds_on.heads)
        await asyncio.sleep(5)
        assert by_itself.heads == [] and len(holds_on.heads) == num_told

    play(script)
