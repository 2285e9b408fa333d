"""Who comes while the head is away waits for it: a new driver, and commands. And the end of that."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import ray_mono as ray
from ray_mono.core_worker.process import current
from tests.chaos.victims import Victims
from tests.integration.clusters import run_command
from tests.integration.scripts import Script
from tests.waiting import wait_until

NEW_DRIVER = """
import sys
import ray_mono as ray

ray.init(address=sys.argv[1])
print("joined with", len(ray.nodes()), "node")
"""
LEAVING_DRIVER = """
import sys
import ray_mono as ray

ray.init(address=sys.argv[1])

@ray.remote
def one():
    return 1

assert ray.get(one.remote()) == 1
print("ready", flush=True)
sys.stdin.readline()
ray.shutdown()
print("left")
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


def test_a_driver_leaves_without_the_head_and_its_job_is_finished_when_that_is_back(
    start: Callable[..., Victims], tmp_path: Path
) -> None:
    victims = start()
    (tmp_path / "driver").write_text(LEAVING_DRIVER)
    driver = Script(tmp_path / "driver", ray.get_runtime_context().gcs_address)
    driver.wait_for_line("ready")
    with victims.without_head():
        driver.say("leave")
        told = driver.check_ended_well()
    assert "left" in told and "is gone: it has been away for" in told and "did not answer" not in told
    state = current.require().global_state
    wait_until(lambda: [job.is_finished for job in state.jobs()] == [False, True], "its job is finished")


def test_a_cluster_that_has_ended_is_not_waited_for(start: Callable[..., Victims]) -> None:
    start()
    address = ray.get_runtime_context().gcs_address
    ray.shutdown()
    done = run_command("status", f"--address={address}")
    assert done.status == 1 and "no cluster answers at" in done.error


def test_a_head_that_stays_away_ends_the_node_and_the_driver_is_told_why(
    start: Callable[..., Victims], caplog: pytest.LogCaptureFixture
) -> None:
    victims = start(_system_config={"raylet": {"gcs_reconnect_timeout_s": 3.0}})
    victims.head.suspend()
    why = r"no head has confirmed this node for 3 s \(.*/sockets/gcs: .*did not answer within"
    with pytest.raises(ray.exceptions.RpcError, match=why):
        ray.get_actor("anybody")
    [told] = [record.getMessage() for record in caplog.records if "raylet is gone" in record.getMessage()]
    assert re.search(why, told)
