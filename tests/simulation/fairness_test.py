"""Turns in a cluster that is never idle, in virtual time: what waits beside a flood, on one node and two."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from tests.simulation.checkers import Journal
from tests.simulation.cluster import SimCluster
from tests.simulation.driver import SimDriver
from tests.simulation.scripts import TaskScript
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

    async def flood(driver: SimDriver, over: asyncio.Event) -> None:
        running: set[asyncio.Future[str]] = set()
        while not over.is_set():
            while len(running) < 50:
                running.add(driver.submit(TaskScript(TASK_S), flood_resources, 0))
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*running)

    async def calls(driver: SimDriver, over: asyncio.Event) -> None:
        await asyncio.sleep(0.5)
        for _ in range(num_calls):
            begin_s = world.loop.time()
            await driver.submit(TaskScript(TASK_S), resources, 0)
            took_s.append(world.loop.time() - begin_s)
            # Longer than a lease lingers.
            await asyncio.sleep(0.05)
        over.set()

    async def play() -> None:
        await cluster.start(nodes)
        hosts, over = cluster.host_names(), asyncio.Event()
        first = await cluster.start_driver(hosts[0])
        second = await cluster.start_driver(hosts[-1]) if has_own_driver else first
        flooding = first.process.spawn(flood(first, over), name="flood")
        calling = second.process.spawn(calls(second, over), name="calls")
        await asyncio.gather(flooding, calling)
        for driver in {first, second}:
            await driver.process.spawn(driver.stop(), name="stop")
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
