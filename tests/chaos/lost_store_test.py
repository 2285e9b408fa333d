"""The head's store is lost with the head (as memory storage is): those who live tell the next head what there
is. Running actors are adopted, and nobody who calls them notices."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import ray_mono as ray
from ray_mono.util import list_named_actors
from tests.chaos.victims import Victims, lines_of
from tests.integration.bounded import get
from tests.integration.scripts import Script
from tests.waiting import wait_until

Start = Callable[..., Victims]


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self, log: str = "", awaited: str = "") -> None:
        self.number = 0
        if log:
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")
        if awaited:
            wait_until(lambda: os.path.exists(awaited), "it may go on")

    def next(self) -> int:
        self.number += 1
        return self.number

    def when_there(self, path: str) -> int:
        wait_until(lambda: os.path.exists(path), "it may go on")
        return self.next()

    def pid(self) -> int:
        return os.getpid()


@ray.remote
def add(one: int, other: int) -> int:
    return one + other


@ray.remote
def new(number: int) -> int:
    return number + 1


NEW_DRIVER = """
import sys
import ray_mono as ray

ray.init(address=sys.argv[1], namespace="here")
print("it says", ray.get(ray.get_actor("named").next.remote(), timeout=60))
print("its job is", ray.get_runtime_context().get_job_id())
"""


def test_running_actors_are_adopted_and_calls_in_flight_do_not_notice(start: Start, tmp_path: Path) -> None:
    victims = start(namespace="here")
    log, go_on = tmp_path / "log", tmp_path / "go on"
    plain = Counter.options(max_restarts=1).remote(str(log))
    named = Counter.options(name="named", lifetime="detached").remote(str(log))
    before = get([plain.pid.remote(), named.pid.remote(), add.remote(1, 2)])
    calls = [plain.when_there.remote(str(go_on)), plain.next.remote()]
    victims.lose_head_and_store()
    # What only the head knows is known again.
    assert get(ray.get_actor("named").next.remote()) == 1
    assert list_named_actors() == ["named"]
    with pytest.raises(ValueError, match="nobody"):
        ray.get_actor("nobody")
    with pytest.raises(ValueError, match="exists|taken"):
        Counter.options(name="named").remote()
    go_on.touch()
    assert get(calls) == [1, 2]
    assert get([plain.pid.remote(), named.pid.remote()]) == before[:2]
    # Code that was exported before, and new code.
    assert get([add.remote(2, 3), new.remote(1)]) == [5, 2]
    assert get(Counter.remote().next.remote()) == 1
    # One restart was left, and no more.
    psutil.Process(before[0]).kill()
    wait_until(lambda: len(lines_of(log)) == 3, "it starts again")
    ready = Counter.options(name="ready").remote()
    assert get(ready.next.remote()) == 1
    restarted = _when_available(plain)
    assert restarted != before[0]
    psutil.Process(restarted).kill()
    with pytest.raises(ray.exceptions.ActorDiedError):
        wait_until(lambda: _when_available(plain) is None, "it is dead")
    assert len(lines_of(log)) == 3


def _when_available(actor: Any) -> int | None:
    """Its process, once it takes calls. Raises ActorDiedError."""
    while True:
        try:
            return int(get(actor.pid.remote()))
        except ray.exceptions.ActorUnavailableError:
            continue


def test_a_new_driver_has_a_new_job_and_finds_what_lives(start: Start, tmp_path: Path) -> None:
    victims = start(namespace="here")
    named = Counter.options(name="named", lifetime="detached").remote()
    assert get(named.next.remote()) == 1
    path = tmp_path / "driver.py"
    path.write_text(NEW_DRIVER)
    assert "it says 2" in Script(path, ray.get_runtime_context().gcs_address).check_ended_well()
    for number in (2, 3):
        victims.lose_head_and_store()
        output = Script(path, ray.get_runtime_context().gcs_address).check_ended_well()
        assert f"it says {number + 1}" in output and f"its job is 0{number + 1}000000" in output
    assert get(named.next.remote()) == 5


def test_an_actor_whose_last_handle_went_before_the_head_ends_and_does_not_start_again(
    start: Start, tmp_path: Path
) -> None:
    victims = start(namespace="here")
    log = tmp_path / "log"
    actor = Counter.options(name="named", max_restarts=-1).remote(str(log))
    process = psutil.Process(get(actor.pid.remote()))
    process.suspend()
    del actor
    wait_until(lambda: not list_named_actors(), "the head has asked it to end")
    victims.lose_head_and_store()
    process.resume()
    other = Counter.options(name="other").remote()
    assert get(other.next.remote()) == 1
    wait_until(lambda: list_named_actors() == ["other"], "the actor is not there")
    wait_until(lambda: not process.is_running(), "its process has ended")
    assert len(lines_of(log)) == 1


def test_a_head_that_cannot_start_again_ends_the_node_and_the_driver_is_told_why(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    victims = start()
    victims.damage_store()
    with pytest.raises(ray.exceptions.LocalRayletDiedError, match="gcs.sqlite was damaged. It is kept as"):
        get(Counter.remote().next.remote())
    [told] = [record.getMessage() for record in caplog.records if "raylet is gone" in record.getMessage()]
    assert "gcs.sqlite was damaged. It is kept as" in told
    assert "in a row" in told


DETACHES = """
import os, sys
import ray_mono as ray

ray.init(address=sys.argv[1], namespace="here")

@ray.remote(max_restarts=-1, num_cpus=0)
class Lives:
    def pid(self):
        return os.getpid()

lives = Lives.options(name="lives", lifetime="detached").remote()
print("it is", ray.get(lives.pid.remote(), timeout=60))
"""


def test_a_detached_actor_whose_driver_is_gone_starts_again_from_what_it_told(
    start: Start, tmp_path: Path
) -> None:
    victims = start(namespace="here")
    path = tmp_path / "driver.py"
    path.write_text(DETACHES)
    first = int(
        Script(path, ray.get_runtime_context().gcs_address)
        .check_ended_well()
        .rpartition("it is ")[2]
        .split()[0]
    )
    victims.lose_head_and_store()
    lives = ray.get_actor("lives")
    assert get(lives.pid.remote()) == first
    psutil.Process(first).kill()
    wait_until(lambda: _when_available(lives) != first, "it starts again")


def test_an_actor_that_is_being_created_is_created_once_and_one_without_a_place_waits_on(
    start: Start, tmp_path: Path
) -> None:
    victims = start()
    log, go_on = tmp_path / "log", tmp_path / "go on"
    holder = Counter.options(num_cpus=1).remote()
    get(holder.next.remote())
    begun = Counter.remote(str(log), str(go_on))
    waits = Counter.options(num_cpus=2).remote(str(log))
    created, waiting = begun.next.remote(), waits.next.remote()
    wait_until(lambda: len(lines_of(log)) == 1, "the constructor runs")
    victims.lose_head_and_store()
    assert len(ray.nodes()) == 1
    go_on.touch()
    assert get(created) == 1
    assert len(lines_of(log)) == 1
    del holder
    assert get(waiting) == 1
    assert len(lines_of(log)) == 2
