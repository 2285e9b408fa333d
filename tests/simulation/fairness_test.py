"""Turns in a cluster that is never idle, in virtual time: what waits beside a flood, on one node and two."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import ActorOptions, TaskOptions
from ray_mono.gcs.placement_group.group_turns import GIVE_WAY_AFTER_S
from ray_mono.protobuf import common_pb2
from tests.simulation.checkers import Journal
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.scripts import TaskScript
from tests.simulation.site import Site, site
from tests.simulation.task_programs import run_task
from tests.simulation.world import World

TASK_S = 0.05
LIMIT_S = 200.0
MESSAGES_S = 0.05
"""What messages take at most in all, from the creation of a group to the news of it."""
ONE_CPU = ResourceSet.from_units({"CPU": 1})
Info = common_pb2.PlacementGroupInfo


def beside_a_flood(
    nodes: Sequence[Mapping[str, float]],
    calls: Callable[[World, SimCluster, Site], None],
    flood_resources: ResourceSet = ONE_CPU,
    has_own_driver: bool = True,
    task_s: float = TASK_S,
) -> None:
    """`calls` in a driver, while the first node's driver has more tasks than there is time for."""
    is_over: list[bool] = []
    flood_options = TaskOptions(resources=flood_resources, max_retries=0)

    def flood(here: Site) -> None:
        running: list[ObjectRef[Any]] = []
        while not is_over:
            while len(running) < 50:
                running.append(here.submit(run_task, TaskScript(task_s), options=flood_options))
            _, running = here.core.wait(running, 1, None, False)
        here.core.wait(running, len(running), None, False)

    def play_calls(here: Site) -> None:
        here.sleep(0.5)
        calls(world, cluster, here)
        is_over.append(True)

    async def play() -> None:
        await cluster.start(nodes)
        hosts = cluster.host_names()
        first = await cluster.start_driver(hosts[0])
        second = await cluster.start_driver(hosts[-1]) if has_own_driver else first
        await asyncio.gather(first.play(flood, "flood"), second.play(play_calls, "calls"))
        for driver in dict.fromkeys((first, second)):
            await driver.stop()
        await cluster.until_nothing_is_left(10)

    with World(0) as world:
        cluster = SimCluster(world, Journal())
        world.run(play(), LIMIT_S)


def waits_beside_a_flood(
    nodes: Sequence[Mapping[str, float]],
    resources: ResourceSet = ONE_CPU,
    flood_resources: ResourceSet = ONE_CPU,
    has_own_driver: bool = True,
    num_calls: int = 3,
) -> list[float]:
    """How long each of some calls took, one after the other."""
    took_s: list[float] = []
    options = TaskOptions(resources=resources, max_retries=0)

    def calls(world: World, cluster: SimCluster, here: Site) -> None:
        for _ in range(num_calls):
            begin_s = world.loop.time()
            here.result(here.submit(run_task, TaskScript(TASK_S), options=options))
            took_s.append(world.loop.time() - begin_s)
            # Longer than a lease lingers.
            here.sleep(0.05)

    beside_a_flood(nodes, calls, flood_resources, has_own_driver)
    return took_s


@pytest.mark.parametrize("nodes", [[{"CPU": 1}], [{"CPU": 2}, {"CPU": 2}]], ids=["1 node", "2 nodes"])
def test_another_drivers_calls_take_less_than_a_second_each(nodes: list[dict[str, float]]) -> None:
    assert max(waits_beside_a_flood(nodes)) < 0.5


def test_larger_and_smaller_tasks_of_the_same_driver_take_less_than_a_second_each() -> None:
    for cpus in (2, 0.5):
        resources = ResourceSet.from_units({"CPU": cpus})
        assert max(waits_beside_a_flood([{"CPU": 2}], resources, has_own_driver=False)) < 1.0


def test_what_runs_on_another_node_only_has_its_turn_there() -> None:
    nodes = [{"CPU": 2}, {"CPU": 2, "A": 1}, {"CPU": 1}]
    there = ResourceSet.from_units({"CPU": 1, "A": 0.1})
    assert max(waits_beside_a_flood(nodes, there)) < 1.0


