"""What `explain` says of what has failed before and is run again: the fifth table."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from tests.integration.explained import MOVES, expect_explained, one_node

NUM_FAILURES = 2


@pytest.fixture(autouse=True)
def session(shared_base: Path, by_value: None) -> Iterator[None]:
    with one_node():
        yield


def fails_first(runs: Path) -> bool:
    """Whether this run is one of the first."""
    with runs.open("a+") as file:
        file.write("x")
        return file.tell() <= NUM_FAILURES


@ray.remote
def crash(runs: Path) -> None:
    if fails_first(runs):
        os._exit(3)
    signal.pause()


@ray.remote
def throw(runs: Path) -> None:
    if fails_first(runs):
        raise ValueError("not yet")
    signal.pause()


@ray.remote
class Crash:
    def __init__(self, runs: Path) -> None:
        if fails_first(runs):
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()

    def rest(self) -> None:
        pass


@ray.remote
class CrashesAlways:
    def __init__(self) -> None:
        os._exit(3)


def test_a_task_whose_workers_ended_says_how_often_and_how_the_last_one_did(tmp_path: Path) -> None:
    task = crash.options(max_retries=7).remote(tmp_path / "runs")
    expected = ("crash() has run 2 times and is run again (retries left: 5): ", " exited with code 3")
    explanation = expect_explained(task, "RUNNING", MOVES, (*expected, "crash() runs on worker"))
    assert sum("has run 2 times" in link.history for link in explanation.links) == 1
    assert any("has run 2 times" in link["history"] for link in explanation.to_dict()["links"])


def test_a_task_that_raises_and_is_retried_says_how_often_and_what(tmp_path: Path) -> None:
    task = throw.options(max_retries=-1, retry_exceptions=True).remote(tmp_path / "runs")
    expected = "throw() has run 2 times and is run again (retries without end): ValueError; "
    expect_explained(task, "RUNNING", MOVES, (expected, "throw() runs on worker"))


def test_an_actor_that_restarted_says_how_often_and_how_its_last_process_ended(tmp_path: Path) -> None:
    actor = Crash.options(max_restarts=9).remote(tmp_path / "runs")
    call = actor.rest.remote()
    expected = ("has restarted 2 times (restarts left: 7), last since it lost its process: ", "SIGKILL")
    for waits in (actor, call):
        expect_explained(waits, "RUNNING", MOVES, (*expected, "Crash.__init__() of actor"))


def test_an_actor_that_restarts_again_and_again_says_so_while_it_pauses() -> None:
    actor: Any = CrashesAlways.options(max_restarts=-1).remote()
    expected = (
        "times (restarts without end), last since",
        "exited with code 3",
        "starts again after a pause",
    )
    expect_explained(actor, "ACTOR_RESTARTING", MOVES, expected)


def test_what_runs_for_the_first_time_has_no_history() -> None:
    actor = CrashesAlways.options(num_gpus=1).remote()
    assert not any(link.history for link in ray.explain(actor).links)
