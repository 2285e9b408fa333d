"""The head of a cluster ends at any moment, and its reaper starts it again. Nobody minds: who does not need
it notices nothing, who needs it waits, and nothing is lost or done twice."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono.experimental import internal_kv
from ray_mono.util import list_named_actors
from tests.chaos.victims import Victims, lines_of
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.integration.clusters import signal_all
from tests.integration.scripts import Script
from tests.waiting import wait_until

Start = Callable[..., Victims]
BIG = 1 << 20


@ray.remote
def add(one: Any, other: Any) -> Any:
    return one + other


@ray.remote
def nested(depth: int) -> int:
    return 0 if not depth else 1 + ray.get(nested.remote(depth - 1), timeout=GET_TIMEOUT_S)


@ray.remote
def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@ray.remote
def items(number: int) -> Any:
    yield from range(number)


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self, log: str = "", awaited: str = "") -> None:
        self.number = 0
        if log:
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")
        while awaited and not os.path.exists(awaited):
            time.sleep(0.01)

    def next(self) -> int:
        self.number += 1
        return self.number


def know_everything() -> Any:
    """The functions above have run here, and there is an actor."""
    actor = Counter.remote()
    get([add.remote(1, 2), nested.remote(1), pid_after.remote(0), actor.next.remote()])
    assert list(get(list(items.options(num_returns="streaming").remote(2)))) == [0, 1]
    return actor


def work(actor: Any) -> None:
    """All that needs no head."""
    numbers = get([actor.next.remote() for _ in range(50)])
    assert numbers == list(range(numbers[0], numbers[0] + 50))
    assert get([add.remote(number, 1) for number in range(200)]) == list(range(1, 201))
    big = ray.put(np.ones(BIG, np.uint8))
    assert int(get(add.remote(big, big)).sum()) == 2 * BIG
    assert get(nested.remote(3)) == 3
    ready, waiting = ray.wait([add.remote(1, 1), add.remote(2, 2)], num_returns=2, timeout=GET_TIMEOUT_S)
    assert len(ready) == 2 and not waiting
    assert get(list(items.options(num_returns="streaming").remote(20))) == list(range(20))
    # All CPUs, and so also the worker that has not run it before.
    assert len(set(get([pid_after.remote(0.2) for _ in range(2)]))) == 2


@ray.remote
def new(number: int) -> int:
    return number + 1


@pytest.mark.parametrize("how", ["without_head", "stopped_head"])
def test_what_needs_no_head_goes_on_without_one(start: Start, how: str) -> None:
    victims = start()
    actor = know_everything()
    running = pid_after.remote(1.0)
    with getattr(victims, how)():
        work(actor)
        get(running)
        assert get(new.remote(1)) == 2, "even this one goes on"
    work(actor)


def test_workers_that_start_while_there_is_no_head_run_what_is_known(start: Start) -> None:
    victims = start(num_cpus=4)
    actor = know_everything()
    actors_pid = get(actor.__ray_call__.remote(lambda self: os.getpid()))
    with victims.without_head():
        signal_all([each for each in victims.workers() if each.pid != actors_pid], signal.SIGKILL)
        assert len(set(get([pid_after.remote(0.3) for _ in range(4)]))) == 4


@ray.remote(num_cpus=0)
class New:
    def value(self) -> str:
        return "new"


def test_what_needs_the_head_waits_for_it_and_the_user_is_told_once_for_what(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    victims = start(namespace="here")
    known = Counter.options(name="known").remote()
    get(known.next.remote())
    needs: dict[str, Callable[[], Any]] = {
        "a new class": lambda: get(New.remote().value.remote()),
        "a name": lambda: get(Counter.options(name="mine").remote().next.remote()),
        "an actor by name": lambda: get(ray.get_actor("known").next.remote()),
        "a key": lambda: internal_kv._internal_kv_put(b"key", b"value"),
        "the nodes": lambda: len(ray.nodes()),
    }
    with concurrent.futures.ThreadPoolExecutor(len(needs)) as threads:
        with victims.without_head():
            waiting = {name: threads.submit(call) for name, call in needs.items()}
            wait_until(lambda: "The head (" in caplog.text, "the user is told")
            assert not any(future.done() for future in waiting.values())
        values = {name: future.result(GET_TIMEOUT_S) for name, future in waiting.items()}
    assert values == {
        "a new class": "new",
        "a name": 1,
        "an actor by name": 2,
        "a key": False,
        "the nodes": 1,
    }
    assert internal_kv._internal_kv_get(b"key") == b"value"
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    [away] = [text for text in told if "is away" in text]
    for part in ("new actors", "actors by name", "keys, and the code of functions", "60 s at most"):
        assert part in away, part


def test_an_actor_that_is_being_created_is_created_once(start: Start, tmp_path: Path) -> None:
    victims = start()
    log, go_on = tmp_path / "log", tmp_path / "go on"
    actor = Counter.remote(str(log), str(go_on))
    calls = [actor.next.remote() for _ in range(3)]
    wait_until(lambda: lines_of(log), "the constructor runs")
    for _ in range(3):
        victims.kill_head()
        assert len(ray.nodes()) == 1
    go_on.touch()
    assert get(calls) == [1, 2, 3]
    assert len(lines_of(log)) == 1


def test_a_head_that_dies_again_and_again_loses_and_doubles_nothing(start: Start, tmp_path: Path) -> None:
    victims = start(namespace="here")
    actor = know_everything()
    before = get(actor.next.remote())
    log = tmp_path / "log"
    numbers = range(8)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        for number in numbers:
            # Somewhere in the middle of what follows.
            killed = thread.submit(victims.kill_head)
            made = Counter.options(name=f"actor {number}", lifetime="detached").remote(str(log))
            assert get([made.next.remote(), made.next.remote()]) == [1, 2]
            with pytest.raises(ValueError, match="exists|taken"):
                Counter.options(name=f"actor {number}").remote()
            assert get(ray.get_actor(f"actor {number}").next.remote()) == 3
            assert get(add.remote(number, number)) == 2 * number
            internal_kv._internal_kv_put(b"%d" % number, b"%d" % number)
            killed.result(GET_TIMEOUT_S)
    assert get(actor.next.remote()) == before + 1
    names = [f"actor {number}" for number in numbers]
    assert sorted(list_named_actors()) == names
    assert len(lines_of(log)) == len(numbers)
    keys = [b"%d" % number for number in numbers]
    assert [internal_kv._internal_kv_get(key) for key in keys] == keys
    for name in names:
        ray.kill(ray.get_actor(name))
    wait_until(lambda: not list_named_actors(), "they are dead")


def test_what_is_asked_twice_since_the_head_died_is_done_once(start: Start, tmp_path: Path) -> None:
    victims = start()
    log = tmp_path / "log"
    actor = Counter.options(max_restarts=-1, max_task_retries=-1).remote(str(log))
    get(actor.next.remote())
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        for number in range(6):
            key = b"key %d" % number
            # Somewhere in the middle of what follows.
            killed = thread.submit(victims.kill_head)
            assert not internal_kv._internal_kv_put(key, b"value", overwrite=False), "it was there"
            assert internal_kv._internal_kv_put(key, b"another", overwrite=False), "it was not there"
            assert internal_kv._internal_kv_del(key) == 1
            ray.kill(actor, no_restart=False)
            wait_until(lambda most=number + 2: len(lines_of(log)) == most, "it starts again")  # type: ignore[misc]
            get(actor.next.remote())
            killed.result(GET_TIMEOUT_S)
    assert len(lines_of(log)) == 7


PROGRAM = """
import os
import signal
import ray_mono as ray
from tests.chaos.victims import Victims

ray.init(address="local", num_cpus=2)
victims = Victims()

@ray.remote
def say(text):
    print(text)

for number in range(20):
    ray.get(say.remote(f"line {number}."))
    if number % 3 == 1:
        victims.kill_head()
ray.shutdown()
"""


def test_what_workers_print_is_shown_once_whenever_the_head_dies(session_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    output = Script(path).check_ended_well()
    for number in range(20):
        assert output.count(f"line {number}.") == 1, output
