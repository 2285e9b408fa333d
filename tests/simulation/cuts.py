"""Scenarios of cut networks and processes that stand still, around actors that may start again."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.simulation.draws import Weather, draw_actor, draw_scenario
from tests.simulation.scenario import STOPS, Fault, FaultKind, Scenario

LASTS_S = (1.0, 8.0, 30.0, 90.0)


def draw_cuts(seed: int) -> Scenario:
    """Actors that may start again, on nodes that are cut off, or whose processes stand still, for longer and
    for shorter than their lease. A cut node's host comes back as a new node."""
    rng = random.Random(f"{seed}/cuts")
    usual = draw_scenario(seed, 10, Weather.STORM)
    kinds = [FaultKind.PARTITION, *STOPS, FaultKind.RESTART_GCS, FaultKind.KILL_RAYLET, FaultKind.CRASH_HOST]
    faults = [
        Fault(
            rng.uniform(0.5, 60.0), rng.choice(kinds), rng.choice([1.0, 8.0, 30.0, 90.0]), rng.getrandbits(16)
        )
        for _ in range(rng.randint(2, 8))
    ]
    actors = tuple(
        replace(
            draw_actor(rng, True),
            num_calls=rng.choice([30, 100]),
            call_s=rng.choice([0.05, 1.0]),
            max_restarts=rng.choice([1, 20]),
            constructor_raises=False,
        )
        for _ in range(rng.choice([2, 5]))
    )
    return replace(
        usual,
        node_units=({"CPU": 1.0, "A": 2.0}, *[{"CPU": 4.0, "A": 2.0}] * rng.randint(1, 3)),
        actors=actors,
        programs=(),
        generators=(),
        maps=(),
        faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
        gcs_reconnect_timeout_s=rng.choice([3.0, 12.0, 60.0]),
    )


def lose_one_node(seed: int, kind: FaultKind, number: int, lasts_s: float, lease_s: float) -> Scenario:
    """Three actors, for two of which the head's node has room. The node of this number is lost."""
    rng = random.Random(f"{seed}/one node")
    actor = replace(
        draw_actor(rng, False),
        construct_s=0.0,
        num_calls=40,
        call_s=1.0,
        max_restarts=20,
        max_task_retries=3,
        constructor_raises=False,
        cpus=0.5,
        is_killed_at_the_end=False,
        is_async=seed % 2 == 1,
        max_concurrency=1,
        carries_references=False,
        num_callers=0,
        maps_calls=False,
        waits_each=0,
        cancels_each=0,
        generators=(),
    )
    # Of a stop: which of the nodes beside the head's. Of a cut: the head's host, and that of the node.
    choice = number - 1 if kind in STOPS else 16 * number + (-16 * number) % 3
    return replace(
        draw_scenario(seed, 0, Weather.CALM),
        node_units=({"CPU": 1.0, "A": 1.0}, {"CPU": 4.0}, {"CPU": 4.0}),
        num_drivers=1,
        actors=(actor,) * 3,
        programs=(),
        generators=(),
        maps=(),
        faults=(Fault(5.0, kind, lasts_s, choice),),
        gcs_reconnect_timeout_s=lease_s,
    )
