"""Nodes are drained: what runs there may finish, actors move, values are copied, then the node ends, and a
new one comes for it. Nothing is lost, whoever else dies; and where nobody does and the drain has no deadline,
nothing runs twice and nobody reads an error."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.draws import Weather, draw_drains, draw_losses, draw_scenario, in_order
from tests.simulation.scenario import Fault, Outcome, Scenario, run_scenario

NUM_DRAINS = 3


def drained(seed: int, scenario: Scenario, drains: tuple[Fault, ...]) -> Outcome:
    return run_scenario(seed, replace(scenario, faults=in_order((*scenario.faults, *drains))))


def test_where_nothing_else_goes_wrong_drains_cost_nothing() -> None:
    restarts = 0
    for seed in range(8):
        drains = [replace(drain, choice=drain.choice // 2 * 2) for drain in draw_drains(seed, NUM_DRAINS)]
        outcome = drained(seed, draw_scenario(seed, 60, Weather.CALM), tuple(drains))
        assert not outcome.retries
        restarts += outcome.actor_restarts
    assert restarts


@pytest.mark.parametrize("weather", [Weather.DEATHS, Weather.STORM])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_where_others_die_meanwhile_and_deadlines_come(seed: int, weather: Weather) -> None:
    drained(seed, draw_scenario(seed, 60, weather), draw_drains(seed, NUM_DRAINS))


@pytest.mark.parametrize("seed", range(3))
def test_large_values_are_there_afterwards(seed: int) -> None:
    drained(seed, draw_losses(seed), draw_drains(seed, NUM_DRAINS))