FLOODED_S = 20.0
SHARE_MIN = 0.4
"""Of two whose tasks are alike. They take turns, so that longer tasks get more: see below."""


def done_by_two_floods(
    nodes: Sequence[Mapping[str, float]],
    hosts: tuple[int, int],
    task_s: tuple[float, float],
    cpus: tuple[float, float] = (1, 1),
) -> tuple[float, float]:
    """Two drivers that never have enough, the second of which comes later: how many CPU seconds of its tasks
    were run for each while both were there."""
    resources = [ResourceSet.from_units({"CPU": amount}) for amount in cpus]
    options = [TaskOptions(resources=each, max_retries=0) for each in resources]
    seconds = [0.0, 0.0]

    def flood(here: Site, number: int, begin_s: float, world: World) -> None:
        here.sleep(number * 1.0)
        running: list[ObjectRef[Any]] = []
        while world.loop.time() < begin_s + FLOODED_S:
            while len(running) < 50:
                running.append(here.submit(run_task, TaskScript(task_s[number]), options=options[number]))
            over, running = here.core.wait(running, 1, None, False)
            if world.loop.time() > begin_s + 2.0:
                seconds[number] += cpus[number] * task_s[number] * len(over)
        here.core.wait(running, len(running), None, False)

    async def play(world: World, cluster: SimCluster) -> None:
        await cluster.start(nodes)
        names = cluster.host_names()
        drivers = [await cluster.start_driver(names[host]) for host in hosts]
        begin_s = world.loop.time()
        await asyncio.gather(
            *(
                driver.play(partial(flood, number=number, begin_s=begin_s, world=world), "flood")
                for number, driver in enumerate(drivers)
            )
        )
        for driver in drivers:
            await driver.stop()
        await cluster.until_nothing_is_left(10)

    with World(0) as world:
        cluster = SimCluster(world, Journal())
        world.run(play(world, cluster), LIMIT_S)
    return seconds[0], seconds[1]


@pytest.mark.parametrize("hosts", [(0, 0), (0, 1)], ids=["from one node", "from two"])
@pytest.mark.parametrize(
    ("task_s", "share_min"), [((0.1, 0.1), SHARE_MIN), ((0.1, 0.5), 0.25), ((0.5, 0.1), 0.25)]
)
def test_two_drivers_that_never_have_enough_share_all_nodes(
    hosts: tuple[int, int], task_s: tuple[float, float], share_min: float
) -> None:
    first_s, second_s = done_by_two_floods([{"CPU": 2}] * 3, hosts, task_s)
    assert min(first_s, second_s) >= share_min * (first_s + second_s), (first_s, second_s)


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize("hosts", [(0, 0), (0, -1)], ids=["from one node", "from two"])
@pytest.mark.parametrize(
    ("cpus", "task_s"),
    [((1, 4), (0.1, 0.1)), ((4, 1), (0.1, 0.1)), ((0.25, 1), (0.2, 0.2)), ((1, 4), (0.05, 1.0))],
    ids=["all of a node", "all of a node, first", "a part of it", "all of it for long"],
)
def test_two_drivers_whose_tasks_need_different_amounts_share_all_nodes(
    num_nodes: int, hosts: tuple[int, int], cpus: tuple[float, float], task_s: tuple[float, float]
) -> None:
    first_s, second_s = done_by_two_floods([{"CPU": 4}] * num_nodes, hosts, task_s, cpus)
    assert min(first_s, second_s) >= 0.28 * (first_s + second_s), (first_s, second_s)


# ---- placement groups


def group_of(bundle: ResourceSet, number: int, strategy: common_pb2.PlacementGroupInfo.Strategy) -> Info:
    return Info(bundles=[common_pb2.Bundle(resources=bundle.to_proto())] * number, strategy=strategy)


