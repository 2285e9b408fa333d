"""How a cluster's costs grow with its nodes: the real services and core workers, in virtual time.

    python -m tests.simulation.scale [--nodes 10,100,1000] [--phases tasks,actors,groups]

Each cluster has N nodes of 8 CPUs, a driver on every tenth. It runs 100 tasks of 0.1 s for each node, then
10 actors for each node, then 10 placement groups of 4 bundles for each node. Of each phase it is told

    virtual s    how long it took there, with delays between hosts of 0.1 to 1 ms; code takes no time
    decisions    what raylets and head decided, and the time that their code took for one, on this machine
    messages     between hosts, for each node, and the bytes in them
    told         of these, what the head tells subscribers
    head KB      the rows that it keeps, for each node, before what was made ends

Nothing is judged here: explore.py does that. 1,000 nodes take a quarter of an hour and some 8 GB.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.options import ActorOptions, TaskOptions
from ray_mono.gcs.actor import actor_scheduler
from ray_mono.gcs.lease_client import LeaseClient
from ray_mono.gcs.placement_group import wanted_places
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.effects import Granted, SpilledBack
from ray_mono.raylet.scheduling.lease_scheduler import LeaseScheduler
from tests.simulation.actor_programs import ActorScript, PlainActor
from tests.simulation.checkers import Journal
from tests.simulation.cluster import SimCluster
from tests.simulation.core_process import SimDriver
from tests.simulation.endpoint import Endpoint, Item, Packet
from tests.simulation.network import SimNetwork
from tests.simulation.scripts import TaskScript
from tests.simulation.site import Site
from tests.simulation.task_programs import run_task
from tests.simulation.trace import Trace
from tests.simulation.world import UnjudgedWorld

CPUS = 8
NODES_PER_DRIVER = 10
TASKS_PER_NODE = 100
TASK_S = 0.1
ACTORS_PER_NODE = 10
GROUPS_PER_NODE = 10
BUNDLES = 4
LIMIT_S = 1_000.0
ONE_CPU = ResourceSet.from_units({"CPU": 1})
A_TENTH = ResourceSet.from_units({"CPU": 0.1})
NO_CPU = ResourceSet()


class _NoTrace(Trace):
    def record(self, *args: Any, **kwargs: Any) -> None:
        """Of millions of messages."""


@dataclass
class Costs:
    """Of one phase of one cluster."""

    phase: str
    num_nodes: int
    virtual_s: float = 0.0
    num_decisions: int = 0
    decisions_s: float = 0.0
    num_messages: int = 0
    num_told: int = 0
    size_bytes: int = 0
    head_bytes: int = 0

    def row(self) -> str:
        nodes = self.num_nodes
        each_us = self.decisions_s / self.num_decisions * 1e6 if self.num_decisions else 0.0
        return (
            f"{nodes:6} {self.phase:7} {self.virtual_s:9.2f} {self.num_decisions:9} {each_us:8.0f}"
            f" {self.num_messages / nodes:9.0f} {self.size_bytes / nodes / 1024:8.0f}"
            f" {self.num_told / nodes:9.0f} {self.head_bytes / nodes / 1024:8.1f}"
        )


HEAD_LINE = (
    " nodes phase   virtual s decisions  us each  messages       KB      told  head KB\n"
    "                                            per node per node  per node per node"
)


class Meter:
    """Counts what happens in one cluster while it is in use."""

    def __init__(self) -> None:
        self.costs = Costs("", 0)
        # A scheduler calls itself through others: what is measured is measured once.
        self._is_inside = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        places: tuple[tuple[Any, str], ...] = (
            (LeaseScheduler, "run"),
            (LeaseScheduler, "look"),
            (LeaseClient, "view"),
            (actor_scheduler, "choose_node"),
            (wanted_places, "place"),
        )
        transmit = SimNetwork.transmit

        def counted(network: SimNetwork, sender: Endpoint, receiver: Endpoint, item: Item) -> None:
            if isinstance(item, Packet) and sender.process.host_name != receiver.process.host_name:
                self.costs.num_messages += 1
                self.costs.num_told += item.kind == "ITEM" and sender.process.name.startswith("gcs")
                self.costs.size_bytes += len(item.payload)
            transmit(network, sender, receiver, item)

        patches = [
            mock.patch.object(owner, name, self._timed(getattr(owner, name))) for owner, name in places
        ]
        patches.append(mock.patch.object(SimNetwork, "transmit", counted))
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        is_at_head = function.__name__ in ("choose_node", "place")

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._is_inside:
                return function(*args, **kwargs)
            self._is_inside, begin_s = True, time.thread_time()
            try:
                done = function(*args, **kwargs)
            finally:
                self._is_inside = False
                self.costs.decisions_s += time.thread_time() - begin_s
            if is_at_head:
                self.costs.num_decisions += done is not None
            elif function.__name__ == "run":
                self.costs.num_decisions += sum(isinstance(each, Granted | SpilledBack) for each in done)
            return done

        return timed


Ends = Sequence[Callable[[], None]]
"""What ends all that was made."""


def run_tasks(here: Site, num_nodes: int) -> Ends:
    options = TaskOptions(resources=ONE_CPU, max_retries=0)
    refs = [
        here.submit(run_task, TaskScript(TASK_S), options=options) for _ in range(num_nodes * TASKS_PER_NODE)
    ]
    here.core.wait(refs, len(refs), None, False)
    return ()


def make_actors(here: Site, num_nodes: int) -> Ends:
    script = ActorScript()
    options = ActorOptions(class_name="Simulated", resources=NO_CPU)
    code = here.export_class(PlainActor)
    number = here.world.scripts.number_of(script)
    held = [
        here.core.create_actor(code, options, [None, number, None, []])
        for _ in range(num_nodes * ACTORS_PER_NODE)
    ]
    refs = [each.creation_ref for each in held]
    here.core.wait(refs, len(refs), None, False)
    return [partial(here.kill_actor, each.actor_id) for each in held]


def make_groups(here: Site, num_nodes: int) -> Ends:
    bundle = common_pb2.Bundle(resources=A_TENTH.to_proto())
    wanted = common_pb2.PlacementGroupInfo(
        strategy=common_pb2.PlacementGroupInfo.SPREAD, bundles=[bundle] * BUNDLES
    )
    groups = here.core.placement_groups
    made = [groups.create(wanted) for _ in range(num_nodes * GROUPS_PER_NODE)]
    for group_id in made:
        groups.wait(group_id, None)
    return [partial(groups.remove, group_id) for group_id in made]


PHASES: dict[str, Callable[[Site, int], Ends]] = {
    "tasks": run_tasks,
    "actors": make_actors,
    "groups": make_groups,
}


def measure(num_nodes: int, phases: Sequence[str]) -> list[Costs]:
    """The start of one cluster, then each phase."""
    meter, measured = Meter(), []

    async def play() -> None:
        await phase("start", cluster.start([{"CPU": CPUS}] * num_nodes))
        hosts = cluster.host_names()[::NODES_PER_DRIVER]
        drivers = [await cluster.start_driver(host) for host in hosts]
        shares = [(driver, len(range(first, num_nodes, len(hosts)))) for first, driver in enumerate(drivers)]
        for name in phases:
            program = PHASES[name]
            await phase(name, together([(each, partial(program, num_nodes=share)) for each, share in shares]))

    async def together(programs: Sequence[tuple[SimDriver, Callable[[Site], Ends]]]) -> None:
        """Each on its driver. What the head keeps is looked at when all is made, before it ends."""
        ends: list[tuple[SimDriver, Ends]] = []

        def make(driver: SimDriver, program: Callable[[Site], Ends], here: Site) -> None:
            ends.append((driver, program(here)))

        def end(made: Ends, here: Site) -> None:
            for each in made:
                each()

        await asyncio.gather(*(each.play(partial(make, each, program), "make") for each, program in programs))
        meter.costs.head_bytes = cluster.stored_bytes()
        await asyncio.gather(*(driver.play(partial(end, made), "end") for driver, made in ends))

    async def phase(name: str, work: Any) -> None:
        meter.costs = Costs(name, num_nodes)
        begin_s = world.loop.time()
        await work
        meter.costs.virtual_s = world.loop.time() - begin_s
        meter.costs.head_bytes = meter.costs.head_bytes or cluster.stored_bytes()
        measured.append(meter.costs)

    with meter.installed(), UnjudgedWorld(0, trace=_NoTrace()) as world:
        cluster = SimCluster(world, Journal())
        world.run(play(), LIMIT_S)
    return measured


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", default="10,30,100", help="sizes of clusters; default: %(default)s")
    parser.add_argument(
        "--phases", default=",".join(PHASES), help="of each, in this order; default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    phases = arguments.phases.split(",")
    for name in phases:
        if name not in PHASES:
            parser.error(f"--phases must name some of {', '.join(PHASES)}, got {name!r}")
    print(HEAD_LINE, flush=True)
    for num_nodes in map(int, arguments.nodes.split(",")):
        for costs in measure(num_nodes, phases):
            print(costs.row(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
