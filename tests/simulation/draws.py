"""What a seed draws: a cluster, its work, and what goes wrong with it. The explorer draws more
(explorer_draws.py).

Not drawn are: runtime environments, named and detached actors, strategies, max_calls, concurrency groups, a
kill of an actor that may restart.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.config import CoreWorkerConfig
from tests.simulation.actor_programs import ActorScript
from tests.simulation.generator_programs import GeneratorScript
from tests.simulation.loss_programs import LossScript
from tests.simulation.network import NetworkKnobs
from tests.simulation.object_programs import ObjectScript
from tests.simulation.scenario import Fault, FaultKind, HeadFault, Scenario
from tests.simulation.scripts import TaskScript
from tests.simulation.storage import CommitStep, DiskKnobs
from tests.simulation.task_programs import MapScript


class Weather(enum.Enum):
    """How much goes wrong. The less, the more the judges demand: where nobody is silent, nothing is freed
    that somebody holds; where no connection breaks, nobody counts as dead who lives; where nothing goes
    wrong, nothing runs twice, and nobody reads an error."""

    CALM = "nothing goes wrong"
    DEATHS = "processes die, on the fault's or their tasks' account"
    SQUALL = "connections break, too, and nobody is silent"
    STORM = "connections break and hosts are silent, too"


DEATHS = (FaultKind.KILL_WORKER, FaultKind.KILL_RAYLET, FaultKind.RESTART_GCS)
SQUALL = (*DEATHS, FaultKind.BREAK_CONNECTION)
STORM = (
    FaultKind.KILL_WORKER,
    FaultKind.KILL_RAYLET,
    FaultKind.CRASH_HOST,
    FaultKind.BREAK_CONNECTION,
    FaultKind.PARTITION,
    FaultKind.RESTART_GCS,
)
"""In this order: what seeds draw that have found faults hangs on it."""


def draw_scenario(seed: int, num_tasks: int = 120, weather: Weather | None = None) -> Scenario:
    """A scenario from a seed. weather: of the seed's choice, if None."""
    if weather is None:
        choices = [Weather.CALM, Weather.DEATHS, Weather.DEATHS, Weather.STORM, Weather.STORM]
        weather = random.Random(f"{seed}/weather").choice(choices)
    with_faults, breaks = weather is not Weather.CALM, weather in (Weather.STORM, Weather.SQUALL)
    rng = random.Random(f"{seed}/scenario")
    node_units = tuple(
        {"CPU": float(rng.randint(1, 4)), **({"A": 2.0} if rng.random() < 0.5 else {})}
        for _ in range(rng.randint(2, 4))
    )
    node_units[0]["A"] = 1.0  # so that every shape fits somewhere at all times
    shapes = [{"CPU": 1.0}, {"CPU": 0.5}, {"CPU": 1.0, "A": 1.0}, {"A": 0.5}, {}]
    tasks = tuple(
        (_draw_script(rng, with_faults), ResourceSet.from_units(rng.choice(shapes))) for _ in range(num_tasks)
    )
    knobs = NetworkKnobs(
        slow_probability=rng.choice([0.0, 0.0, 0.01, 0.1]),
        break_probability=rng.choice([0.0, 0.0, 0.001, 0.01]) if breaks else 0.0,
    )
    kinds = {
        Weather.CALM: (),
        Weather.DEATHS: DEATHS,
        Weather.SQUALL: SQUALL,
        Weather.STORM: STORM,
    }[weather]
    faults = tuple(draw_fault(rng, kinds) for _ in range(rng.randint(0, 8))) if kinds else ()
    drains = random.Random(f"{seed}/drains").choice([0, 0, 0, 1, 3]) if with_faults else 0
    faults += draw_drains(seed, drains)
    scenario = Scenario(
        node_units,
        num_drivers=rng.randint(1, 2),
        tasks=tasks,
        actors=_draw_actors(random.Random(f"{seed}/actors"), with_faults),
        programs=_draw_programs(random.Random(f"{seed}/programs"), with_faults),
        generators=_draw_generators(random.Random(f"{seed}/generators"), with_faults),
        maps=_draw_maps(random.Random(f"{seed}/maps"), with_faults),
        faults=in_order(faults),
        head_faults=_draw_head_faults(random.Random(f"{seed}/head"), with_faults),
        knobs=knobs,
        disk=DiskKnobs(slow_probability=random.Random(f"{seed}/slow disk").choice([0.0, 0.0, 0.02, 0.2])),
        limits=_draw_limits(random.Random(f"{seed}/limits")),
        pauses=rng.choice([0, 2, 6]),
    )
    return scenario


