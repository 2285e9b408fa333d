"""Generators and those who take their items, of which one waits for the other, and what `explain` says of
them: the sixth table."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from tests.integration.bounded import get
from tests.integration.explained import KEPT, MOVES, OPEN, STUCK, Outlook, expect_program_explained, one_node

HOLDS_A: Any = {"resources": {"A": 1}}


@pytest.fixture(autouse=True)
def session(shared_base: Path, by_value: None) -> Iterator[None]:
    with one_node(resources={"A": 1}):
        yield


@ray.remote(num_cpus=0)
def items(number: int) -> Iterator[int]:
    yield from range(number)


@ray.remote(num_cpus=0)
def items_and_no_end(number: int) -> Iterator[int]:
    yield from range(number)
    signal.pause()


def bounded_items() -> Any:
    return items.options(_generator_backpressure_num_objects=1).remote(9)


@ray.remote(num_cpus=0)
def read() -> list[Any]:
    return [ray.get(item) for item in items.options(**HOLDS_A).remote(3)]


@ray.remote(num_cpus=0)
def await_the_end() -> Any:
    generator = bounded_items()
    next(generator)
    return ray.get(generator.completed())


@ray.remote(num_cpus=0)
def take_one_and_work(ends: list[Any]) -> None:
    generator = bounded_items()
    next(generator)
    ray.get(ends[0].set.remote([generator.completed()]))
    signal.pause()


@ray.remote(num_cpus=0)
class Box:
    def __init__(self) -> None:
        self.value: list[Any] = []

    def set(self, value: list[Any]) -> None:
        self.value = value

    def get(self) -> list[Any]:
        return self.value


@ray.remote(num_cpus=0)
class Reader:
    async def read(self) -> list[Any]:
        return [await item async for item in items.options(**HOLDS_A).remote(3)]

    def begin(self) -> list[Any]:
        self.generator = bounded_items()
        return [self.generator.completed()]


def read_by_an_actor() -> Any:
    reader = Reader.options(**HOLDS_A).remote()
    KEPT.append(reader)
    return reader.read.remote()


def kept_by_an_actor() -> Any:
    reader = Reader.remote()
    KEPT.append(reader)
    (end,) = get(reader.begin.remote())
    return end


def of_a_task_that_works() -> Any:
    box = Box.remote()
    KEPT.extend([box, take_one_and_work.remote([box])])
    while not (ends := get(box.get.remote())):
        pass
    return ends[0]


def all_taken() -> Any:
    generator = items.remote(3)
    assert get(list(generator)) == [0, 1, 2]
    return generator


def without_items() -> Any:
    generator = items.remote(0)
    get(generator.completed())
    return generator


def all_taken_so_far() -> Any:
    generator = items_and_no_end.remote(1)
    get(next(generator))
    return generator


TOLD: dict[str, tuple[Callable[[], Any], str, Outlook, tuple[str, ...]]] = {
    "a generator that needs what its reader holds": (
        lambda: read.options(**HOLDS_A).remote(),
        "DEADLOCK",
        STUCK,
        ("read() on worker", "items() needs {A: 1}", "items() and read() wait for each other"),
    ),
    "a generator that needs what the actor holds which reads it with async for": (
        read_by_an_actor,
        "DEADLOCK",
        STUCK,
        ("Reader.read() of actor ", "waits in its code for 1 object", "items() needs {A: 1}"),
    ),
    "a generator whose end is awaited by who does not take its items": (
        lambda: await_the_end.remote(),
        "DEADLOCK",
        STUCK,
        (
            "who has taken 1 of the 2 items that it yielded",
            "the items of items() are for await_the_end(), which called it",
            "await_the_end() and items() wait for each other",
        ),
    ),
    "a generator whose reader works": (
        of_a_task_that_works,
        "BACKPRESSURE",
        MOVES,
        ("are for take_one_and_work(), which called it", "take_one_and_work() runs on worker"),
    ),
    "a generator that an actor keeps": (
        kept_by_an_actor,
        "BACKPRESSURE",
        OPEN,
        ("the items of items() are for whoever has it in its process (pid ", "take items of it"),
    ),
    "a generator whose items were taken": (
        all_taken,
        "READY",
        MOVES,
        ("the generator of task ", " is over: it has yielded 3 items, and all of them were taken"),
    ),
    "a generator without items": (without_items, "READY", MOVES, ("it has yielded 0 items",)),
    "a generator whose items were taken and that runs": (
        all_taken_so_far,
        "RUNNING",
        MOVES,
        ("is made by items_and_no_end()", "items_and_no_end() runs on worker"),
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_generators_wait_for_is_explained(name: str) -> None:
    expect_program_explained(*TOLD[name])
