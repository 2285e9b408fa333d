"""A cluster, its work, and what goes wrong with it; and the run of it under the checkers.

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

Nor do seeds run rpc's and the storages' handling of a full disk, a torn file and another head: these have
tests of their own. What is not drawn stands in draws.py.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import functools
import random
from dataclasses import dataclass, field

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.core_worker.options import TaskOptions
from ray_mono.raylet.config import RayletConfig
from tests.simulation.actor_programs import ActorScript, live_with_actor
from tests.simulation.checkers import Journal
from tests.simulation.cluster import SimCluster
from tests.simulation.core_process import SimDriver
from tests.simulation.generator_programs import GeneratorScript, take_items
from tests.simulation.group_programs import GroupScript, play_groups
from tests.simulation.loss_programs import LossScript, play_losses
from tests.simulation.memory import MemoryFault
from tests.simulation.network import NetworkKnobs
from tests.simulation.object_programs import ObjectScript, play_in_driver
from tests.simulation.scripts import TaskScript
from tests.simulation.site import DIES_WITH_NODE_S, Site
from tests.simulation.spill_disk import UNREADABLE_IS_LOGGED
from tests.simulation.storage import CommitStep, DiskKnobs
from tests.simulation.task_programs import MapScript, play_map, run_task
from tests.simulation.trace import Trace
from tests.simulation.world import World

LIVENESS_S = 600.0
"""Virtual seconds for the work after the last fault. Health checks of silent hosts take up to 40 s, TCP a
minute.
"""
SETTLE_S = 180.0
"""Virtual seconds after the drivers left for the last leases to end: those of a driver whose host fell silent
end when the host is declared dead, or with TCP's keepalive; and for the jobs of which no node has told.
"""
OBJECTS_SETTLE_S = 300.0
"""Virtual seconds for the last objects of a driver to go when its programs have let go of all: tasks whose
results nobody wants run on, other drivers' work may keep theirs waiting, and borrowers on a silent host end
with TCP's keepalive.
"""
HEAD_STARTS_S = 1.0
"""What a head takes at most until it answers."""
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
    STOP_RAYLET = "a raylet is stopped for a while"
    STOP_HOST = "all of a node's processes are stopped for a while"
    KILL_STORE = "an object manager is killed; its node ends, and starts again as a new one"
    LOSE_HEAD = "the GCS is killed and started again on an empty store"
    DRAIN = "a node is drained; lasts_s is its deadline where `choice` is odd; it comes back as a new one"


STOPS = (FaultKind.STOP_RAYLET, FaultKind.STOP_HOST)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    at_s: float
    kind: FaultKind
    lasts_s: float
    choice: int
    """Which worker, node or connection: an index, modulo how many there are then."""

    @property
    def is_harmless(self) -> bool:
        """Whether it costs nothing: a drain that waits until nothing is left."""
        return self.kind is FaultKind.DRAIN and not self.choice % 2


@dataclass(frozen=True)
class HeadFault:
    """The GCS is killed at one of its commits, and started again on its store."""

    commit: int
    """Counted from the time on at which the drivers begin."""
    step: CommitStep
    lasts_s: float


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
    groups: tuple[GroupScript, ...] = ()
    losses: tuple[LossScript, ...] = ()
    """Over large values, of the drivers."""
    max_retries: int = 4
    pauses: int = 0
    """The drivers submit in about one burst more than this."""
    faults: tuple[Fault, ...] = ()
    head_faults: tuple[HeadFault, ...] = ()
    memory_faults: tuple[MemoryFault, ...] = ()
    knobs: NetworkKnobs = field(default_factory=NetworkKnobs)
    disk: DiskKnobs = field(default_factory=DiskKnobs)
    unreadable_probability: float = 0.0
    """Of a read of what a store has spilled."""
    limits: CoreWorkerConfig = CoreWorkerConfig()
    """Of all core workers."""
    gcs_reconnect_timeout_s: float = RayletConfig.gcs_reconnect_timeout_s
    slip_s: float = 0.0
    """So long may callbacks take: what comes in this time may come between two of them."""

    @property
    def is_harmless(self) -> bool:
        """Whether nothing goes wrong that could cost a task an attempt."""
        tasks = [script for script, _ in self.tasks] + [one for script in self.maps for one in script.scripts]
        is_deadly = any(script.dies_in_attempts or script.is_cancelled_by_force for script in tasks)
        is_deadly = is_deadly or any(script.dies for script in self.programs)
        is_deadly = is_deadly or any(
            script.dies_at >= 0 or script.is_cancelled_by_force for script in self.generators
        )
        has_faults = not all(fault.is_harmless for fault in self.faults)
        has_faults = has_faults or self.head_faults or self.memory_faults or self.knobs.break_probability
        has_faults = has_faults or self.unreadable_probability
        return not has_faults and not is_deadly

    @property
    def explains_errors(self) -> bool:
        """Whether anybody may get an error that tells of something lost."""
        is_deadly = any(script.is_deadly for script in self.actors)
        is_deadly = is_deadly or any(script.dies_at >= 0 for script in self.generators)
        return is_deadly or not self.is_harmless

    @property
    def connections_break(self) -> bool:
        """Whether a worker that lives may count as dead to its caller."""
        breaking = any(fault.kind is FaultKind.BREAK_CONNECTION for fault in self.faults)
        return breaking or bool(self.knobs.break_probability) or self.hosts_fall_silent

    @property
    def heads_stay_away(self) -> bool:
        """Whether the head may be away for as long as anybody waits for it."""
        kinds = FaultKind.RESTART_GCS, FaultKind.LOSE_HEAD
        restarts = [fault for fault in self.faults if fault.kind in kinds]
        away_s = max((fault.lasts_s for fault in (*restarts, *self.head_faults)), default=0.0)
        return away_s + HEAD_STARTS_S >= self.gcs_reconnect_timeout_s

    @property
    def hosts_fall_silent(self) -> bool:
        """Whether an owner or a borrower that lives may count as dead to the other."""
        return any(fault.kind in (FaultKind.PARTITION, FaultKind.CRASH_HOST, *STOPS) for fault in self.faults)


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
    groups: tuple[int, int]
    """Placement groups that were seen created, and removals that somebody was told of."""
    head_commits: int
    """Of the GCS, from the time on at which the drivers began."""


def run_scenario(
    seed: int,
    scenario: Scenario,
    check_internals: bool = True,
    liveness_s: float = LIVENESS_S,
    trace: Trace | None = None,
) -> Outcome:
    """Runs a scenario; raises CheckFailed, TimeLimitReached or another SimulationError with the seed in a
    note.

    check_internals: also have the raylets recount themselves at every instant.
    trace: gets every message.
    """
    explained = (UNREADABLE_IS_LOGGED,) if scenario.unreadable_probability else ()
    with World(seed, scenario.knobs, trace, explained) as world:
        world.loop.let_slip(scenario.slip_s, world.rng("slips"))
        journal = Journal()
        journal.expects(
            scenario.connections_break, scenario.hosts_fall_silent, is_harmless=not scenario.explains_errors
        )
        journal.actors.heads_forget = any(fault.kind is FaultKind.LOSE_HEAD for fault in scenario.faults)
        journal.groups.heads_forget = journal.actors.heads_forget
        journal.actors.heads_stay_away = scenario.heads_stay_away
        cluster = SimCluster(
            world,
            journal,
            scenario.limits,
            scenario.disk,
            bool(scenario.memory_faults),
            scenario.gcs_reconnect_timeout_s,
            scenario.unreadable_probability,
        )
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
            (journal.groups.num_created, journal.groups.num_removals_read),
            cluster.num_commits,
        )


async def _play(world: World, cluster: SimCluster, scenario: Scenario, journal: Journal) -> None:
    world.network.may_break = False
    await cluster.start(scenario.node_units)
    hosts = cluster.host_names()
    drivers = [
        await cluster.start_driver(hosts[number % len(hosts)]) for number in range(scenario.num_drivers)
    ]
    world.network.may_break = True
    cluster.restart_gcs_at({(fault.commit, fault.step): fault.lasts_s for fault in scenario.head_faults})
    rng = world.rng("submissions")
    work = [
        asyncio.ensure_future(_drive(driver, scenario, number, rng.getrandbits(32), journal))
        for number, driver in enumerate(drivers)
    ]
    shortages = [asyncio.ensure_future(_run_short(cluster, fault)) for fault in scenario.memory_faults]
    for fault in scenario.faults:
        await asyncio.sleep(max(0.0, fault.at_s - world.loop.time()))
        inflict(cluster, fault)
    await asyncio.sleep(max([0.0, *(fault.lasts_s for fault in scenario.faults)]))
    await asyncio.gather(*shortages)
    world.network.may_break = False
    world.network.heal()
    await asyncio.gather(*work)
    await cluster.until_nothing_is_left(SETTLE_S)


async def _run_short(cluster: SimCluster, fault: MemoryFault) -> None:
    await asyncio.sleep(max(0.0, fault.at_s - cluster.world.loop.time()))
    memory = cluster.nodes[fault.choice % len(cluster.nodes)].memory
    if memory is not None:
        memory.leave_room_for(fault.num_workers)
        await asyncio.sleep(fault.lasts_s)
        memory.leave_room_for(None)


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
        for group in scenario.groups[share]:
            parts.append(driver.play(functools.partial(play_groups, script=group), "groups"))
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
        case FaultKind.STOP_RAYLET if nodes:
            nodes[fault.choice % len(nodes)].process.stop(cluster.world.loop.time() + fault.lasts_s)
        case FaultKind.STOP_HOST if nodes:
            node = nodes[fault.choice % len(nodes)]
            network.stop_host(node.host_name, cluster.world.loop.time() + fault.lasts_s)
        case FaultKind.RESTART_GCS:
            cluster.restart_gcs(fault.lasts_s)
        case FaultKind.LOSE_HEAD:
            cluster.restart_gcs(fault.lasts_s, loses_store=True)
        case FaultKind.KILL_STORE if nodes:
            node = nodes[fault.choice % len(nodes)]
            node.store.process.kill("a fault")
            cluster.start_node_later(node, fault.lasts_s)
        case FaultKind.DRAIN if nodes:
            node = nodes[fault.choice // 2 % len(nodes)]
            cluster.drain_node(node, fault.lasts_s if fault.choice % 2 else None)
        case _:
            pass
