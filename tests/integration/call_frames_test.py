"""How far a reader of one call has to walk: as few functions and files as ARCHITECTURE promises."""

from __future__ import annotations

from typing import Any

import pytest

import ray_mono as ray
from bench import frames

FILES_MAX = 11
FUNCTIONS_MAX = {"remote": 24, "get": 30}


@ray.remote
def echo(value: int) -> int:
    return value


@ray.remote(num_cpus=0)
class Echo:
    def call(self, value: int) -> int:
        return value


@pytest.mark.parametrize("of", ["a task", "an actor"])
def test_a_call_and_its_get_enter_few_functions_in_few_files(shared_cluster: Any, of: str) -> None:
    actor = Echo.remote()
    make = (lambda: echo.remote(1)) if of == "a task" else (lambda: actor.call.remote(1))
    for step, walk in frames.measure("remote", make).items():
        names = [function for _, function in walk.frames]
        assert 0 < len(names) <= FUNCTIONS_MAX[step], names
        assert walk.num_files <= FILES_MAX, names
