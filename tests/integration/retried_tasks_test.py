"""What a task's attempt makes is its own: another attempt runs in another process, which owns other objects,
tasks and actors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import OwnerDiedError
from tests.integration.bounded import GET_TIMEOUT_S, get

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@ray.remote
class Keeper:
    """Keeps references of every attempt."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, boxed: list[Any]) -> None:
        self.kept += boxed

    def read(self) -> list[str]:
        values = []
        for ref in self.kept:
            try:
                values.append(ray.get(ref, timeout=GET_TIMEOUT_S))
            except OwnerDiedError:
                values.append("its owner died")
        return values


@ray.remote
def echo(value: str) -> str:
    return value


@ray.remote
class Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def say(self) -> str:
        return self.name


def attempt(marker: Path) -> str:
    """Which attempt this is: the first leaves the marker."""
    return "second" if marker.exists() else "first"


def end_first(marker: Path) -> None:
    if not marker.exists():
        marker.touch()
        os._exit(1)


@pytest.mark.parametrize("makes", ["put", "task"])
def test_an_object_of_the_second_attempt_is_another_one_than_that_of_the_first(
    tmp_path: Path, makes: str
) -> None:
    @ray.remote(max_retries=1)
    def makes_an_object(keeper: Any, marker: Path) -> list[Any]:
        value = attempt(marker)
        made = ray.put(value) if makes == "put" else echo.remote(value)
        get([made, keeper.keep.remote([made])])
        end_first(marker)
        return [made]

    keeper = Keeper.remote()
    [made] = get(makes_an_object.remote(keeper, tmp_path / "marker"))
    assert get(made) == "second"
    del made
    # What the keeper has of the first attempt was owned by a process that is gone, and it may have read it
    # before.
    assert get(keeper.read.remote())[1:] == ["second"]


def test_an_actor_of_the_second_attempt_lives_although_that_of_the_first_died_with_its_owner(
    tmp_path: Path,
) -> None:
    @ray.remote(max_retries=1)
    def makes_an_actor(marker: Path) -> str:
        actor = Named.options(num_cpus=0).remote(attempt(marker))
        name: str = get(actor.say.remote())
        end_first(marker)
        return name

    assert get(makes_an_actor.remote(tmp_path / "marker")) == "second"