def groups_beside_a_flood(
    nodes: Sequence[Mapping[str, float]], wanted: Info, task_s: float, has_own_driver: bool, number: int = 3
) -> list[float]:
    """How long each of some groups took until it was created, one after the other."""
    took_s: list[float] = []

    def calls(world: World, cluster: SimCluster, here: Site) -> None:
        groups = here.core.placement_groups
        for _ in range(number):
            begin_s = world.loop.time()
            group_id = groups.create(wanted)
            assert groups.wait(group_id, LIMIT_S)
            took_s.append(world.loop.time() - begin_s)
            groups.remove(group_id)
            here.sleep(0.5)

    beside_a_flood(nodes, calls, has_own_driver=has_own_driver, task_s=task_s)
    return took_s


TWO_CPUS = ResourceSet.from_units({"CPU": 2})


@pytest.mark.parametrize("task_s", [0.05, 0.5, 1.5])
@pytest.mark.parametrize("has_own_driver", [True, False])
@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([{"CPU": 2}], group_of(TWO_CPUS, 1, Info.PACK)),
        ([{"CPU": 4}], group_of(TWO_CPUS, 2, Info.STRICT_PACK)),
        ([{"CPU": 2}], group_of(ONE_CPU, 1, Info.SPREAD)),
        ([{"CPU": 2}, {"CPU": 2}], group_of(TWO_CPUS, 2, Info.STRICT_SPREAD)),
    ],
    ids=["1 node", "strictly packed", "1 CPU", "2 nodes"],
)
def test_a_group_is_created_within_its_bound(
    nodes: list[dict[str, float]], wanted: Info, has_own_driver: bool, task_s: float
) -> None:
    bound_s = GIVE_WAY_AFTER_S + task_s + 0.4
    assert max(groups_beside_a_flood(nodes, wanted, task_s, has_own_driver)) < bound_s + MESSAGES_S


def test_a_group_is_created_beside_tasks_that_take_long() -> None:
    task_s = 5.0
    nodes = [{"CPU": 2}, {"CPU": 2}]
    wanted = group_of(TWO_CPUS, 2, Info.STRICT_SPREAD)
    [took_s] = groups_beside_a_flood(nodes, wanted, task_s, has_own_driver=True, number=1)
    assert took_s < 14 * (task_s + 0.2)


# ---- beside what comes and goes, and does not give way


class Sleeper:
    """An actor."""

    def call(self, seconds: float) -> None:
        site().sleep(seconds)


def call_new_actor(here: Site, resources: ResourceSet, seconds: float) -> tuple[bytes, ObjectRef[Any]]:
    """Its id, and what a call that takes so long returns."""
    options = ActorOptions(class_name="Sleeper", resources=resources, placement_resources=resources)
    held = here.core.create_actor(here.export_class(Sleeper), options, [])
    template = here.core.method_template("call", "Sleeper")
    [ref] = here.core.submit_actor_task(held, template, [None, seconds])
    return held.actor_id, ref


