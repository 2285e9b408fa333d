"""What a seed draws: a cluster, its work, and what goes wrong with it; and the run of it under the checkers.

First safety: under faults nothing may be wrong. Then liveness: the faults end, everything that was cut heals,
and all work has to end within LIVENESS_S virtual seconds. Last the books: no object, no lease, no task, no
resource may be left over.

Of production this does not run:

    rpc: reactor, channels, servers, sockets, frames       reactor.py, core_transport.py, channel.py and more
    common/start_board.py                                  SimBoard (machine.py); board_test.py runs over both
    how drivers and workers begin and leave (process/),    core_process.py, launcher.py
    the workers' template, and their output
    the GCS's storage, the stream of objects between       storage.py, stores.py
    stores
    threads that run at the same time, signals between     baton.py: one thread runs at a time, and a switch
    any two instructions                                   or a signal comes where it waits
    the API, cloudpickle of functions over processes       site.py, *_programs.py

Nor is there a draw of: runtime environments, named and detached actors, strategies, max_calls, concurrency
groups, a kill of an actor that may restart.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.core_worker.options import TaskOptions
from tests.simulation.actor_programs import ActorScript, live_with_actor
from tests.simulation.checkers import Journal
from tests.simulation.cluster import SimCluster
from tests.simulation.core_process import SimDriver
from tests.simulation.generator_programs import GeneratorScript, take_items
from tests.simulation.loss_programs import LossScript, play_losses
from tests.simulation.network import NetworkKnobs
from tests.simulation.object_programs import ObjectScript, play_in_driver
from tests.simulation.scripts import TaskScript
from tests.simulation.site import Site
from tests.simulation.task_programs import MapScript, play_map, run_task
from tests.simulation.world import World

LIVENESS_S = 600.0
"""Virtual seconds for the work after the last fault. Health checks of silent hosts take up to 40 s, TCP a
minute.
"""
SETTLE_S = 120.0
"""Virtual seconds after the drivers left for the last leases to end: those of a driver whose host fell silent
end when the host is declared dead, or with TCP's keepalive.
"""
DIES_WITH_NODE_S = 1.0
"""Virtual seconds after its node's end in which a driver ends."""
OBJECTS_SETTLE_S = 300.0
"""Virtual seconds for the last objects of a driver to go when its programs have let go of all: tasks whose
results nobody wants run on, other drivers' work may keep theirs waiting, and borrowers on a silent host end
with TCP's keepalive.
"""
PAUSE_S_MAX = 2.0
"""The longest a driver rests between two bursts of tasks."""


class FaultKind(enum.Enum):
    """Everything that can be made to go wrong."""

    KILL_WORKER = "a worker is killed"
    KILL_RAYLET = "a raylet is killed, and its node started again as a new one"
    CRASH_HOST = "a host loses power and comes back as a new node"
    BREAK_CONNECTION = "a connection between hosts breaks"
    PARTITION = "two hosts cannot reach each other for a while"
    RESTART_GCS = "the GCS is killed and started again on its store"


class Weather(enum.Enum):
    """How much goes wrong. The less, the more the judges demand: where no connection breaks, nobody counts as
    dead who lives; where nothing goes wrong, nothing runs twice, and nobody reads an error."""

    CALM = "nothing goes wrong"
    DEATHS = "processes die, on the fault's or their tasks' account"
    STORM = "connections break and hosts are silent, too"


DEATHS = (FaultKind.KILL_WORKER, FaultKind.KILL_RAYLET, FaultKind.RESTART_GCS)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    at_s: float
    kind: FaultKind
    lasts_s: float
    choice: int
    """Which worker, node or connection: an index, modulo how many there are then."""


