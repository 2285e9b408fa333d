"""A scenario that fails is made as small as it can be, and told as the Python that makes it again."""

from __future__ import annotations

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from tests.simulation import scenario as scenarios
from tests.simulation import scripts, storage
from tests.simulation.draws import draw_scenario
from tests.simulation.scenario import Scenario
from tests.simulation.scripts import TaskScript
from tests.simulation.shrink import as_python, shrink

NAMES = {**vars(scenarios), **vars(scripts), **vars(storage)}
ONE_CPU = ResourceSet.from_units({"CPU": 1})
SLOW = TaskScript(compute_s=0.7, num_returns=2, keeps_s=1.0)


def with_a_slow_task(seed: int) -> Scenario:
    drawn = draw_scenario(seed)
    return Scenario(**{**vars(drawn), "tasks": (*drawn.tasks[:50], (SLOW, ONE_CPU), *drawn.tasks[50:])})


def fails_of_a_slow_task(scenario: Scenario) -> Exception | None:
    slow = [script for script, _ in scenario.tasks if script.compute_s == 0.7]
    if slow:
        return ValueError(f"{len(scenario.tasks)} tasks, and one is slow")
    return KeyError("another failure") if scenario.faults else None


@pytest.mark.parametrize("seed", range(5))
def test_only_what_the_failure_needs_is_left(seed: int) -> None:
    scenario = with_a_slow_task(seed)
    failure = fails_of_a_slow_task(scenario)
    assert failure is not None
    shrunk = shrink(scenario, failure, fails_of_a_slow_task, seconds=60)
    assert shrunk.scenario == Scenario(scenario.node_units[:1], 1, ((TaskScript(compute_s=0.7), ONE_CPU),))
    assert str(shrunk.error) == "1 tasks, and one is slow"


def test_a_failure_that_needs_all_keeps_all() -> None:
    scenario = with_a_slow_task(3)
    fails = lambda smaller: ValueError("all is needed") if smaller == scenario else None  # noqa: E731
    assert shrink(scenario, ValueError("all is needed"), fails, seconds=60).scenario == scenario


def test_without_time_it_is_as_it_was() -> None:
    scenario = with_a_slow_task(3)
    failure = ValueError("1 tasks, and one is slow")
    shrunk = shrink(scenario, failure, fails_of_a_slow_task, seconds=0)
    assert (shrunk.scenario, shrunk.num_runs) == (scenario, 0)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_printed_makes_the_scenario_again(seed: int) -> None:
    scenario = draw_scenario(seed)
    assert eval(as_python(scenario), dict(NAMES)) == scenario
