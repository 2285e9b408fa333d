"""A driver dies, or is stopped: what it started goes, detached actors stay, and other drivers notice
nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from ray_mono.util import list_named_actors
from tests.integration.bounded import get
from tests.integration.clusters import CommandLineCluster
from tests.integration.scripts import Script
from tests.waiting import wait_until

PROGRAM = """
import sys, time
import numpy as np
import ray_mono as ray

ray.init(address=sys.argv[1], namespace="here")

@ray.remote(num_cpus=0)
class Actor:
    def call(self):
        return "called"

@ray.remote
def run(path):
    open(path, "w").close()
    time.sleep(1000)

kept = ray.put(np.ones(1 << 20))
actor = Actor.options(name="mortal").remote()
detached = Actor.options(name="detached", lifetime="detached").remote()
ray.get([actor.call.remote(), detached.call.remote()])
running = run.remote(sys.argv[2])
waiting = [run.remote(sys.argv[2]) for _ in range(10)]
print("ready", flush=True)
for line in sys.stdin:
    print(ray.get(actor.call.remote()), flush=True)
"""


@pytest.fixture
def cluster(session_base: Path) -> Iterator[CommandLineCluster]:
    """This process is another driver there."""
    made = CommandLineCluster(session_base, num_cpus=2)
    try:
        ray.init(address=made.address, namespace="here")
        yield made
    finally:
        ray.shutdown()
        made.stop()


Drive = Callable[[], Script]


@pytest.fixture
def drive(cluster: CommandLineCluster, tmp_path: Path) -> Iterator[Drive]:
    """Starts the other driver."""
    path = tmp_path / "driver.py"
    path.write_text(PROGRAM)
    scripts: list[Script] = []

    def run() -> Script:
        script = Script(path, cluster.address, str(tmp_path / "runs"))
        scripts.append(script)
        script.wait_for_line("ready")
        wait_until((tmp_path / "runs").exists, "its task runs")
        return script

    yield run
    for script in scripts:
        script.kill()


@ray.remote(num_cpus=0)
class Mine:
    def __init__(self) -> None:
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number


@ray.remote
def add(one: int, other: int) -> int:
    return one + other


def test_with_a_driver_that_is_killed_goes_what_is_its_own_and_nothing_else(drive: Drive) -> None:
    mine = Mine.remote()
    assert get(mine.next.remote()) == 1
    script = drive()
    used_bytes = internal_state.store_stats().used_bytes
    assert used_bytes >= 8 << 20
    script.kill()
    wait_until(lambda: list_named_actors() == ["detached"], "its other actor is gone")
    wait_until(lambda: ray.available_resources().get("CPU") == 2, "its tasks are gone")
    wait_until(lambda: internal_state.store_stats().used_bytes == 0, "its objects are gone")
    assert get([mine.next.remote(), add.remote(1, 2)]) == [2, 3]
    detached = ray.get_actor("detached")
    assert get(detached.call.remote()) == "called"
    ray.kill(detached)


def test_a_driver_that_was_stopped_goes_on_where_it_was(drive: Drive) -> None:
    mine = Mine.remote()
    script = drive()
    process = psutil.Process(script.pid)
    process.send_signal(signal.SIGSTOP)
    # Another driver's work goes on meanwhile.
    for number in range(1, 20):
        assert get(mine.next.remote()) == number
    process.send_signal(signal.SIGCONT)
    script.say("call")
    script.wait_for_line("called")
    assert sorted(list_named_actors()) == ["detached", "mortal"]
    script.kill()
    wait_until(lambda: list_named_actors() == ["detached"], "its other actor is gone")
    ray.kill(ray.get_actor("detached"))