@dataclass(frozen=True)
class Scenario:
    """All that a seed decides beside delays."""

    node_units: tuple[dict[str, float], ...]
    """Resources by node; the first is the head."""
    num_drivers: int
    tasks: tuple[tuple[TaskScript, ResourceSet], ...]
    actors: tuple[ActorScript, ...] = ()
    programs: tuple[ObjectScript, ...] = ()
    """Over objects, of the drivers."""
    generators: tuple[GeneratorScript, ...] = ()
    maps: tuple[MapScript, ...] = ()
    losses: tuple[LossScript, ...] = ()
    """Over large values, of the drivers."""
    max_retries: int = 4
    pauses: int = 0
    """The drivers submit in about one burst more than this."""
    faults: tuple[Fault, ...] = ()
    knobs: NetworkKnobs = field(default_factory=NetworkKnobs)
    limits: CoreWorkerConfig = CoreWorkerConfig()
    """Of all core workers."""

    @property
    def is_harmless(self) -> bool:
        """Whether nothing goes wrong that could cost a task an attempt."""
        tasks = [script for script, _ in self.tasks] + [one for script in self.maps for one in script.scripts]
        is_deadly = any(script.dies_in_attempts or script.is_cancelled_by_force for script in tasks)
        is_deadly = is_deadly or any(script.dies for script in self.programs)
        is_deadly = is_deadly or any(
            script.dies_at >= 0 or script.is_cancelled_by_force for script in self.generators
        )
        return not self.faults and not is_deadly and not self.knobs.break_probability

    @property
    def explains_errors(self) -> bool:
        """Whether anybody may get an error that tells of something lost."""
        is_deadly = any(script.is_deadly for script in self.actors)
        is_deadly = is_deadly or any(script.dies_at >= 0 for script in self.generators)
        return is_deadly or not self.is_harmless

    @property
    def connections_break(self) -> bool:
        """Whether a process that lives may count as dead to another."""
        breaking = (FaultKind.BREAK_CONNECTION, FaultKind.PARTITION, FaultKind.CRASH_HOST)
        return bool(self.knobs.break_probability) or any(fault.kind in breaking for fault in self.faults)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    digest: str
    num_messages: int
    virtual_s: float
    outcomes: dict[str, int]
    grants: int
    retries: int
    """Attempts beyond the first."""
    actor_calls: tuple[int, int]
    """Answered, and not."""
    actor_restarts: int
    object_reads: tuple[int, int]
    """Of values, and of errors: owners and workers that died, cancels."""


def draw_scenario(seed: int, num_tasks: int = 120, weather: Weather | None = None) -> Scenario:
    """A scenario from a seed. weather: of the seed's choice, if None."""
    if weather is None:
        choices = [Weather.CALM, Weather.DEATHS, Weather.DEATHS, Weather.STORM, Weather.STORM]
        weather = random.Random(f"{seed}/weather").choice(choices)
    with_faults = weather is not Weather.CALM
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
        break_probability=rng.choice([0.0, 0.0, 0.001, 0.01]) if weather is Weather.STORM else 0.0,
    )
    kinds = {Weather.CALM: (), Weather.DEATHS: DEATHS, Weather.STORM: tuple(FaultKind)}[weather]
    faults = tuple(_draw_fault(rng, kinds) for _ in range(rng.randint(0, 8))) if kinds else ()
    scenario = Scenario(
        node_units,
        num_drivers=rng.randint(1, 2),
        tasks=tasks,
        actors=_draw_actors(random.Random(f"{seed}/actors"), with_faults),
        programs=_draw_programs(random.Random(f"{seed}/programs"), with_faults),
        generators=_draw_generators(random.Random(f"{seed}/generators"), with_faults),
        maps=_draw_maps(random.Random(f"{seed}/maps"), with_faults),
        faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
        knobs=knobs,
        limits=_draw_limits(random.Random(f"{seed}/limits")),
        pauses=rng.choice([0, 2, 6]),
    )
    return scenario


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
        faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
        limits=replace(usual.limits, max_lineage_bytes=CoreWorkerConfig().max_lineage_bytes),
    )


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
    return tuple(_draw_actor(rng, with_faults) for _ in range(rng.choice([0, 3, 10])))


def _draw_actor(rng: random.Random, with_faults: bool) -> ActorScript:
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


def _draw_fault(rng: random.Random, kinds: Sequence[FaultKind]) -> Fault:
    kind = rng.choice(kinds)
    lasts_s = rng.choice([0.05, 0.5, 3.0, 30.0])
    return Fault(rng.uniform(0.0, 6.0), kind, lasts_s, rng.getrandbits(16))


def run_scenario(
    seed: int, scenario: Scenario, check_internals: bool = True, liveness_s: float = LIVENESS_S
) -> Outcome:
    """Runs a scenario; raises CheckFailed, TimeLimitReached or another SimulationError with the seed in a
    note.

    check_internals: also have the raylets recount themselves at every instant.
    """
    with World(seed, scenario.knobs) as world:
        journal = Journal()
        journal.expects(scenario.connections_break, is_harmless=not scenario.explains_errors)
        cluster = SimCluster(world, journal, scenario.limits)
        if check_internals:
            world.check(cluster.check_services)
        limit_s = liveness_s + max([fault.at_s + fault.lasts_s for fault in scenario.faults], default=0.0)
        world.run(_play(world, cluster, scenario, journal), limit_s)
        journal.check_everything_ended()
        if scenario.is_harmless:
            journal.check_no_retries()
        return Outcome(
            world.trace.digest(),
            world.trace.count,
            world.loop.time(),
            journal.outcomes(),
            journal.grants,
            journal.retries(),
            (journal.actors.calls_done, journal.actors.calls_failed),
            journal.actors.restarts(),
            (journal.objects.values_read, journal.objects.errors_read),
        )


