"""A driver dies, or is stopped: what it started goes, detached actors stay, and other drivers notice
nothing."""

from __future__ import annotations

import signal
import time
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


STOPPED_S = 30.0
STOPPED_PROGRAM = """
import sys, time
import numpy as np
import ray_mono as ray

ray.init(address=sys.argv[1], namespace="here")
CALLS, ITEMS, LINES = 2000, 3000, 500

@ray.remote(num_cpus=0)
class Actor:
    def __init__(self):
        self.number = 0
    def next(self, size_bytes=0):
        self.number += 1
        return self.number, bytes(size_bytes)
    def read(self, lent):
        return sum(ray.get(lent))

@ray.remote
def later(seconds):
    time.sleep(seconds)
    return 7

@ray.remote(num_cpus=0)
def items():
    for number in range(ITEMS):
        yield np.full(number, number)

@ray.remote(num_cpus=0)
def say():
    for number in range(LINES):
        print(f"line {number}.")

calling, reading = Actor.remote(), Actor.remote()
ray.get([calling.next.remote(), reading.next.remote()])
ended = later.options(max_retries=0).remote(1)
read = reading.read.remote([later.remote(1), ray.put(1)])
calls = [calling.next.remote(90_000) for _ in range(CALLS)]
stream = items.options(num_returns="streaming").remote()
said = say.remote()
made = [Actor.remote().next.remote() for _ in range(5)]
print("ready", flush=True)
sys.stdin.readline()
assert ray.get(ended) == 7 and ray.get(read) == 8
assert [number for number, _ in ray.get(calls)] == list(range(2, CALLS + 2))
assert [len(ray.get(item)) for item in stream] == list(range(ITEMS))
assert [number for number, _ in ray.get(made)] == [1] * 5
ray.get(said)
assert ray.get(Actor.remote().next.remote())[0] == 1
ray.shutdown()
print("has left", flush=True)
"""


@pytest.mark.timeout(180)
def test_a_driver_that_was_stopped_has_missed_nothing(cluster: CommandLineCluster, tmp_path: Path) -> None:
    """What came meanwhile waits for it: answers, items, lines."""
    path = tmp_path / "driver.py"
    path.write_text(STOPPED_PROGRAM)
    script, mine = Script(path, cluster.address), Mine.remote()
    script.wait_for_line("ready")
    process = psutil.Process(script.pid)
    process.suspend()
    continues_s = time.monotonic() + STOPPED_S
    number = 0
    while time.monotonic() < continues_s:
        number += 1
        assert get([mine.next.remote(), add.remote(1, 2)]) == [number, 3]
    process.resume()
    script.say("go on")
    output = script.check_ended_well()
    assert "has left" in output and "run again" not in output, output
    for line in range(500):
        assert output.count(f"line {line}.") == 1, line


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
