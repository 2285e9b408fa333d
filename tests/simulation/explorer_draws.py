"""What the explorer draws of a seed: a usual scenario, or losses of large values, or cut networks and
processes that stand still."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.simulation.cuts import draw_cuts, lose_one_node
from tests.simulation.draws import (
    Weather,
    draw_drains,
    draw_fault,
    draw_losses,
    draw_scenario,
    in_order,
)
from tests.simulation.group_programs import ABUNDANT, GroupScript
from tests.simulation.memory import MemoryFault, draw_memory_fault
from tests.simulation.scenario import STOPS, FaultKind, Scenario

CUTS_PROBABILITY = 0.1
LOSSES_PROBABILITY = 0.15
SHORT_MEMORY_PROBABILITY = 0.1


SLIPS_S = 0.0, 0.0, 0.0002, 0.002
GRAINS_S = 0.0, 0.0, 0.0005, 0.002
"""A message between hosts takes 0.0001 to 0.001."""


def draw_any(seed: int, num_tasks: int) -> Scenario:
    """Of half of the seeds each, callbacks take time, processes hear in batches, and there are placement
    groups."""
    scenario, rng = draw_faults(seed, num_tasks), random.Random(f"{seed}/busy")
    knobs = replace(scenario.knobs, grain_s=rng.choice(GRAINS_S))
    scenario = replace(scenario, slip_s=rng.choice(SLIPS_S), knobs=knobs)
    return with_groups(scenario, random.Random(f"{seed}/groups"))


def with_groups(scenario: Scenario, rng: random.Random) -> Scenario:
    number = rng.choice([0, 0, 1, 4])
    groups = tuple(GroupScript(rng.getrandbits(32), rng.randint(1, 6)) for _ in range(number))
    nodes = tuple({**units, ABUNDANT: 100.0} for units in scenario.node_units) if groups else None
    return replace(scenario, groups=groups, node_units=nodes or scenario.node_units)


def draw_faults(seed: int, num_tasks: int) -> Scenario:
    if random.Random(f"{seed}/is cut").random() < CUTS_PROBABILITY:
        return draw_any_cuts(seed)
    rng = random.Random(f"{seed}/any")
    weather = rng.choice(
        [Weather.CALM, Weather.DEATHS, Weather.DEATHS, Weather.SQUALL, Weather.STORM, Weather.STORM]
    )
    if weather is not Weather.CALM and rng.random() < LOSSES_PROBABILITY:
        scenario = draw_losses(seed, rng.choice([Weather.DEATHS, Weather.STORM]))
        drains = draw_drains(seed, random.Random(f"{seed}/drains of losses").choice([0, 1, 3]))
        scenario = replace(scenario, faults=(*scenario.faults, *drains))
    else:
        scenario = draw_scenario(seed, num_tasks, weather)
        if weather is not Weather.CALM:
            memory_faults = _draw_memory_faults(random.Random(f"{seed}/short memory"))
            scenario = replace(scenario, memory_faults=memory_faults)
    if weather is Weather.CALM:
        return _with_harmless_drains(scenario, seed)
    kinds = [FaultKind.KILL_STORE] * rng.choice([0, 0, 0, 1, 2])
    kinds += [FaultKind.LOSE_HEAD] * rng.choice([0, 0, 0, 0, 1, 2])
    faults = (*scenario.faults, *(draw_fault(rng, [kind]) for kind in kinds))
    return replace(
        scenario,
        faults=in_order(faults),
        unreadable_probability=rng.choice([0.0, 0.0, 0.0, 0.02, 0.2]),
    )


def draw_any_cuts(seed: int) -> Scenario:
    """One long one, or several of all kinds."""
    rng = random.Random(f"{seed}/which cut")
    if rng.random() < 0.5:
        kind, number = rng.choice([FaultKind.PARTITION, *STOPS]), rng.randint(1, 2)
        return lose_one_node(seed, kind, number, rng.choice([30.0, 90.0]), rng.choice([3.0, 12.0, 60.0]))
    return draw_cuts(seed)


def _with_harmless_drains(scenario: Scenario, seed: int) -> Scenario:
    """Nodes with large values end in their own time: nothing has to be made again for that."""
    rng = random.Random(f"{seed}/harmless drains")
    drains = draw_drains(seed, rng.choice([0, 0, 1, 3]))
    if not drains:
        return scenario
    faults = [replace(drain, choice=drain.choice // 2 * 2) for drain in drains]
    return replace(scenario, losses=draw_losses(seed).losses[:1], faults=in_order(faults))


def _draw_memory_faults(rng: random.Random) -> tuple[MemoryFault, ...]:
    if rng.random() >= SHORT_MEMORY_PROBABILITY:
        return ()
    return tuple(draw_memory_fault(rng) for _ in range(rng.randint(1, 4)))
