"""A process of a node that runs no tasks dies: another one takes its place, or the node ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ray_mono as ray
from ray_mono.exceptions import ActorDiedError, WorkerCrashedError
from tests.chaos.victims import Victims
from tests.integration.bounded import get
from tests.integration.scripts import Script
from tests.waiting import wait_until

Start = Callable[..., Victims]


@ray.remote
def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@ray.remote(max_retries=0)
def end(signum: int) -> None:
    os.kill(os.getpid(), signum)


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number


# ---- the template


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_without_the_template_workers_go_on_and_new_ones_come(start: Start, how: str) -> None:
    victims = start()
    counter = Counter.remote()
    assert get(counter.next.remote()) == 1
    running = [pid_after.options(max_retries=0).remote(1.0) for _ in range(2)]
    template = victims.template
    template.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    assert get(counter.next.remote()) == 2
    # More than there are idle workers.
    others = [Counter.remote() for _ in range(6)]
    assert get([other.next.remote() for other in others]) == [1] * 6
    assert not template.is_running() and victims.template.pid != template.pid
    assert len(get(running)) == 2
    assert get(counter.next.remote()) == 3


def test_the_end_of_a_worker_whose_template_is_dead_is_noticed_and_told(start: Start) -> None:
    victims = start(num_cpus=1)
    actor = Counter.options(max_restarts=1, max_task_retries=-1).remote()
    pid = get(actor.__ray_call__.remote(lambda self: os.getpid()))
    get(pid_after.remote(0))
    template = victims.template
    template.kill()
    wait_until(lambda: not template.is_running(), "the end of the template")
    # Not every kernel tells how a process ended that is another one's child.
    with pytest.raises(WorkerCrashedError, match=r"killed by signal 9 \(SIGKILL\)|how is not known"):
        get(end.remote(signal.SIGKILL))
    os.kill(pid, signal.SIGKILL)
    assert get(actor.next.remote()) == 1
    assert get(pid_after.remote(0)) != pid


def test_the_end_of_a_worker_whose_template_is_stopped_is_told_with_its_signal(start: Start) -> None:
    victims = start(num_cpus=1)
    actor = Counter.remote()
    pid = get(actor.__ray_call__.remote(lambda self: os.getpid()))
    victims.template.suspend()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorDiedError, match=r"killed by signal 9 \(SIGKILL\)"):
        get(actor.next.remote())


# ---- the log monitor

PROGRAM = """
import ray_mono as ray
from tests.chaos.victims import Victims

ray.init(address="local", num_cpus=2)
victims = Victims()

@ray.remote
def say(text):
    print(text)

for number in range(12):
    ray.get(say.remote(f"line {number}."))
    if number % 3 == 1:
        victims.end_of(victims.log_monitor)
ray.shutdown()
"""


def test_a_log_monitor_that_dies_costs_no_line_and_doubles_none(session_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    output = Script(path).check_ended_well()
    for number in range(12):
        assert output.count(f"line {number}.") == 1, output


# ---- the object manager, the raylet, and the reaper


@pytest.mark.parametrize("who", ["object_manager", "raylet", "reaper"])
def test_without_one_of_these_the_node_ends_and_nothing_is_left(session_base: Path, who: str) -> None:
    """The driver is told, and does not wait for anything."""
    program = session_base / "program.py"
    program.write_text(NODE_PROGRAM)
    script = Script(program, who)
    output = script.check_ended_well()
    assert "the waiting call: " in output, output
    assert "left: []" in output, output


NODE_PROGRAM = """
import os, sys, time
import psutil
import ray_mono as ray
from tests.chaos.victims import Victims
from ray_mono.exceptions import RayError

ray.init(address="local", num_cpus=2)
victims = Victims()

@ray.remote
def work(seconds):
    time.sleep(seconds)

@ray.remote(num_cpus=0)
class Actor:
    def wait(self):
        time.sleep(1000)

ray.get(work.remote(0))
waiting = [Actor.remote().wait.remote(), work.remote(1000)]
ray.wait(waiting, timeout=0.5)
below = psutil.Process().children(recursive=True)
getattr(victims, sys.argv[1]).kill()
started = time.monotonic()
for reference in waiting:
    try:
        ray.get(reference, timeout=60)
    except (RayError, RuntimeError, ConnectionError) as error:
        print("the waiting call:", type(error).__name__, str(error)[:300])
print("noticed after", round(time.monotonic() - started, 1))
ray.shutdown()
gone, left = psutil.wait_procs(below, timeout=30)
print("left:", [process for process in left if process.status() != "zombie"])
"""
