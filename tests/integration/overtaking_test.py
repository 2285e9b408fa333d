"""Tasks that began in another order than they were submitted in, and wait for each other by files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.core_worker.process import current, registration
from tests.integration.bounded import get
from tests.integration.conftest import NUM_CPUS
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("by_value", "leaves_nothing")


@pytest.fixture(scope="module")
def shared_cluster(shared_base: Path) -> Iterator[Any]:
    """Its driver takes two seconds for a standstill, and not twenty."""
    with pytest.MonkeyPatch.context() as patch:
        limits = replace(CoreWorkerConfig(), standstill_looks=1)
        patch.setattr(registration, "config_of", lambda *_: limits)
        yield ray.init(address="local", num_cpus=NUM_CPUS)


@pytest.mark.parametrize("way", ["loop", "map"])
def test_tasks_that_were_short_may_wait_for_those_that_were_submitted_beside_them(
    tmp_path: Path, way: str
) -> None:
    @ray.remote
    def meet(number: int) -> int:
        """Waits, though not in `get`, for those that are as many as CPUs; a negative one is short."""
        if number >= 0:
            (tmp_path / str(number)).touch()
            first = number - number % NUM_CPUS
            others = [tmp_path / str(other) for other in range(first, first + NUM_CPUS)]
            wait_until(lambda: all(other.exists() for other in others), f"{others} have begun")
        return number

    def call_all(numbers: range) -> list[int]:
        return get(meet.map(numbers) if way == "map" else [meet.remote(number) for number in numbers])

    call_all(range(-500, 0))
    assert call_all(range(20 * NUM_CPUS)) == list(range(20 * NUM_CPUS))


def test_a_task_that_was_short_begins_beside_one_that_is_long_and_waits_for_it(tmp_path: Path) -> None:
    @ray.remote
    def meet(number: int, other: int) -> int:
        if number >= 0:
            (tmp_path / str(number)).touch()
            wait_until((tmp_path / str(other)).exists, f"{other} has begun")
        return number

    get([meet.remote(-number, 0) for number in range(1, 500)])
    first = meet.remote(0, 1)
    # Its owner has seen that it is long, and looks no more.
    wait_until(lambda: "runs a long task" in str(current.require().describe()["scheduling"]), "it is long")
    assert get([meet.remote(1, 0), first]) == [1, 0]
