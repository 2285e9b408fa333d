"""Errors that a program catches do not keep its variables: what the frames held goes when they end, and does
not wait for the collector."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.util import get_placement_group
from tests.integration.bounded import get

pytestmark = pytest.mark.usefixtures("shared_cluster")


class Large:
    """A variable of the program's."""


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@ray.remote(num_cpus=0)
def raises() -> None:
    raise ValueError("planned")


@ray.remote(num_cpus=0)
def sleeps() -> None:
    time.sleep(0.5)


@ray.remote(num_cpus=0)
class Actor:
    def __init__(self, number: int) -> None: ...

    def raises(self) -> None:
        raise ValueError("planned")

    def answer(self) -> int:
        return 1


def kill_one_that_never_lived() -> None:
    actor = Actor.remote(raises.remote())
    with pytest.raises(ray.exceptions.RayActorError):
        get(actor.answer.remote())
    ray.kill(actor)
    raise ValueError("to be caught, as the others")


FAILURES: dict[str, Callable[[], Any]] = {
    "get_actor": lambda: ray.get_actor("nobody"),
    "get_placement_group": lambda: get_placement_group("nobody"),
    "get of a task that raises": lambda: get(raises.remote()),
    "get of a call that raises": lambda: get(Actor.remote(1).raises.remote()),
    "get that takes too long": lambda: ray.get(sleeps.remote(), timeout=0.01),
    "kill": kill_one_that_never_lived,
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_a_program_held_goes_when_the_error_is_caught(name: str) -> None:
    held: list[weakref.ref[Large]] = []

    def fail() -> None:
        large = Large()
        held.append(weakref.ref(large))
        FAILURES[name]()
        raise AssertionError(large)

    try:
        fail()
    except AssertionError:
        raise
    except Exception:
        pass
    assert held[0]() is None
