"""Who comes while the head is away waits for it: a new driver, and commands."""

from __future__ import annotations

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
COMMAND = """
import runpy
runpy.run_module("ray_mono.scripts", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("how", ["without_head", "stopped_head"])
def test_a_new_driver_and_a_command_wait_for_the_head_and_say_so(
    start: Callable[..., Victims], tmp_path: Path, how: str
) -> None:
    victims = start()
    address = ray.get_runtime_context().gcs_address
    for name, text in (("driver", NEW_DRIVER), ("command", COMMAND)):
        (tmp_path / name).write_text(text)
    with getattr(victims, how)():
        # One of the places is wrong, too.
        driver = Script(tmp_path / "driver", f"127.0.0.1:1,{address}")
        status = Script(tmp_path / "command", "status", f"--address={address}")
        for waiting in (driver, status):
            waiting.wait_for_line(f"The head of the cluster at {address} does not answer")
    assert "joined with 1 node" in driver.check_ended_well()
    told = status.check_ended_well()
    assert "Nodes: 1 alive" in told and told.count("does not answer") == 1


def test_a_cluster_that_has_ended_is_not_waited_for(start: Callable[..., Victims]) -> None:
    start()
    address = ray.get_runtime_context().gcs_address
    ray.shutdown()
    done = run_command("status", f"--address={address}")
    assert done.status == 1 and "no cluster answers at" in done.error