async def _play(world: World, cluster: SimCluster, scenario: Scenario, journal: Journal) -> None:
    world.network.may_break = False
    await cluster.start(scenario.node_units)
    hosts = cluster.host_names()
    drivers = [
        await cluster.start_driver(hosts[number % len(hosts)]) for number in range(scenario.num_drivers)
    ]
    world.network.may_break = True
    rng = world.rng("submissions")
    work = [
        asyncio.ensure_future(_drive(driver, scenario, number, rng.getrandbits(32), journal))
        for number, driver in enumerate(drivers)
    ]
    for fault in scenario.faults:
        await asyncio.sleep(max(0.0, fault.at_s - world.loop.time()))
        inflict(cluster, fault)
    await asyncio.sleep(max([0.0, *(fault.lasts_s for fault in scenario.faults)]))
    world.network.may_break = False
    world.network.heal()
    await asyncio.gather(*work)
    await cluster.until_nothing_is_left(SETTLE_S)


async def _drive(driver: SimDriver, scenario: Scenario, number: int, seed: int, journal: Journal) -> None:
    """One driver's share of the work, each kind on threads of its own. Ends with it, or when the driver's
    process dies."""
    died = asyncio.Event()
    driver.process.on_death(lambda _reason: died.set())
    share = slice(number, None, scenario.num_drivers)

    async def work() -> None:
        parts = [driver.play(lambda here: _submit_bursts(here, scenario, share, seed), "tasks")]
        for actor in scenario.actors[share]:
            parts.append(driver.play(functools.partial(live_with_actor, script=actor), "actor"))
        for place, program in enumerate(scenario.programs[share]):
            play = functools.partial(play_in_driver, script=program, number=place)
            parts.append(driver.play(play, "program"))
        for losing in scenario.losses[share]:
            parts.append(driver.play(functools.partial(play_losses, script=losing), "losses"))
        for mapped in scenario.maps[share]:
            parts.append(driver.play(functools.partial(play_map, script=mapped), "map"))
        for generator in scenario.generators[share]:
            parts.append(driver.play(functools.partial(take_items, script=generator), "generator"))
        await asyncio.gather(*parts)
        await journal.objects.until_nothing_is_left(driver.job_id, OBJECTS_SETTLE_S)
        await driver.stop()

    working = asyncio.ensure_future(work())
    death = asyncio.ensure_future(died.wait())
    await asyncio.wait([working, death], return_when=asyncio.FIRST_COMPLETED)
    has_failed = working.done() and working.exception() is not None
    if has_failed:
        # Where the driver's node dies, a program may hear of the store's end before its process ends, too.
        await asyncio.wait([death], timeout=DIES_WITH_NODE_S)
    if working.done() and not (has_failed and died.is_set()):
        working.result()
    else:
        working.cancel()
        journal.driver_died(driver.job_id)


def _submit_bursts(here: Site, scenario: Scenario, share: slice, seed: int) -> None:
    """Tasks, in bursts; then their results."""
    rng = random.Random(seed)
    refs = []
    for script, resources in scenario.tasks[share]:
        if rng.random() < scenario.pauses / len(scenario.tasks):
            here.sleep(rng.uniform(0.0, PAUSE_S_MAX))
        max_retries = scenario.max_retries if script.max_retries is None else script.max_retries
        options = TaskOptions(
            resources=resources,
            max_retries=max_retries,
            max_calls=script.max_calls,
            num_returns=script.num_returns,
        )
        made = here.submit(run_task, script, options=options)
        refs.append(made if isinstance(made, list) else [made])
        del made
    while refs:
        first, *others = refs.pop(0)
        here.result(first)
        for ref in others:
            here.get(ref)
        del first, others


def inflict(cluster: SimCluster, fault: Fault) -> None:
    """Makes one thing go wrong, if there is anything left that it can happen to."""
    nodes = cluster.nodes_beside_head()
    network = cluster.world.network
    match fault.kind:
        case FaultKind.KILL_WORKER:
            workers = cluster.living_workers()
            if workers:
                workers[fault.choice % len(workers)].kill("a fault")
        case FaultKind.KILL_RAYLET if nodes:
            node = nodes[fault.choice % len(nodes)]
            node.process.kill("a fault")
            cluster.start_node_later(node, fault.lasts_s)
        case FaultKind.CRASH_HOST if nodes:
            node = nodes[fault.choice % len(nodes)]
            network.crash_host(node.host_name)
            cluster.start_node_later(node, fault.lasts_s)
        case FaultKind.BREAK_CONNECTION:
            connections = network.connections_between_hosts()
            if connections:
                network.break_connection(connections[fault.choice % len(connections)])
        case FaultKind.PARTITION:
            hosts = cluster.host_names()
            first, second = fault.choice % len(hosts), fault.choice // 16 % len(hosts)
            if first != second:
                network.partition(hosts[first], hosts[second])
                cluster.world.loop.call_later(fault.lasts_s, network.heal, context=contextvars.Context())
        case FaultKind.RESTART_GCS:
            cluster.restart_gcs(fault.lasts_s)
        case _:
            pass
