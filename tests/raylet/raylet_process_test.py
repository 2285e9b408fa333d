"""A real raylet process with a real GCS and real forks; only what workers run is fake."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_mono.common.process import is_alive
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.raylet.fake_worker import FAILS_TO_START, REFUSES_TO_EXIT
from tests.raylet.node_processes import JOB, Cluster, ServiceProcess, driver_of, run


@pytest.fixture
def cluster(session_base: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(session_base, stack)


def idle(state: dict[str, Any]) -> list[int]:
    return [worker["pid"] for worker in state["workers"] if worker["state"] == "idle"]


def test_a_node_registers_prestarts_grants_and_leaves_nothing_behind(cluster: Cluster) -> None:
    raylet = cluster.raylet("a", {"CPU": 2, "A": 0.5})

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            reply = await driver.register()
            assert f"{reply.node.host}:{reply.node.node_manager_port}" == raylet.address
            [row] = (await driver.gcs.GetAllNodes(common_pb2.Empty())).nodes
            assert (row.node_id, row.state) == (reply.node.node_id, common_pb2.NODE_ALIVE)
            prestarted = idle(await driver.until(lambda state: len(idle(state)) == 2))
            grant = await driver.lease({"CPU": 1, "A": 0.5})
            assert grant.worker_pid in prestarted
            assert (await driver.state())["resources"]["available"] == {"CPU": 1.0}
            driver.give_back(grant)
            again = await driver.lease()
            assert again.worker_pid == grant.worker_pid
            driver.give_back(again)
            children.extend(psutil.Process(raylet.process.pid).children(recursive=True))

    children: list[psutil.Process] = []
    run(test())
    assert len(children) == 3  # the template and two workers
    assert raylet.stop() == 0
    assert [child for child in children if is_alive(child.pid)] == []


def test_the_gcs_hears_of_resources_and_of_a_node_that_leaves(cluster: Cluster) -> None:
    raylet = cluster.raylet("a", {"CPU": 1})

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            await driver.lease()
            waiting = driver.ask({"CPU": 0.5})
            while True:
                [report] = (await driver.gcs.GetAllResources(gcs_pb2.GetAllResourcesRequest())).nodes
                if report.queued:
                    break
                await asyncio.sleep(0.01)
            assert dict(report.available.amounts) == {}
            assert dict(report.queued[0].resources.amounts) == {"CPU": 5000}
            raylet.process.terminate()
            with pytest.raises(RpcError) as refused:
                await waiting
            assert refused.value.code is StatusCode.UNAVAILABLE
            while (row := (await driver.gcs.GetAllNodes(common_pb2.Empty())).nodes[0]).state == 0:
                await asyncio.sleep(0.01)
            assert row.death_cause.message == "its raylet was stopped"

    run(test())
    assert raylet.wait() == 0


@pytest.mark.parametrize(
    ("end", "code", "signum", "message"),
    [
        ("exit 3", 3, 0, "exited with code 3"),
        ("kill", 0, 9, "was killed by signal 9 (SIGKILL), which this cluster did not send"),
    ],
)
def test_the_death_of_a_worker_frees_its_lease_and_is_told_with_its_cause(
    cluster: Cluster, end: str, code: int, signum: int, message: str
) -> None:
    raylet = cluster.raylet("a", {"CPU": 1})

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            grant = await driver.lease()
            waiting = driver.ask()
            if end == "kill":
                os.kill(grant.worker_pid, signal.SIGKILL)
            else:
                with pytest.raises(RpcError):
                    await driver.push(grant, end)
            second = (await waiting).grant
            assert second.worker_pid != grant.worker_pid
            row = await driver.dead_worker(grant.worker.worker_id)
            cause = row.death_cause
            assert (cause.kind, cause.exit_code, cause.signal) == (cause.WORKER_DIED, code, signum)
            assert cause.message.startswith(
                f"worker pid {grant.worker_pid} {message}; node 127.0.0.1, output in "
            )
            # Whoever leased it is told the same.
            lost = raylet_pb2.LostWorkerRequest(lease_id=grant.lease_id, worker_id=grant.worker.worker_id)
            assert await driver.raylet.LostWorker(lost) == cause

    run(test())


def test_a_worker_is_killed_on_order_and_the_order_is_its_cause(cluster: Cluster) -> None:
    raylet = cluster.raylet("a", {"CPU": 1})

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            grant = await driver.lease(for_actor=True)
            cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.KILLED, message="ray.kill was called")
            request = raylet_pb2.KillWorkerRequest(worker_id=grant.worker.worker_id, force=True, cause=cause)
            await driver.raylet.KillWorker(request)
            row = await driver.dead_worker(grant.worker.worker_id)
            assert (row.death_cause.kind, row.death_cause.message) == (cause.kind, cause.message)
            assert row.death_cause.signal == signal.SIGKILL

    run(test())


def test_the_end_of_a_driver_ends_its_workers_and_its_job(cluster: Cluster) -> None:
    raylet = cluster.raylet("a", {"CPU": 3})

    async def test() -> None:
        async with driver_of(cluster, raylet) as watcher:
            async with driver_of(cluster, raylet) as driver:
                await driver.register()
                busy = await driver.lease()
                bound = await driver.lease()
                actor = await watcher.lease({}, lease_id=b"actor", for_actor=True)
                driver.give_back(bound)
                await driver.until(lambda state: bound.worker_pid in idle(state))
            row = await watcher.dead_worker(driver.worker_id)
            assert (row.type, row.job_id) == (common_pb2.DRIVER, JOB)
            assert f"driver pid {os.getpid()} disconnected" in row.death_cause.message
            await watcher.dead_worker(busy.worker.worker_id)
            await watcher.dead_worker(bound.worker.worker_id)
            state = await watcher.state()
            assert actor.worker_pid in [worker["pid"] for worker in state["workers"]]
            assert state["resources"]["available"] == {"CPU": 3.0}

    run(test())


def test_an_actors_lease_that_the_gcs_does_not_know_ends_with_the_connection_that_asked(
    cluster: Cluster,
) -> None:
    raylet = cluster.raylet("a", {"CPU": 1})

    async def test() -> None:
        async with driver_of(cluster, raylet) as watcher:
            async with driver_of(cluster, raylet) as driver:
                actor = await driver.lease(for_actor=True)
            row = await watcher.dead_worker(actor.worker.worker_id)
            assert "the GCS has no actor for it" in row.death_cause.message
            await watcher.until(lambda state: state["resources"]["available"] == {"CPU": 1.0})

    run(test())


def test_blocked_workers_lend_their_cpus(cluster: Cluster) -> None:
    raylet = cluster.raylet("a", {"CPU": 1})

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            parent = await driver.lease()
            waiting = driver.ask()
            await driver.push(parent, "block")
            child = (await waiting).grant
            await driver.push(parent, "unblock")
            state = await driver.state()
            assert state["resources"] == {
                "total": {"CPU": 1.0},
                "available": {"CPU": -1.0},
                "is_overdrawn": True,
            }
            [report] = (await driver.gcs.GetAllResources(gcs_pb2.GetAllResourcesRequest())).nodes
            assert all(amount >= 0 for amount in report.available.amounts.values())
            driver.give_back(child)
            await driver.until(lambda state: not state["resources"]["is_overdrawn"])

    run(test())


def test_a_lease_that_does_not_fit_here_is_sent_to_another_node_and_granted_there(cluster: Cluster) -> None:
    first, second = cluster.raylet("a", {"CPU": 1}), cluster.raylet("b", {"CPU": 1, "B": 1})

    async def test() -> None:
        async with driver_of(cluster, first) as driver, driver_of(cluster, second, by_tcp=True) as there:
            await driver.until(lambda state: bool(state["other_nodes"]))
            reply = await driver.ask({"B": 1})
            spilled = reply.spillback
            assert f"{spilled.host}:{spilled.port}" == second.address
            granted = await there.lease({"B": 1}, grant_or_reject=True)
            assert granted.worker.node_id == spilled.node_id
            rejected = await there.ask({"B": 1}, grant_or_reject=True)
            assert rejected.rejection.kind == raylet_pb2.Rejection.NOT_HERE
            waiting = driver.ask({"B": 1})
            there.give_back(granted)
            assert (await waiting).HasField("spillback")
            # The end of a requester's connection from elsewhere ends its leases too.
            granted = await there.lease({"B": 1}, grant_or_reject=True)
            there.channel.close()
            await driver.dead_worker(granted.worker.worker_id)

    run(test())


def test_the_driver_of_a_task_that_fits_nowhere_is_warned_and_a_new_node_takes_it(cluster: Cluster) -> None:
    raylet = cluster.raylet("a", {"CPU": 1, "A": 1})

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            error = asyncio.ensure_future(driver.next_error())
            waiting = driver.ask({"A": 2})
            assert (await error).message.startswith(
                "f needs {A: 2}, and no node of the cluster has that much: its only node has {A: 1, CPU: 1}."
            )
            [lease] = (await driver.state())["leases"]
            assert lease["why"] == error.result().message
            cluster.raylet("b", {"A": 2})
            assert (await waiting).HasField("spillback")

    run(test())


def test_a_cancelled_request_is_answered_and_an_abandoned_one_forgotten(cluster: Cluster) -> None:
    raylet = cluster.raylet("a", {"CPU": 1})

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            await driver.lease()
            waiting = driver.ask(lease_id=b"waiting")
            reply = await driver.raylet.CancelWorkerLease(
                raylet_pb2.CancelWorkerLeaseRequest(lease_id=b"waiting")
            )
            assert reply.cancelled
            assert (await waiting).rejection.kind == raylet_pb2.Rejection.CANCELLED
            abandoned = driver.ask(lease_id=b"abandoned")
            await driver.until(lambda state: state["num_queued"] == 1)
            abandoned.cancel()
            await driver.until(lambda state: state["num_queued"] == 0)

    run(test())


def test_bad_requests_are_refused(cluster: Cluster) -> None:
    raylet = cluster.raylet("a", {"CPU": 1})

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            group = common_pb2.SchedulingStrategy(placement_group=common_pb2.PlacementGroupStrategy())
            with pytest.raises(RpcError, match="placement_group_id takes 18 bytes"):
                await driver.ask(strategy=group)
            with pytest.raises(RpcError, match="lease_id takes 1 to 64 bytes"):
                await driver.ask(lease_id=b"x" * 65)
            with pytest.raises(RpcError, match="worker_id takes 28 bytes"):
                await driver.raylet.RegisterClient(raylet_pb2.RegisterClientRequest(worker_id=b"short"))
            stranger = raylet_pb2.RegisterClientRequest(worker_id=b"s" * 28, startup_token=999)
            with pytest.raises(RpcError, match="no worker .* with startup token 999 was started here"):
                await driver.raylet.RegisterClient(stranger)

    run(test())


def test_workers_that_fail_to_start_are_told_and_start_again_later(cluster: Cluster) -> None:
    session = cluster.session_of("a")
    session.mkdir()
    (session / FAILS_TO_START).touch()
    raylet = cluster.raylet("a", {"CPU": 1})

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            error = asyncio.ensure_future(driver.next_error())
            waiting = driver.ask()
            message = (await error).message
            assert message.startswith("Workers do not start, so tasks and actors wait: worker pid ")
            assert "exited with code 4" in message
            (session / FAILS_TO_START).unlink()
            assert (await waiting).HasField("grant")

    run(test())


def test_the_raylet_keeps_its_node_when_the_gcs_comes_back(cluster: Cluster) -> None:
    raylet = cluster.raylet("a", {"CPU": 1})
    host, port = cluster.gcs.address.split(":")

    async def leases_while_the_gcs_is_away() -> None:
        async with driver_of(cluster, raylet) as driver:
            grant = await driver.lease()
            cluster.gcs.process.kill()
            cluster.gcs.process.wait()
            driver.give_back(grant)
            grant = await driver.lease()
            os.kill(grant.worker_pid, signal.SIGKILL)
            await driver.until(lambda state: grant.worker_pid not in idle(state))
        arguments = ("--session-dir", str(cluster.base), "--storage", "memory", "--port", port)
        with ServiceProcess("ray_mono.gcs.gcs_server", *arguments) as gcs:
            assert gcs.address == f"{host}:{port}"
            async with driver_of(cluster, raylet) as driver:
                while not (nodes := (await driver.gcs.GetAllNodes(common_pb2.Empty())).nodes):
                    await asyncio.sleep(0.01)
                assert f"{nodes[0].host}:{nodes[0].node_manager_port}" == raylet.address
                # What happened meanwhile is told.
                row = await driver.dead_worker(grant.worker.worker_id)
                assert row.death_cause.signal == signal.SIGKILL
                assert raylet.stop() == 0

    run(leases_while_the_gcs_is_away())


def test_raylet_and_object_manager_share_their_fate(cluster: Cluster) -> None:
    socket = str(cluster.base / "store")
    file = f"/dev/shm/{cluster.base.name}"
    store_arguments = ("--store-only", "--store-socket", socket, "--store-file", file)
    with ServiceProcess(
        "ray_mono.object_manager.object_manager", *store_arguments, "--capacity-bytes", "10000000"
    ) as store:
        raylet = cluster.raylet("a", {"CPU": 1}, "--store-socket", socket, "--store-file", file)
        template = psutil.Process(raylet.process.pid).children()
        store.process.kill()
        assert raylet.wait() == 0
        assert [child for child in template if is_alive(child.pid)] == []
    Path(file).unlink(missing_ok=True)
    Path(socket).unlink()


def test_a_raylet_killed_by_force_takes_its_workers_with_it(cluster: Cluster) -> None:
    raylet = cluster.raylet("a", {"CPU": 2})

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            await driver.until(lambda state: len(idle(state)) == 2)

    run(test())
    children = psutil.Process(raylet.process.pid).children(recursive=True)
    raylet.process.kill()
    raylet.process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    Path(raylet.info["unix_path"]).unlink()


def test_a_worker_that_refuses_to_end_stays_and_one_that_agrees_goes(cluster: Cluster) -> None:
    session = cluster.session_of("a")
    session.mkdir()
    (session / REFUSES_TO_EXIT).touch()
    raylet = cluster.raylet("a", {"CPU": 1}, "--idle-worker-timeout-s", "0.2")

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            actors = [await driver.lease({}) for _ in range(3)]
            for grant in actors:
                driver.give_back(grant)

            def refused(state: dict[str, Any]) -> bool:
                return any("refused to end" in worker["story"] for worker in state["workers"])

            assert len((await driver.until(refused))["workers"]) == 3
            (session / REFUSES_TO_EXIT).unlink()
            await driver.until(lambda state: len(state["workers"]) == 1)

    run(test())


def test_a_wrong_command_line_is_one_line_that_says_so(session_base: Path) -> None:
    def complaint(*arguments: str) -> str:
        command = [sys.executable, "-m", "ray_mono.raylet.raylet", "--gcs-address", "h:1", *arguments]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run(
            command, env={**env, "RAY_MONO_AUTH_TOKEN": "x"}, capture_output=True, text=True
        )
        assert done.returncode == 2
        return done.stderr.strip().splitlines()[-1]

    assert "--session-dir is missing" in complaint()
    session = ("--session-dir", str(session_base))
    assert "--resources takes JSON, got 'CPU=1'" in complaint(*session, "--resources", "CPU=1")
    assert "resource 'CPU' must be a number" in complaint(*session, "--resources", '{"CPU": "two"}')
