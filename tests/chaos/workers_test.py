"""A worker ends, whatever it does and however: its task runs again or says how it ended, and what it held
comes back."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from ray_mono.exceptions import ActorDiedError, ActorUnavailableError, OwnerDiedError, WorkerCrashedError
from tests.chaos.victims import Victims, lines_of
from tests.integration.bounded import get
from tests.integration.clusters import signal_all
from tests.waiting import wait_until

Start = Callable[..., Victims]
MIB = 1 << 20
HOW = {
    "os._exit": "exited with code 3",
    "SIGKILL": r"was killed by signal 9 \(SIGKILL\), which this cluster did not send",
    "SIGSEGV": r"was killed by signal 11 \(SIGSEGV\)",
    "SIGTERM": r"was killed by signal 15 \(SIGTERM\)",
    "sys.exit": r"its code raised SystemExit\(3\)",
}
"""What an error says of each end."""


def end(how: str) -> None:
    if how == "os._exit":
        os._exit(3)
    if how == "sys.exit":
        sys.exit(3)
    if how == "SIGSEGV":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.Signals[how])
    time.sleep(60)


@ray.remote(max_retries=0)
def die(how: str) -> None:
    print("the last thing that it said", file=sys.stderr)
    end(how)


@ray.remote(max_retries=2)
def die_twice(log: str, how: str) -> str:
    with open(log, "a") as file:
        file.write("run\n")
    if len(lines_of(Path(log))) <= 2:
        end(how)
    return "done"


@ray.remote
def add(one: int, other: int) -> int:
    return one + other


def all_is_back() -> None:
    """No lease is out, and nothing lies in the store."""
    cluster = ray.cluster_resources()
    wait_until(lambda: ray.available_resources()["CPU"] == cluster["CPU"], "the CPUs come back")
    wait_until(lambda: holds_nothing(internal_state.store_stats()), "the store is empty")


def holds_nothing(stats: Any) -> bool:
    return not (stats.used_bytes or stats.num_unsealed or stats.num_pins)


@pytest.mark.parametrize("how", HOW)
def test_a_task_whose_worker_ends_runs_again_or_says_how_that_ended(
    start: Start, tmp_path: Path, how: str
) -> None:
    start()
    with pytest.raises(WorkerCrashedError, match=HOW[how]) as crashed:
        get(die.remote(how))
    said = "Segmentation fault" if how == "SIGSEGV" else "the last thing that it said"
    assert said in str(crashed.value) and "output in" in str(crashed.value)
    log = tmp_path / "log"
    assert get(die_twice.remote(str(log), how)) == "done"
    assert len(lines_of(log)) == 3
    all_is_back()


def test_an_idle_worker_that_is_killed_is_not_missed(start: Start) -> None:
    victims = start()
    get([add.remote(1, 2) for _ in range(50)])
    for _ in range(3):
        signal_all(victims.workers(), signal.SIGKILL)
        # Some of these are pushed to workers that are dead, and not known to be.
        assert get([add.remote(number, 1) for number in range(50)]) == list(range(1, 51))


@ray.remote(max_retries=0)
def hold(big: Any, returns: bool) -> Any:
    """Reads a value in the store, writes another one, and dies in the middle of a third."""
    kept = [big, ray.put(np.ones(MIB))]
    if returns:
        return kept[0] * 2
    os.kill(os.getpid(), signal.SIGKILL)
    return None


class DiesWhenPickled:
    """Its buffers are written into the store when this strikes."""

    def __init__(self) -> None:
        self.array = np.ones(2 * MIB)

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        return DiesWhenPickled, ()


@ray.remote(max_retries=0)
def return_half() -> Any:
    return [np.ones(MIB), DiesWhenPickled()]


def test_what_a_dead_worker_held_of_the_store_is_free(start: Start) -> None:
    start()
    big = ray.put(np.ones(MIB))
    with pytest.raises(WorkerCrashedError):
        get(hold.remote(big, False))
    assert get(hold.remote(big, True)).sum() == 2 * MIB
    with pytest.raises(WorkerCrashedError):
        get(return_half.remote())
    del big
    all_is_back()


@ray.remote(num_cpus=0)
class Maker:
    def make(self) -> Any:
        return [ray.put(np.ones(MIB)), ray.put("small")]

    def pid(self) -> int:
        return os.getpid()


def test_an_object_whose_owner_died_says_why(start: Start) -> None:
    start()
    maker = Maker.remote()
    references = get(maker.make.remote())
    os.kill(get(maker.pid.remote()), signal.SIGKILL)
    for reference in references:
        with pytest.raises(OwnerDiedError, match="has ended: worker pid .*SIGKILL"):
            get(reference)


# ---- actors


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self, log: str) -> None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number

    def die(self, how: str) -> None:
        end(how)


@pytest.mark.parametrize("how", ["os._exit", "SIGKILL", "SIGSEGV"])
def test_an_actor_starts_again_as_often_as_it_may_and_then_says_how_it_ended(
    start: Start, tmp_path: Path, how: str
) -> None:
    start()
    log = tmp_path / "log"
    actor = Counter.options(max_restarts=2).remote(str(log))
    for starts in (1, 2):
        assert get(actor.next.remote()) == 1
        with pytest.raises((ActorDiedError, ActorUnavailableError)):
            get(actor.die.remote(how))
        wait_until(lambda starts=starts: len(lines_of(log)) == starts + 1, "it starts again")
        wait_until(lambda: answers(actor), "it answers")
    with pytest.raises(ActorDiedError, match=HOW[how]):
        get(actor.die.remote(how))
    with pytest.raises(ActorDiedError, match=HOW[how]):
        get(actor.next.remote())
    assert len(lines_of(log)) == 3


def answers(actor: Any) -> bool:
    try:
        return bool(get(actor.__ray_ready__.remote()))
    except ActorUnavailableError:
        return False


def test_queued_calls_wait_for_the_next_process_in_their_order(start: Start, tmp_path: Path) -> None:
    start()
    log = tmp_path / "log"
    actor = Counter.options(max_restarts=-1, max_task_retries=-1).remote(str(log))
    get(actor.next.remote())
    for _ in range(3):
        calls = [actor.next.remote() for _ in range(200)]
        os.kill(int(lines_of(log)[-1]), signal.SIGKILL)
        values = get(calls)
        # Each process counts from 1; what the dead one had answered is not run again.
        assert all(
            later == earlier + 1 or later == 1 for earlier, later in zip(values, values[1:], strict=False)
        )
    assert len(lines_of(log)) == 4


def test_calls_behind_one_that_ends_each_process_outlive_it(start: Start, tmp_path: Path) -> None:
    start()
    actor = Counter.options(max_restarts=-1, max_task_retries=1).remote(str(tmp_path / "log"))
    get(actor.next.remote())
    deadly, *behind = [actor.die.remote("SIGKILL"), *(actor.next.remote() for _ in range(5))]
    with pytest.raises(ActorUnavailableError):
        get(deadly)
    assert get(behind) == [1, 2, 3, 4, 5]