def draw_drains(seed: int, num_drains: int) -> tuple[Fault, ...]:
    """Nodes are drained one after another, or at once."""
    rng = random.Random(f"{seed}/which drains")
    return tuple(draw_fault(rng, [FaultKind.DRAIN]) for _ in range(num_drains))


def draw_losses(seed: int, weather: Weather = Weather.DEATHS) -> Scenario:
    """Large values, and nodes that die one after another. Nothing else goes wrong, but for STORM."""
    rng = random.Random(f"{seed}/losses")
    usual = draw_scenario(seed, 0, weather)
    losses = tuple(
        LossScript(rng.getrandbits(32), rng.choice([30, 60]), pause_s_max=rng.choice([0.3, 0.6]))
        for _ in range(rng.choice([1, 2, 3]))
    )
    kinds = [FaultKind.KILL_RAYLET, FaultKind.KILL_RAYLET, FaultKind.KILL_WORKER]
    if weather is Weather.STORM:
        kinds += [FaultKind.CRASH_HOST, FaultKind.BREAK_CONNECTION]
    faults = [
        Fault(rng.uniform(0.5, 12.0), rng.choice(kinds), rng.choice([0.05, 0.5, 3.0]), rng.getrandbits(16))
        for _ in range(rng.randint(3, 12))
    ]
    return replace(
        usual,
        # Most tasks run beside the head, which stays.
        node_units=({"CPU": 1.0}, *[{"CPU": 4.0}] * rng.randint(1, 3)),
        num_drivers=1,
        actors=(),
        maps=(),
        programs=(),
        generators=(),
        losses=losses,
        faults=in_order(faults),
        limits=replace(usual.limits, max_lineage_bytes=CoreWorkerConfig().max_lineage_bytes),
    )


def in_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _draw_script(rng: random.Random, with_faults: bool) -> TaskScript:
    compute_s = rng.choice([0.0, 0.001, 0.02, 0.2, 1.0])
    if with_faults and rng.random() < 0.03:
        return TaskScript(
            compute_s, max_retries=rng.choice([0, 1, 2, None]), dies_in_attempts=rng.randint(1, 3)
        )
    if rng.random() < 0.15:
        return TaskScript(compute_s, wait_s=rng.choice([0.01, 0.5]), compute_again_s=compute_s)
    script = TaskScript(compute_s)
    if rng.random() < 0.1:
        script = replace(script, num_children=rng.randint(1, 3), levels=rng.randint(1, 2))
    if rng.random() < 0.1:
        script = replace(script, keeps_s=rng.choice([0.1, 2.0, 30.0]))
    if rng.random() < 0.1:
        cancelled_after_s = rng.choice([0.0, 0.01, 0.1, 1.0])
        by_force = with_faults and rng.random() < 0.5
        script = replace(script, cancelled_after_s=cancelled_after_s, is_cancelled_by_force=by_force)
    return replace(script, num_returns=rng.choice([1, 1, 1, 1, 2]))


def _draw_limits(rng: random.Random) -> CoreWorkerConfig:
    """Small ones, so that they are reached, beside the product's own."""
    usual = CoreWorkerConfig()
    return replace(
        usual,
        # Whoever asks why something waits sends messages, which are not what these runs are about.
        wait_warning_s=1e9,
        lease_requests_max=rng.choice([1, 4, usual.lease_requests_max]),
        ahead_max=rng.choice([1, 3, usual.ahead_max]),
        turn_calls=rng.choice([2, usual.turn_calls]),
        chunk_max=rng.choice([4, usual.chunk_max]),
        shared_answers_max=rng.choice([2, usual.shared_answers_max]),
        unflushed_answers_max=rng.choice([2, usual.unflushed_answers_max]),
        lost_worker_answer_s=rng.choice([0.0003, usual.lost_worker_answer_s]),
        calls_in_flight_max=rng.choice([2, 10, usual.calls_in_flight_max]),
        excess_bytes_max=rng.choice([10_000, usual.excess_bytes_max]),
        items_in_flight_max=rng.choice([2, 8, usual.items_in_flight_max]),
        part_items_max=rng.choice([1, 3, usual.part_items_max]),
        force_s=rng.choice([0.05, usual.force_s]),
        standstill_looks=rng.choice([0, usual.standstill_looks]),
        items_in_flight_bytes_max=rng.choice([200, 1000, usual.items_in_flight_bytes_max]),
        max_lineage_bytes=rng.choice([5_000, *[usual.max_lineage_bytes] * 3]),
    )


def _draw_maps(rng: random.Random, with_faults: bool) -> tuple[MapScript, ...]:
    return tuple(_draw_map(rng, with_faults) for _ in range(rng.choice([0, 1, 2, 3])))


