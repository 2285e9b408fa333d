"""Programs that wait for what a cluster lacks, and a doctor. He asks `explain` of all that waits, and does
what he is told, until nothing waits.

    things    tasks, actors, their calls and placement groups. What they need may be in use, or nowhere. They
              may have arguments that are not there, and tasks inside that need what they hold themselves
    explain   each that is not over has a reason, and where it is stuck it is said what would help
    treat     starts a node with what is missing, kills what holds it, or one of those in a circle
    wait      the head is away for a while, or a node is drained
    open      where nothing is stuck, code of users runs: it ends now
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_mono.common.explanation import Explanation, Outlook, WaitCode, WaitLink
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import ANY_BUNDLE
from ray_mono.core_worker.options import ActorOptions, TaskOptions
from ray_mono.protobuf import common_pb2
from tests.simulation.checkers import CheckFailed, Journal
from tests.simulation.cluster import SimCluster
from tests.simulation.core_process import SimDriver
from tests.simulation.site import Site, site
from tests.simulation.world import UnjudgedWorld

Units = dict[str, float]

NODES: tuple[Units, ...] = ({"CPU": 2, "A": 1}, {"CPU": 2, "B": 1}, {"CPU": 1}, {"CPU": 4, "A": 1, "B": 1})
NEEDS: tuple[Units, ...] = (
    {"CPU": 1},
    {"CPU": 2},
    {"CPU": 3},
    {"A": 1},
    {"A": 2},
    {"B": 1},
    {"B": 0.5, "CPU": 1},
    {"C": 1},
)
"""C is nowhere."""
INSIDE: tuple[Units, ...] = ({"CPU": 1}, {"A": 1}, {"B": 1})
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
SETTLE_S = 5.0
"""Until what can go on has."""
ROUNDS_MAX = 100
SAME_TREATMENTS_MAX = 3
"""Of one thing: what helped so often and did not help is wrong."""
POLL_S = 0.1
LIMIT_S = 3_000.0
EMPTY_WITHIN_S = 120.0


@dataclass(frozen=True)
class StuckTask:
    needs: tuple[tuple[str, float], ...]
    has_gate: bool
    """It runs until all gates are opened."""
    inside: tuple[tuple[str, float], ...] = ()
    """What a task that it submits and waits for needs; empty: it submits none."""


def play_stuck(number: int, *awaited: Any) -> Any:
    """A StuckTask."""
    here = site()
    script: StuckTask = here.script(number)
    while script.has_gate and not here.world.scripts.gates_are_open:
        here.sleep(POLL_S)
    if script.inside:
        inner = StuckTask(script.inside, has_gate=False)
        here.core.get([_submit(here, inner)], None)
    return (here.core.context.task_id(),)


class Holder:
    """An actor."""

    def __init__(self, *awaited: Any) -> None:
        pass

    def call(self, *awaited: Any) -> tuple[int]:
        return (1,)


def _submit(here: Site, script: StuckTask, args: Sequence[Any] = (), **options: Any) -> Any:
    given = TaskOptions(resources=ResourceSet.from_units(dict(script.needs)), max_retries=0, **options)
    template = here.core.task_template(here.core.export(play_stuck, "function"), given)
    flat = [each for arg in (here.world.scripts.number_of(script), *args) for each in (None, arg)]
    [ref] = here.core.submit_task(template, flat)
    return ref


@dataclass
class Thing:
    """What a driver waits for."""

    kind: str
    """object or placement_group."""
    id: bytes
    what: str
    ref: Any = None


@dataclass
class Stuck:
    """One run: a cluster, a driver, its things, and the doctor."""

    seed: int
    things: list[Thing] = field(default_factory=list)
    treatments: Counter[str] = field(default_factory=Counter)
    """What was done, by why."""

    def play(self) -> Stuck:
        with UnjudgedWorld(self.seed) as world:
            cluster = SimCluster(world, Journal())
            world.check(cluster.check_services)
            world.run(self._play(cluster, world.rng("stuck")), LIMIT_S)
        return self

    async def _play(self, cluster: SimCluster, rng: random.Random) -> None:
        await cluster.start(rng.choices(NODES, k=rng.randint(1, 3)))
        driver = await cluster.start_driver(cluster.host_names()[0])
        await driver.play(lambda here: self._make(here, rng), "make")
        others = cluster.nodes_beside_head()
        if others and rng.random() < 0.3:
            cluster.drain_node(rng.choice(others), None)
        if rng.random() < 0.3:
            cluster.restart_gcs(rng.uniform(0.1, 30.0))
        doctor = Doctor(cluster, driver, self)
        for _ in range(ROUNDS_MAX):
            await asyncio.sleep(SETTLE_S)
            told = await doctor.ask()
            if not told:
                break
            await doctor.treat(told)
        else:
            raise CheckFailed(f"after {ROUNDS_MAX} rounds these still wait: {told}")
        await driver.play(self._let_go, "let go")
        await driver.stop()
        await cluster.until_nothing_is_left(EMPTY_WITHIN_S)

    # ---- what waits

    def _make(self, here: Site, rng: random.Random) -> None:
        self.actors: list[Any] = []
        self.groups: list[bytes] = []
        for _ in range(rng.randint(2, 10)):
            make = rng.choice((self._make_task, self._make_task, self._make_actor, self._make_group))
            make(here, rng)

    def _arguments(self, rng: random.Random) -> list[Any]:
        refs = [thing.ref for thing in self.things if thing.ref is not None]
        return [rng.choice(refs)] if refs and rng.random() < 0.3 else []

    def _make_task(self, here: Site, rng: random.Random) -> None:
        needs = tuple(rng.choice(NEEDS).items())
        inside = tuple(rng.choice(INSIDE).items()) if rng.random() < 0.3 else ()
        script = StuckTask(needs, rng.random() < 0.3, inside)
        ref = _submit(here, script, self._arguments(rng))
        self.things.append(Thing("object", ref.binary(), str(script), ref))

    def _make_actor(self, here: Site, rng: random.Random) -> None:
        needs = rng.choice(NEEDS)
        resources = ResourceSet.from_units(needs)
        options = ActorOptions(class_name="Holder", resources=resources, placement_resources=resources)
        flat = [each for arg in self._arguments(rng) for each in (None, arg)]
        held = here.core.create_actor(here.export_class(Holder), options, flat)
        self.actors.append(held)
        flat = [each for arg in self._arguments(rng) for each in (None, arg)]
        template = here.core.method_template("call", "Holder")
        [ref] = here.core.submit_actor_task(held, template, flat)
        self.things.append(Thing("object", ref.binary(), f"a call of an actor with {needs}", ref))

    def _make_group(self, here: Site, rng: random.Random) -> None:
        bundles = [ResourceSet.from_units(rng.choice(NEEDS)) for _ in range(rng.randint(1, 3))]
        strategy = rng.choice(STRATEGIES)
        group_id = here.core.placement_groups.create(
            common_pb2.PlacementGroupInfo(
                strategy=common_pb2.PlacementGroupInfo.Strategy.Value(strategy),
                bundles=[common_pb2.Bundle(resources=each.to_proto()) for each in bundles],
            )
        )
        self.groups.append(group_id)
        what = f"a group, {strategy}, of {bundles}"
        self.things.append(Thing("placement_group", group_id, what))
        if rng.random() < 0.5:
            script = StuckTask(tuple(bundles[0].to_units().items()), has_gate=rng.random() < 0.3)
            place = common_pb2.PlacementGroupStrategy(placement_group_id=group_id, bundle_index=ANY_BUNDLE)
            within = common_pb2.SchedulingStrategy(placement_group=place)
            ref = _submit(here, script, strategy=within, bundles=tuple(bundles))
            self.things.append(Thing("object", ref.binary(), f"a task in {what}", ref))

    def _let_go(self, here: Site) -> None:
        for actor in self.actors:
            here.core.kill_actor(actor.actor_id, no_restart=True)
        for group_id in self.groups:
            here.core.placement_groups.remove(group_id)
        self.things.clear()
        self.actors.clear()


class Doctor:
    """Who does what `explain` says would help."""

    def __init__(self, cluster: SimCluster, driver: SimDriver, stuck: Stuck) -> None:
        self._cluster = cluster
        self._driver = driver
        self._stuck = stuck
        self._num_nodes = 0
        self._done: Counter[tuple[str, str]] = Counter()

    async def ask(self) -> list[tuple[Thing, Explanation]]:
        """Of what is not over. Raises CheckFailed where something waits and nobody says why."""
        told: list[tuple[Thing, Explanation]] = []

        def ask(here: Site) -> None:
            for thing in self._stuck.things:
                if thing.ref is not None and here.core.wait([thing.ref], 1, 0, False)[0]:
                    continue
                explanation = here.core.explain(thing.kind, thing.id)
                if explanation.code != WaitCode.READY:
                    told.append((thing, explanation))
            overview = here.core.explain_all()
            codes = {explanation.code for _, explanation in told if explanation.outlook is not Outlook.MOVES}
            # A head that is away comes back between the questions.
            if codes - {WaitCode.HEAD_AWAY} and not (overview.groups or overview.silent):
                raise CheckFailed(f"these wait, and are not among all that waits: {told}")

        await self._driver.play(ask, "ask")
        for thing, explanation in told:
            is_told = explanation.unblock or explanation.outlook is Outlook.MOVES
            if explanation.code == WaitCode.UNKNOWN or not is_told:
                raise CheckFailed(f"{thing.what} waits, and it is not said why: {explanation.to_dict()}")
        return told

    async def treat(self, told: Sequence[tuple[Thing, Explanation]]) -> None:
        """One of those that are stuck. Where none is, what runs may end; then one of those that wait for what
        somebody may do."""
        scripts = self._cluster.world.scripts
        by_outlook = {each.outlook: (thing, each) for thing, each in reversed(told)}
        stuck = by_outlook.get(Outlook.STUCK)
        if stuck is None and scripts.gates_are_open:
            stuck = by_outlook.get(Outlook.OPEN)
        if stuck is None:
            scripts.gates_are_open = True
            return
        thing, explanation = stuck
        treatment = await self._treat(explanation)
        self._stuck.treatments[explanation.code] += 1
        self._done[thing.what, treatment] += 1
        if self._done[thing.what, treatment] > SAME_TREATMENTS_MAX:
            raise CheckFailed(f"{thing.what}: {treatment} did not help; {explanation.to_dict()}")

    async def _treat(self, explanation: Explanation) -> str:
        """Returns what it did."""
        if explanation.cycle:
            return await self._break(explanation.cycle)
        link = [each for each in explanation.links if each.unblock][-1]
        match link.code:
            case WaitCode.HEAD_AWAY:
                return "nothing: the head is about to be back"
            case WaitCode.INFEASIBLE | WaitCode.NODE_DRAINED | WaitCode.RESOURCES:
                return await self._start_node(link)
            case WaitCode.HELD_BY_ACTOR:
                return self._kill_worker(link.id)
        raise CheckFailed(f"what would help? {explanation.to_dict()}")

    async def _start_node(self, link: WaitLink) -> str:
        """With all that is needed: on a node it is what is free there and what is missing."""
        if not link.shortages:
            raise CheckFailed(f"a node has to be started, and it is not said with what: {link}")
        least = min(link.shortages, key=lambda each: sorted(each.missing.items()))
        has = least.available if link.code == WaitCode.RESOURCES else least.total
        units = {name: has.get(name, 0) + least.missing.get(name, 0) for name in {**has, **least.missing}}
        self._num_nodes += 1
        host = self._cluster.world.network.add_host(f"added{self._num_nodes}")
        await self._cluster.start_node(host.name, units)
        return f"a node with {units}"

    def _kill_worker(self, worker_id: str) -> str:
        for process in self._cluster.living_workers():
            if process.core.worker_id.hex() == worker_id:
                process.kill("it holds what others need")
                return "its holder was killed"
        raise CheckFailed(f"worker {worker_id} holds what is needed, and is not there")

    async def _break(self, cycle: Sequence[WaitLink]) -> str:
        """Cancels one that this driver has a reference to, or kills a worker."""
        of_cycle = {link.id for link in cycle}
        for thing in self._stuck.things:
            if thing.ref is not None and thing.ref.task_id().hex() in of_cycle:
                await self._driver.play(
                    lambda here, ref=thing.ref: here.core.cancel(ref, True, True), "cancel"
                )
                return f"{thing.what} was cancelled"
        workers = [link.id for link in cycle if link.kind == "worker"]
        if not workers:
            raise CheckFailed(f"a circle in which nothing can be cancelled or killed: {cycle}")
        return self._kill_worker(workers[0])
