"""The wall clock jumps, and processes stand still for a while: whoever waits for them waits, and nothing is
lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import ray_mono as ray
from tests.chaos.victims import Victims
from tests.integration.bounded import get
from tests.integration.scripts import Script

Start = Callable[..., Victims]

JUMPING = """
import os
import time

_real_s, _real_ns, _path = time.time, time.time_ns, os.environ["JUMP"]


def jumped_s():
    try:
        with open(_path) as file:
            return float(file.read() or 0)
    except OSError:
        return 0.0


time.time = lambda: _real_s() + jumped_s()
time.time_ns = lambda: _real_ns() + int(jumped_s() * 1e9)
"""

PROGRAM = """
import os
import time
import ray_mono as ray
from tests.chaos.victims import Victims

ray.init(address="local", num_cpus=2)
victims = Victims()

@ray.remote
def say(text):
    print(text)
    return time.time()

@ray.remote
def sleep():
    time.sleep(1)
    return "slept"

@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Counter:
    def __init__(self):
        self.number = 0
    def next(self):
        self.number += 1
        return self.number
    def items(self, number):
        yield from range(number)

counter = Counter.remote()
assert ray.get(counter.next.remote(), timeout=60) == 1
for number, jump_s in enumerate((0, 86400, -86400, 3600, -3600, 0)):
    running = sleep.remote()
    with open(os.environ["JUMP"], "w") as file:
        file.write(str(jump_s))
    shown_s = ray.get(say.remote(f"line {number}."), timeout=60)
    # The workers' clock has jumped as well.
    assert abs(shown_s - time.time()) < 600
    assert ray.get(running, timeout=60) == "slept"
    assert ray.get(counter.next.remote(), timeout=60) == number + 2
    items = counter.items.options(num_returns="streaming").remote(3)
    assert [ray.get(item, timeout=60) for item in items] == [0, 1, 2]
    other = Counter.remote()
    assert ray.get(other.next.remote(), timeout=60) == 1
    ready, waiting = ray.wait([sleep.remote()], timeout=0.2)
    assert not ready
    try:
        ray.get(waiting[0], timeout=0.2)
        raise AssertionError("it did not time out")
    except ray.exceptions.GetTimeoutError:
        pass
    assert len([node for node in ray.nodes() if node["Alive"]]) == 1
    if number == 2:
        victims.end_of(victims.log_monitor)
        victims.kill_head()
print("the end")
ray.shutdown()
"""


def test_a_wall_clock_that_jumps_is_not_noticed(
    session_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process of the cluster has this clock. (What is written in C has the machine's.)"""
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("JUMP", str(tmp_path / "jump"))
    monkeypatch.setenv("RAY_MONO_DEDUP_LOGS", "0")
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    output = Script(path).check_ended_well()
    assert "the end" in output and "is away" not in output
    for number in range(6):
        assert output.count(f"line {number}.") == 1, output


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number

    def pid(self) -> int:
        return os.getpid()


@ray.remote
def add(one: int, other: int) -> int:
    return one + other


STOPPED_S = 2.0


def work(counter: Counter, before: int) -> None:
    """All kinds of it, some of which waits for what stands still."""
    assert get([add.remote(number, 1) for number in range(50)]) == list(range(1, 51))
    assert get(ray.put(b"x" * (1 << 20))) == b"x" * (1 << 20)
    assert get(Counter.remote().next.remote()) == 1  # type: ignore[attr-defined]
    assert get(counter.next.remote()) == before + 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "who", ["raylet", "object_manager", "reaper", "log_monitor", "head", "template", "actor"]
)
def test_a_process_that_stands_still_for_a_while_is_waited_for(start: Start, who: str) -> None:
    victims = start()
    counter = Counter.remote()
    get([add.remote(1, 1), counter.next.remote()])
    pid = get(counter.pid.remote()) if who == "actor" else getattr(victims, who).pid
    os.kill(pid, signal.SIGSTOP)
    goes_on = threading.Timer(STOPPED_S, os.kill, (pid, signal.SIGCONT))
    goes_on.start()
    try:
        work(counter, 1)
    finally:
        goes_on.join()
    work(counter, 2)
    assert len([node for node in ray.nodes() if node["Alive"]]) == 1
