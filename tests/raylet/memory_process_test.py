"""A raylet's process that finds its memory short."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ray_mono.common.process import is_alive
from ray_mono.protobuf import common_pb2, raylet_pb2
from tests.raylet.node_processes import JOB, Cluster, driver_of, run

TINY = {"memory_usage_threshold": 0.000001, "task_oom_retry_delay_base_ms": 300}
"""Of the memory of any machine more is used."""


@pytest.fixture
def cluster(session_base: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(session_base, stack)


def test_whoever_leased_the_worker_and_the_gcs_are_told_why_it_was_killed(cluster: Cluster) -> None:
    raylet = cluster.raylet("a", {"CPU": 1}, "--config", json.dumps(TINY))

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            await driver.register()
            grant = await driver.lease(is_retriable=True)
            worker_id = grant.worker.worker_id
            request = raylet_pb2.LostWorkerRequest(lease_id=grant.lease_id, worker_id=worker_id)
            cause = await driver.raylet.LostWorker(request)
            assert (cause.kind, cause.signal) == (common_pb2.DeathCause.OUT_OF_MEMORY, signal.SIGKILL)
            assert f"killed the worker with pid {grant.worker_pid}, which ran a task" in cause.message
            # It was the last that could be killed.
            assert cause.oom_retries == common_pb2.OomRetries(retries_max=0, pause_s=0.3)
            row = await driver.dead_worker(worker_id)
            assert row.death_cause.kind == common_pb2.DeathCause.OUT_OF_MEMORY
            memory = (await driver.state())["memory"]
            assert memory["workers_killed_by_job"] == {JOB.hex(): 1}
            assert memory["limit_bytes"] > memory["used_bytes"] > 0

    run(test())


def test_one_setting_turns_it_off(cluster: Cluster) -> None:
    settings = json.dumps({**TINY, "memory_monitor_refresh_ms": 0})
    raylet = cluster.raylet("a", {"CPU": 1}, "--config", settings)

    async def test() -> None:
        async with driver_of(cluster, raylet) as driver:
            grant = await driver.lease(is_retriable=True)
            assert (await driver.state())["memory"] == "not watched"
            assert is_alive(grant.worker_pid)

    run(test())
