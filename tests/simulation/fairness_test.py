"""Turns in a cluster that is never idle, in virtual time: what waits beside a flood, on one node and two."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import TaskOptions
from tests.simulation.checkers import Journal
from tests.simulation.cluster import SimCluster
from tests.simulation.scripts import TaskScript
from tests.simulation.site import Site
from tests.simulation.task_programs import run_task
from tests.simulation.world import World

TASK_S = 0.05
LIMIT_S = 200.0
ONE_CPU = ResourceSet.from_units({"CPU": 1})


def waits_beside_a_flood(
    nodes: Sequence[Mapping[str, float]],
    resources: ResourceSet = ONE_CPU,
    flood_resources: ResourceSet = ONE_CPU,
    has_own_driver: bool = True,
    num_calls: int = 3,
) -> list[float]:
    """How long each of some calls took, one after the other, while the first node's driver had more tasks
    than there was time for."""
    took_s: list[float] = []
    is_over: list[bool] = []
    options = TaskOptions(resources=resources, max_retries=0)
    flood_options = TaskOptions(resources=flood_resources, max_retries=0)

    def flood(here: Site) -> None:
        running: list[ObjectRef[Any]] = []
        while not is_over:
            while len(running) < 50:
                running.append(here.submit(run_task, TaskScript(TASK_S), options=flood_options))
            _, running = here.core.wait(running, 1, None, False)
        here.core.wait(running, len(running), None, False)

    def calls(here: Site) -> None:
        here.sleep(0.5)
        for _ in range(num_calls):
            begin_s = world.loop.time()
            here.result(here.submit(run_task, TaskScript(TASK_S), options=options))
            took_s.append(world.loop.time() - begin_s)
            # Longer than a lease lingers.
            here.sleep(0.05)
        is_over.append(True)

    async def play() -> None:
        await cluster.start(nodes)
        hosts = cluster.host_names()
        first = await cluster.start_driver(hosts[0])
        second = await cluster.start_driver(hosts[-1]) if has_own_driver else first
        await asyncio.gather(first.play(flood, "flood"), second.play(calls, "calls"))
        for driver in dict.fromkeys((first, second)):
            await driver.stop()
        await cluster.until_nothing_is_left(10)

    with World(0) as world:
        cluster = SimCluster(world, Journal())
        world.run(play(), LIMIT_S)
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
