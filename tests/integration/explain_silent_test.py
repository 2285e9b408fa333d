"""Processes that do not answer, since C code that runs there holds the GIL, and what `explain` says of what
is there and of who waits for it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from tests.integration.bounded import get
from tests.integration.explained import KEPT, OPEN, expect_explained, one_node
from tests.waiting import wait_until

STANDS_S = 600


@pytest.fixture(autouse=True)
def session(shared_base: Path, by_value: None) -> Iterator[None]:
    with one_node(resources={"A": 1}):
        yield


def stand(begun: Path) -> None:
    """In C code, which does not release the GIL."""
    begun.write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(STANDS_S)


@ray.remote(num_cpus=0)
def stands(begun: Path) -> None:
    stand(begun)


@ray.remote(num_cpus=0)
def rests() -> None:
    pass


@ray.remote(num_cpus=0)
class Stands:
    def stand(self, begun: Path) -> None:
        stand(begun)

    def rest(self) -> None:
        pass


def until_begun(begun: Path) -> None:
    wait_until(lambda: begun.exists() and begun.read_text(), "the code stands")


def a_task(begun: Path, **options: Any) -> Any:
    task = stands.options(**options).remote(begun)
    KEPT.append(task)
    until_begun(begun)
    return task


def an_actor(begun: Path, **options: Any) -> Any:
    actor = Stands.options(**options).remote()
    get(actor.rest.remote())
    KEPT.extend([actor, actor.stand.remote(begun)])
    until_begun(begun)
    return actor


def of_a_task(begun: Path) -> Any:
    a_task(begun, resources={"A": 1})
    return rests.options(resources={"A": 1}).remote()


def of_an_actor(begun: Path) -> Any:
    an_actor(begun, resources={"A": 1})
    return rests.options(resources={"A": 1}).remote()


TOLD: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a task that stands": (a_task, "UNREACHABLE", "; stands() is in process "),
    "an actor that stands": (an_actor, "UNREACHABLE", " is alive; actor Stands ("),
    "a call behind one that stands": (
        lambda begun: an_actor(begun).rest.remote(),
        "UNREACHABLE",
        "; Stands.rest() of actor ",
    ),
    "a task that needs what one has that stands": (of_a_task, "RESOURCES", "; stands() is in process "),
    "a task that needs what an actor has that stands": (
        of_an_actor,
        "RESOURCES",
        "; actor Stands is in process ",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_is_in_a_process_that_does_not_answer_is_named(name: str, tmp_path: Path) -> None:
    program, code, what = TOLD[name]
    begun = tmp_path / "begun"
    waits = program(begun)
    KEPT.append(waits)
    why = "cannot be asked: its code holds the GIL, and sleeps or waits for something"
    words = (what, f"(pid {begun.read_text()}, node ", why, "kill it")
    expect_explained(waits, code, OPEN, words)


def test_who_did_not_answer_is_named_where_all_that_waits_is_listed(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    a_task(begun)
    told = ray.explain()
    (silent,) = told.silent
    assert silent.startswith("process ") and f"(pid {begun.read_text()}, node " in silent
    (group,) = told.groups
    assert group.count == 1 and "stands() is in process " in str(group.example)
