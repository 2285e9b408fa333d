"""Nodes run short of memory, again and again: each task ends once, with its value or an OutOfMemoryError, and
nothing hangs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest

from ray_mono.raylet import memory_guard
from ray_mono.raylet.memory.killing_policy import RunningWorker, Victim
from tests.simulation.draws import Weather, draw_scenario
from tests.simulation.memory import draw_memory_fault
from tests.simulation.scenario import Scenario, run_scenario

SEEDS = range(6)


def draw_short_memory(seed: int, weather: Weather) -> Scenario:
    rng = random.Random(f"{seed}/memory")
    usual = draw_scenario(seed, 80, weather)
    faults = tuple(draw_memory_fault(rng) for _ in range(rng.randint(2, 6)))
    return replace(usual, actors=(), programs=(), generators=(), memory_faults=faults)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Victim]:
    """Whom the raylets killed. Each was the right one."""
    victims: list[Victim] = []
    honest = memory_guard.choose

    def choose(workers: Iterable[RunningWorker]) -> Victim | None:
        all_ = list(workers)
        victim = honest(all_)
        if victim is not None:
            judge(victim, [worker for worker in all_ if worker.runs])
            victims.append(victim)
        return victim

    monkeypatch.setattr(memory_guard, "choose", choose)
    return victims


def judge(victim: Victim, running: list[RunningWorker]) -> None:
    """What may be run again goes first; of its owner's the newest; and the last one is not run again."""
    worker = victim.worker
    again = [each for each in running if each.is_retriable]
    assert worker in running and (worker.is_retriable or not again)
    if worker.is_retriable:
        alike = [each.began_at_s for each in again if each.owner_id == worker.owner_id]
        assert worker.began_at_s == max(alike)
        assert not victim.is_last or len(alike) == 1
        sizes = Counter(each.owner_id for each in again)
        assert not victim.is_last or max(sizes.values()) == 1


@pytest.mark.parametrize("weather", [Weather.CALM, Weather.DEATHS])
def test_each_task_ends_once_where_memory_runs_short(killed: list[Victim], weather: Weather) -> None:
    num_crashed = 0
    for seed in SEEDS:
        outcome = run_scenario(seed, draw_short_memory(seed, weather))
        num_crashed += outcome.outcomes.get("crashed", 0)
    assert num_crashed  # the last ones of their owners, and nothing else in calm weather
    assert len(killed) >= 10 and {victim.is_last for victim in killed} == {True, False}


def test_a_run_is_its_seed() -> None:
    scenario = draw_short_memory(1, Weather.CALM)
    assert run_scenario(1, scenario).digest == run_scenario(1, scenario).digest
