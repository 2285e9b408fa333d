"""Ray's settings by Ray's names, of a real cluster: `_system_config`, --system-config and what is accepted
though it changes nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono.exceptions import ObjectReconstructionFailedError
from tests.integration.bounded import get
from tests.integration.clusters import CommandLineCluster, service_pid
from tests.waiting import wait_until

SETTINGS = {
    "health_check_period_ms": 100,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
    "max_lineage_bytes": 1,
    "object_store_full_delay_ms": 100,
}


def test_settings_of_the_head_count_in_all_processes(session_base: Path) -> None:
    cluster = CommandLineCluster(session_base, num_cpus=1, system_config=SETTINGS)
    other = cluster.add_node(num_cpus=1, resources={"there": 1})
    ray.init(address=cluster.address)

    @ray.remote(resources={"there": 0.1}, max_retries=-1)
    def make() -> Any:
        return np.zeros(1 << 18, np.uint8)

    try:
        lost = make.remote()
        ray.wait([lost], fetch_local=False)
        pid = service_pid(other, "raylet")
        # It says nothing any more: by default that would be noticed after more than half a minute.
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: len([node for node in ray.nodes() if node["Alive"]]) == 1, "the node is dead")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ObjectReconstructionFailedError) as caught:
            get(lost)
        assert "max_lineage_bytes" in str(caught.value)
    finally:
        ray.shutdown()
        cluster.stop()


def test_what_changes_nothing_is_accepted_and_what_is_gone_is_refused(session_base: Path) -> None:
    with pytest.raises(RuntimeError, match="no argument storage, which Ray has removed as well"):
        ray.init(address="local", storage="/a")
    with pytest.raises(ValueError, match="no setting 'raylet_heartbeat_ms'"):
        ray.init(address="local", _system_config={"raylet_heartbeat_ms": 1})
    ray.init(address="local", num_cpus=1, _enable_object_reconstruction=True, _system_config=SETTINGS)
    ray.shutdown()
