"""The GCS as a whole in virtual time: nodes, jobs, workers, what follows from their ends, subscriptions."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from ray_mono.common.ids import JobID
from ray_mono.common.version import VERSION
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.scene import JOB, OWNER, GcsScene, actor_id, play, registration, until_state

EMPTY = common_pb2.Empty()


@contextlib.asynccontextmanager
async def subscription(
    gcs: gcs_rpc.GcsServiceAsyncStub, *channels: gcs_pb2.Channel, keys: tuple[bytes, ...] = ()
) -> AsyncIterator[asyncio.Queue[gcs_pb2.PubMessage | RpcError]]:
    """What arrives on the channels; an error is the last."""
    received: asyncio.Queue[gcs_pb2.PubMessage | RpcError] = asyncio.Queue()

    async def listen() -> None:
        filters = [gcs_pb2.ChannelFilter(channel=channel, keys=keys) for channel in channels]
        stream = gcs.Subscribe(gcs_pb2.SubscribeRequest(channels=filters))
        try:
            async for message in stream:
                received.put_nowait(message)
        except RpcError as error:
            received.put_nowait(error)
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.1)
    yield received
    listening.cancel()


async def next_message(received: asyncio.Queue[gcs_pb2.PubMessage | RpcError]) -> gcs_pb2.PubMessage:
    message = await received.get()
    assert isinstance(message, gcs_pb2.PubMessage)
    return message


def nodes_of(message: gcs_pb2.PubMessage) -> list[common_pb2.NodeInfo]:
    return list(gcs_pb2.NodeNews.FromString(message.payload).nodes)


def news_of(message: gcs_pb2.PubMessage) -> list[common_pb2.NodeResources]:
    return list(gcs_pb2.ResourceNews.FromString(message.payload).nodes)


def driver_job(node_id: bytes, worker_id: bytes = OWNER.binary()) -> gcs_pb2.AddJobRequest:
    driver = common_pb2.Address(worker_id=worker_id, node_id=node_id)
    return gcs_pb2.AddJobRequest(job=common_pb2.JobInfo(driver=driver, entrypoint="python x.py"))


# ---- nodes


def test_a_node_that_joins_is_published_after_the_rows_that_are_there() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        first = await scene.add_node({"CPU": 4})
        async with subscription(gcs, gcs_pb2.NODE, gcs_pb2.NODE_RESOURCES) as received:
            [row], [known] = nodes_of(await next_message(received)), news_of(await next_message(received))
            assert (row.node_id, known.node_id) == (first.node_id, first.node_id)
            second = await scene.add_node({"CPU": 2})
            [joined] = nodes_of(await next_message(received))
            assert joined.node_id == second.node_id
            await second.process.spawn(second.report(version=1, free={"CPU": 1}))
            [report] = news_of(await next_message(received))
            assert report.available.amounts == {"CPU": 10_000}

    play(script)


def test_a_raylet_that_dies_is_dead_within_a_second_because_its_connection_ends() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        async with subscription(gcs, gcs_pb2.NODE) as received:
            await next_message(received)
            began_s = scene.world.clock.time_s()
            node.process.kill("SIGKILL")
            [dead] = nodes_of(await next_message(received))
            assert dead.state == common_pb2.NODE_DEAD
            assert "did not answer health checks" in dead.death_cause.message
            assert scene.world.clock.time_s() - began_s < 1

    play(script)


def test_a_machine_that_falls_silent_is_dead_after_the_checks_that_may_fail() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        await scene.add_node({"CPU": 4}, "far")
        async with subscription(gcs, gcs_pb2.NODE) as received:
            await next_message(received)
            began_s = scene.world.clock.time_s()
            scene.world.network.crash_host("far")
            await next_message(received)
            assert 5 < scene.world.clock.time_s() - began_s < 45
            assert not (await gcs.GetAllResources(gcs_pb2.GetAllResourcesRequest())).nodes

    play(script)


def test_a_link_that_breaks_for_a_moment_kills_no_node() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        await scene.add_node({"CPU": 4}, "far")
        await asyncio.sleep(1)
        for endpoint in scene.world.network.connections_between_hosts():
            scene.world.network.break_connection(endpoint)
        await asyncio.sleep(60)
        [row] = (await gcs.GetAllNodes(EMPTY)).nodes
        assert row.state == common_pb2.NODE_ALIVE

    play(script)


def test_a_node_that_was_given_up_is_refused_and_one_that_leaves_is_dead_with_its_reason() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.KILLED, message="stop was called")
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=node.node_id, cause=cause))
        [row] = (await gcs.GetAllNodes(EMPTY)).nodes
        assert (row.state, row.death_cause) == (common_pb2.NODE_DEAD, cause)
        for call in (node.join(), node.report(version=1, free={})):
            with pytest.raises(RpcError, match="stop was called.*new id") as refused:
                await node.process.spawn(call)
            assert refused.value.code is StatusCode.FAILED_PRECONDITION

    play(script)


def test_a_node_whose_address_another_takes_over_is_dead() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        successor = common_pb2.NodeInfo()
        successor.CopyFrom(node.info)
        successor.node_id = b"s" * 28
        await gcs.RegisterNode(gcs_pb2.RegisterNodeRequest(node=successor))
        rows = (await gcs.GetAllNodes(EMPTY)).nodes
        assert [(row.node_id, row.state) for row in rows] == [
            (b"s" * 28, common_pb2.NODE_ALIVE),
            (node.node_id, common_pb2.NODE_DEAD),
        ]
        assert "taken over by node" in rows[1].death_cause.message

    play(script)


def test_a_node_that_the_gcs_does_not_know_is_told_to_register() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        with pytest.raises(RpcError) as refused:
            await gcs.ReportResources(common_pb2.NodeResources(node_id=b"x" * 28))
        assert refused.value.code is StatusCode.NOT_FOUND

    play(script)


# ---- jobs and workers


def test_a_driver_that_dies_ends_its_job_and_its_actors() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        assert (await gcs.AddJob(driver_job(node.node_id))).job_id == JOB.binary()
        await gcs.RegisterActor(registration(1))
        await gcs.RegisterActor(registration(2, is_detached=True))
        for number in (1, 2):
            await until_state(gcs, common_pb2.ALIVE, number)
        async with subscription(gcs, gcs_pb2.JOB, gcs_pb2.WORKER_DEATH) as received:
            crash = common_pb2.DeathCause(kind=common_pb2.DeathCause.WORKER_DIED, message="SIGKILL", signal=9)
            await node.process.spawn(node.report_death(OWNER.binary(), crash))
            told = [await next_message(received) for _ in range(2)]
            by_channel = {message.channel: message.payload for message in told}
            deaths = gcs_pb2.WorkerDeaths.FromString(by_channel[gcs_pb2.WORKER_DEATH])
            assert deaths.worker_ids == [OWNER.binary()]
            job = common_pb2.JobInfo.FromString(by_channel[gcs_pb2.JOB])
            assert (job.job_id, job.is_finished) == (JOB.binary(), True)
        asked = gcs_pb2.GetWorkerDeathRequest(worker_id=OWNER.binary())
        assert (await gcs.GetWorkerDeath(asked)).cause == crash
        dead = await until_state(gcs, common_pb2.DEAD, 1)
        assert dead.death_cause.kind == common_pb2.DeathCause.JOB_FINISHED and not dead.serialized_handle
        await asyncio.sleep(1)
        assert len(node.killed) == 1
        with pytest.raises(RpcError, match="job 01000000 has finished"):
            await gcs.RegisterActor(registration(3))

    play(script)


def test_the_code_of_a_job_goes_with_its_last_actor_and_outlives_a_gcs() -> None:
    def put(key: bytes) -> gcs_pb2.KvPutRequest:
        return gcs_pb2.KvPutRequest(namespace=b"fun", key=key, value=b"code")

    async def keys(gcs: gcs_rpc.GcsServiceAsyncStub) -> list[bytes]:
        return list((await gcs.KvKeys(gcs_pb2.KvKeysRequest(namespace=b"fun"))).keys)

    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        for job_id, driver in ((JOB, OWNER.binary()), (JobID.from_int(2), b"p" * 28)):
            assert (await gcs.AddJob(driver_job(node.node_id, driver))).job_id == job_id.binary()
            await gcs.KvPut(put(job_id.binary() + b"hash"))
        await gcs.RegisterActor(registration(1, is_detached=True))
        await until_state(gcs, common_pb2.ALIVE)
        await gcs.MarkJobFinished(gcs_pb2.MarkJobFinishedRequest(job_id=JobID.from_int(2).binary()))
        assert await keys(gcs) == [JOB.binary() + b"hash"]
        with pytest.raises(RpcError, match="job 02000000 has finished"):
            await gcs.KvPut(put(JobID.from_int(2).binary() + b"late"))
        await gcs.MarkJobFinished(gcs_pb2.MarkJobFinishedRequest(job_id=JOB.binary()))
        child = registration(2)
        with pytest.raises(RpcError, match="job 01000000 has finished"):
            await gcs.RegisterActor(child)
        child.creation_spec.outlives_job = True
        await gcs.RegisterActor(child)
        await until_state(gcs, common_pb2.ALIVE, 2)

        scene.kill_gcs()
        gcs = await scene.start_gcs()
        await node.process.spawn(node.join())
        assert await keys(gcs) == [JOB.binary() + b"hash"]
        async with subscription(gcs, gcs_pb2.JOB) as received:
            for number in (1, 2):
                assert await keys(gcs) == [JOB.binary() + b"hash"]
                request = gcs_pb2.KillActorRequest(actor_id=actor_id(number), force=True, no_restart=True)
                await gcs.KillActor(request)
            over = common_pb2.JobInfo.FromString((await next_message(received)).payload)
            assert (over.job_id, over.is_over) == (JOB.binary(), True)
        assert await keys(gcs) == []

    play(script)


def test_a_node_takes_its_workers_drivers_and_jobs_with_it() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.AddJob(driver_job(node.node_id))
        worker = common_pb2.WorkerInfo(worker_id=b"w" * 28, node_id=node.node_id, pid=7)
        await gcs.AddWorker(worker)
        asked = gcs_pb2.GetWorkerDeathRequest(worker_id=worker.worker_id)
        assert not (await gcs.GetWorkerDeath(asked)).is_known
        await gcs.RegisterActor(registration(needs={"A": 1}, owner_node_id=node.node_id))
        async with subscription(gcs, gcs_pb2.WORKER_DEATH) as received:
            await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=node.node_id))
            deaths = gcs_pb2.WorkerDeaths.FromString((await next_message(received)).payload)
            assert deaths.worker_ids == [worker.worker_id]
        [row] = (await gcs.GetAllWorkers(EMPTY)).workers
        assert not row.is_alive
        death = (await gcs.GetWorkerDeath(asked)).cause
        assert death.kind == common_pb2.DeathCause.NODE_DIED
        [job] = (await gcs.GetAllJobs(EMPTY)).jobs
        assert job.is_finished
        # The driver itself may live, and read this.
        why = (await until_state(gcs, common_pb2.DEAD)).death_cause.message
        assert f"the driver of its job 01000000 is lost (its node {node.node_id.hex()} died: " in why

    play(script)


def test_a_job_whose_driver_did_not_know_its_node_yet_ends_with_that_node_also_after_a_restart() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.AddJob(driver_job(b""))
        driver = common_pb2.WorkerInfo(
            worker_id=OWNER.binary(), node_id=node.node_id, type=common_pb2.DRIVER, job_id=JOB.binary()
        )
        await gcs.AddWorker(driver)
        [job] = (await gcs.GetAllJobs(EMPTY)).jobs
        assert (job.driver.node_id, job.entrypoint) == (node.node_id, "python x.py")
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=node.node_id))
        [job] = (await gcs.GetAllJobs(EMPTY)).jobs
        assert job.is_finished

    play(script)


def test_a_driver_of_which_its_node_told_after_its_own_end_is_dead_and_its_job_is_finished() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.AddJob(driver_job(b""))
        await gcs.UnregisterNode(gcs_pb2.UnregisterNodeRequest(node_id=node.node_id))
        await gcs.AddWorker(
            common_pb2.WorkerInfo(worker_id=OWNER.binary(), node_id=node.node_id, type=common_pb2.DRIVER)
        )
        [job] = (await gcs.GetAllJobs(EMPTY)).jobs
        assert job.is_finished
        [row] = (await gcs.GetAllWorkers(EMPTY)).workers
        assert (row.is_alive, row.death_cause.kind) == (False, common_pb2.DeathCause.NODE_DIED)

    play(script)


def test_job_ids_are_the_gcss_to_give() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        with pytest.raises(RpcError, match="counted by the GCS"):
            await gcs.AddJob(gcs_pb2.AddJobRequest(job=common_pb2.JobInfo(job_id=b"mine")))

    play(script)


# ---- key-value store and messages


def test_the_key_value_store_answers_as_its_messages_say() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()

        def put(key: bytes, value: bytes, overwrite: bool) -> gcs_pb2.KvPutRequest:
            return gcs_pb2.KvPutRequest(namespace=b"ns", key=key, value=value, overwrite=overwrite)

        assert (await gcs.KvPut(put(b"a", b"1", False))).added
        assert not (await gcs.KvPut(put(b"a", b"2", False))).added
        await gcs.KvPut(put(b"b", b"3", True))
        get = await gcs.KvGet(gcs_pb2.KvGetRequest(namespace=b"ns", key=b"a"))
        assert (get.found, get.value) == (True, b"1")
        assert not (await gcs.KvGet(gcs_pb2.KvGetRequest(namespace=b"ns", key=b"x"))).found
        assert (await gcs.KvExists(gcs_pb2.KvGetRequest(namespace=b"ns", key=b"b"))).exists
        assert (await gcs.KvKeys(gcs_pb2.KvKeysRequest(namespace=b"ns"))).keys == [b"a", b"b"]
        assert (await gcs.KvDel(gcs_pb2.KvDelRequest(namespace=b"ns", key=b"", by_prefix=True))).deleted == 2

    play(script)


def test_log_lines_reach_the_driver_of_their_job_and_nobody_else() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        async with subscription(gcs, gcs_pb2.LOG, keys=(b"job1",)) as received:
            for key in (b"job2", b"job1"):
                message = gcs_pb2.PubMessage(channel=gcs_pb2.LOG, key=key, payload=b"lines of " + key)
                await gcs.Publish(gcs_pb2.PublishRequest(message=message))
            assert (await next_message(received)).payload == b"lines of job1"
        with pytest.raises(RpcError, match="must be one of ERROR, LOG, .*COLLECT_GARBAGE, got NODE"):
            await gcs.Publish(gcs_pb2.PublishRequest(message=gcs_pb2.PubMessage(channel=gcs_pb2.NODE)))

    play(script)


def test_a_subscriber_that_left_is_forgotten() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        assert scene.server is not None
        subscriptions = scene.server.cluster.subscriptions
        async with subscription(gcs, gcs_pb2.LOG):
            assert len(subscriptions.all()) == 1
        await asyncio.sleep(1)
        assert subscriptions.all() == []

    play(script)


# ---- what it tells of itself


def test_it_tells_its_cluster_and_its_state() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.RegisterActor(registration(needs={"A": 1}, name="one"))
        await asyncio.sleep(5)
        info = await gcs.GetClusterInfo(EMPTY)
        assert (len(info.cluster_id), info.version) == (28, VERSION)
        assert info.python_version.startswith("3.") and f"{info.host}:{info.port}" == scene.address
        state = json.loads((await gcs.DumpState(EMPTY)).json)
        assert state["nodes"][0]["node_id"] == node.node_id.hex()
        assert state["actors"]["count_by_state"] == {"PENDING_CREATION": 1}
        [actor] = state["actors"]["living"]
        assert actor["name"] == "one" and "needs {A: 1}" in actor["pending_reason"]

    play(script)