def wait_beside_small_ones(
    small: str, large: str, life_s: float, nodes: Sequence[Mapping[str, float]]
) -> tuple[float, int]:
    """How long something waits that needs 4 CPUs, beside more groups or actors of 1 CPU than there is room
    for, of which each lives life_s; and how many of these were made meanwhile."""
    is_over: list[bool] = []
    made: list[float] = []
    took_s: list[float] = []
    num_alive = 2 * sum(int(node["CPU"]) for node in nodes)
    one_cpu = group_of(ONE_CPU, 1, Info.PACK)

    def stream_of_groups(here: Site) -> None:
        alive: list[tuple[bytes, float]] = []
        groups = here.core.placement_groups
        while not is_over:
            while len(alive) < num_alive:
                alive.append((groups.create(one_cpu), math.inf))
                made.append(world.loop.time())
            here.sleep(0.02)
            now_s = world.loop.time()
            alive = [
                (each, min(ends_s, now_s + life_s) if groups.wait(each, 0) else ends_s)
                for each, ends_s in alive
            ]
            for each in [each for each, ends_s in alive if ends_s <= now_s]:
                groups.remove(each)
            alive = [(each, ends_s) for each, ends_s in alive if ends_s > now_s]
        for each, _ in alive:
            groups.remove(each)

    def stream_of_actors(here: Site) -> None:
        calls: dict[ObjectRef[Any], bytes] = {}
        while not is_over:
            while len(calls) < num_alive:
                actor_id, ref = call_new_actor(here, ONE_CPU, life_s)
                calls[ref] = actor_id
                made.append(world.loop.time())
            over, _ = here.core.wait(list(calls), 1, None, False)
            for ref in over:
                here.core.kill_actor(calls.pop(ref), True)
        for actor_id in calls.values():
            here.core.kill_actor(actor_id, True)

    def play_large(here: Site) -> None:
        here.sleep(2 * life_s + 1.0)
        begin_s, num_made = world.loop.time(), len(made)
        four = ResourceSet.from_units({"CPU": 4})
        if large == "group":
            group_id = here.core.placement_groups.create(group_of(four, 1, Info.PACK))
            assert here.core.placement_groups.wait(group_id, LIMIT_S)
            here.core.placement_groups.remove(group_id)
        elif large == "task":
            here.result(here.submit(run_task, TaskScript(0.0), options=TaskOptions(resources=four)))
        else:
            actor_id, ref = call_new_actor(here, four, 0.0)
            here.core.wait([ref], 1, None, False)
            here.core.kill_actor(actor_id, True)
        took_s.append(world.loop.time() - begin_s)
        made[:] = made[num_made:]
        is_over.append(True)

    async def play() -> None:
        await cluster.start(nodes)
        hosts = cluster.host_names()
        first, second = [await cluster.start_driver(host) for host in (hosts[0], hosts[-1])]
        stream = stream_of_groups if small == "groups" else stream_of_actors
        await asyncio.gather(first.play(stream, "stream"), second.play(play_large, "large"))
        for driver in (first, second):
            await driver.stop()
        await cluster.until_nothing_is_left(10)

    with World(0) as world:
        cluster = SimCluster(world, Journal())
        world.run(play(), LIMIT_S)
    return took_s[0], len(made)


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize("life_s", [0.2, 1.0])
@pytest.mark.parametrize("small", ["groups", "actors"])
@pytest.mark.parametrize("large", ["group", "task", "actor"])
def test_beside_small_groups_and_actors_that_come_and_go_large_work_has_its_turn(
    small: str, large: str, life_s: float, num_nodes: int
) -> None:
    took_s, num_overtaking = wait_beside_small_ones(small, large, life_s, [{"CPU": 4}] * num_nodes)
    assert num_overtaking, "the stream went on"
    assert took_s < 8 * (life_s + 0.1)


def is_waited_at(node: SimNode) -> bool:
    """Whether bundles wait there."""
    return any(lease.request.bundles is not None for lease in node.raylet.leases.leases())


@pytest.mark.parametrize("fault", ["the head restarts", "a node dies", "a node is drained", "it is removed"])
@pytest.mark.parametrize("after_s", [0.25, 0.5, 1.0])
def test_whatever_ends_a_turn_the_group_is_created_and_nothing_is_left_of_it(
    fault: str, after_s: float
) -> None:
    """The tasks take long, so that bundles wait when it happens."""

    def calls(world: World, cluster: SimCluster, here: Site) -> None:
        groups = here.core.placement_groups
        wanted = group_of(TWO_CPUS, 2, Info.STRICT_SPREAD)
        group_id = groups.create(wanted)
        here.sleep(after_s)
        asked = [node for node in cluster.nodes_beside_head() if is_waited_at(node)]
        if fault == "the head restarts":
            cluster.restart_gcs(after_s=0.5)
        elif fault == "a node dies":
            asked[0].process.kill("a fault")
        elif fault == "a node is drained":
            cluster.drain_node(asked[0], deadline_s=None)
        else:
            groups.remove(group_id)
            group_id = groups.create(wanted)
        begin_s = world.loop.time()
        assert groups.wait(group_id, LIMIT_S)
        took_s.append(world.loop.time() - begin_s)
        groups.remove(group_id)

    took_s: list[float] = []
    beside_a_flood([{"CPU": 2}] * 3, calls, has_own_driver=False, task_s=2.5)
    assert took_s[0] < 10