def _draw_map(rng: random.Random, with_faults: bool) -> MapScript:
    compute_s = rng.choice([0.0, 0.0, 0.0002, 0.02])
    usual = TaskScript(compute_s)
    unusual = [usual, replace(usual, cancelled_after_s=rng.choice([0.0, 0.01])), TaskScript(0.5)]
    num_items = rng.choice([1, 5, 40, 80])
    scripts = [rng.choice(unusual) if rng.random() < 0.05 else usual for _ in range(num_items)]
    for _ in range(rng.choice([0, 1, 3]) if with_faults else 0):
        # Its worker has answers then that have not left.
        scripts[rng.randrange(num_items)] = replace(usual, dies_in_attempts=1)
    return MapScript(tuple(scripts), chunk=rng.choice([0, 0, 3]))


def _draw_actors(rng: random.Random, with_faults: bool) -> tuple[ActorScript, ...]:
    return tuple(draw_actor(rng, with_faults) for _ in range(rng.choice([0, 3, 10])))


def draw_actor(rng: random.Random, with_faults: bool) -> ActorScript:
    num_calls = rng.choice([0, 1, 10, 30])
    dies = with_faults and rng.random() < 0.4
    return ActorScript(
        construct_s=rng.choice([0.0, 0.01, 0.5]),
        num_calls=num_calls,
        call_s=rng.choice([0.001, 0.05]),
        max_restarts=rng.choice([0, 1, 3]),
        max_task_retries=rng.choice([0, 1, 3]),
        constructor_raises=rng.random() < 0.1,
        dies_in_constructors=rng.choice([0, 1, 2]) if dies else 0,
        dies_at_call=rng.randrange(num_calls) if dies and num_calls else -1,
        cpus=rng.choice([0.0, 0.5]),
        is_killed_at_the_end=rng.random() < 0.3,
        is_async=rng.random() < 0.4,
        max_concurrency=rng.choice([1, 1, 3]),
        carries_references=rng.random() < 0.4,
        num_callers=rng.choice([0, 0, 2]),
        maps_calls=rng.random() < 0.3,
        waits_each=rng.choice([0, 0, 4]),
        cancels_each=rng.choice([0, 0, 3]),
        call_cancelled_after_s=rng.choice([0.0, 0.01, 0.2]),
        generators=_draw_generators(rng, False) if rng.random() < 0.4 else (),
    )


def _draw_programs(rng: random.Random, with_faults: bool) -> tuple[ObjectScript, ...]:
    return tuple(
        ObjectScript(
            rng.getrandbits(32),
            rng.choice([5, 20, 60]),
            levels=rng.randint(1, 3),
            dies=with_faults and rng.random() < 0.5,
            large_share=rng.choice([0.0, 0.1]),
        )
        for _ in range(rng.choice([0, 1, 4]))
    )


def _draw_generators(rng: random.Random, with_faults: bool) -> tuple[GeneratorScript, ...]:
    return tuple(_draw_generator(rng, with_faults) for _ in range(rng.choice([0, 1, 4])))


def _draw_generator(rng: random.Random, with_faults: bool) -> GeneratorScript:
    num_items = rng.choice([0, 1, 5, 30])
    dies = with_faults and num_items and rng.random() < 0.2
    is_cancelled = rng.random() < 0.3
    return GeneratorScript(
        num_items=num_items,
        item_s=rng.choice([0.0, 0.0, 0.001, 0.05]),
        backpressure=rng.choice([0, 1, 2, 5]),
        is_large=rng.random() < 0.2,
        dies_at=rng.randrange(num_items) if dies else -1,
        takes=rng.choice([-1, -1, -1, rng.randint(0, num_items)]) if not is_cancelled else num_items // 3,
        pause_s=rng.choice([0.0, 0.0, 0.01, 0.2]),
        carries_references=rng.random() < 0.3,
        rests_until_cancelled=is_cancelled,
        cancelled_after_s=rng.choice([0.0, 0.05, 0.5]) if is_cancelled else -1.0,
        is_cancelled_by_force=with_faults and is_cancelled and rng.random() < 0.3,
    )


def draw_fault(rng: random.Random, kinds: Sequence[FaultKind]) -> Fault:
    kind = rng.choice(kinds)
    lasts_s = rng.choice([0.05, 0.5, 3.0, 30.0])
    return Fault(rng.uniform(0.0, 6.0), kind, lasts_s, rng.getrandbits(16))


def _draw_head_faults(rng: random.Random, with_faults: bool) -> tuple[HeadFault, ...]:
    return tuple(
        HeadFault(rng.randrange(60), rng.choice(list(CommitStep)), rng.choice([0.05, 0.5, 3.0]))
        for _ in range(rng.choice([0, 0, 1, 3]) if with_faults else 0)
    )
