"""A process of a node that runs no tasks dies: another one takes its place, or the node ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

import ray_mono as ray
from ray_mono.exceptions import WorkerCrashedError
from tests.chaos.victims import Victims
from tests.integration.bounded import get
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
    running = [pid_after.remote(1.0) for _ in range(2)]
    known = get([pid_after.remote(0) for _ in range(2)])
    template = victims.template
    template.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    assert get(counter.next.remote()) == 2
    # More than there are idle workers.
    others = [Counter.remote() for _ in range(6)]
    assert get([other.next.remote() for other in others]) == [1] * 6
    assert not template.is_running() and victims.template.pid != template.pid
    assert set(get(running)) <= {*known, *get([pid_after.remote(0.1) for _ in range(2)])}
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
