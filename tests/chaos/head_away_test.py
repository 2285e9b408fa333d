"""Who comes while the head is away waits for it: a new driver, and commands."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from pathlib import Path

import pytest

import ray_mono as ray
from tests.chaos.victims import Victims
from tests.integration.clusters import run_command
from tests.integration.scripts import Script

NEW_DRIVER = """
import sys
import ray_mono as ray

ray.init(address=sys.argv[1])
print("joined with", len(ray.nodes()), "node")
"""


@pytest.mark.parametrize("how", ["without_head", "stopped_head"])
def test_a_new_driver_and_a_command_wait_for_the_head_and_say_so(
    start: Callable[..., Victims], tmp_path: Path, how: str
) -> None:
    victims = start()
    address = ray.get_runtime_context().gcs_address
    path = tmp_path / "driver.py"
    path.write_text(NEW_DRIVER)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        with getattr(victims, how)():
            # One of the places is wrong, too.
            driver = Script(path, f"127.0.0.1:1,{address}")
            status = threads.submit(run_command, "status", f"--address={address}")
            driver.wait_for_line(f"The head of the cluster at {address} does not answer")
            assert not status.done()
        assert "joined with 1 node" in driver.check_ended_well()
        done = status.result(60)
    assert done.status == 0 and "Nodes: 1 alive" in done.out, done.error
    assert done.error.count("does not answer") == 1


def test_a_cluster_that_has_ended_is_not_waited_for(start: Callable[..., Victims]) -> None:
    start()
    address = ray.get_runtime_context().gcs_address
    ray.shutdown()
    done = run_command("status", f"--address={address}")
    assert done.status == 1 and "no cluster answers at" in done.error
