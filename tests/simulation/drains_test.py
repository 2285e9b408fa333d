"""Nodes are drained: what runs there may finish, actors move, values are copied, then the node ends, and a
new one comes for it. Nothing is lost, whoever else dies; and where nobody does and the drain has no deadline,
nothing runs twice and nobody reads an error."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.simulation.actor_programs import ActorScript, live_with_actor
from tests.simulation.checkers import Journal
from tests.simulation.cluster import SimCluster
from tests.simulation.draws import Weather, draw_drains, draw_losses, draw_scenario, in_order
from tests.simulation.scenario import SETTLE_S, Fault, Outcome, Scenario, run_scenario
from tests.simulation.storage import CommitStep
from tests.simulation.world import World

LIMIT_S = 600.0
NUM_DRAINS = 3


def drained(seed: int, scenario: Scenario, drains: tuple[Fault, ...]) -> Outcome:
    return run_scenario(seed, replace(scenario, faults=in_order((*scenario.faults, *drains))))


def test_where_nothing_else_goes_wrong_drains_cost_nothing() -> None:
    restarts = 0
    for seed in range(5):
        drains = [replace(drain, choice=drain.choice // 2 * 2) for drain in draw_drains(seed, NUM_DRAINS)]
        scenario = draw_scenario(seed, 60, Weather.CALM)
        actors = [replace(each, max_restarts=20, num_calls=100, call_s=0.1) for each in scenario.actors]
        outcome = drained(seed, replace(scenario, actors=tuple(actors)), tuple(drains))
        assert not outcome.retries
        restarts += outcome.actor_restarts
    assert restarts


@pytest.mark.parametrize("weather", [Weather.DEATHS, Weather.STORM])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_where_others_die_meanwhile_and_deadlines_come(seed: int, weather: Weather) -> None:
    drained(seed, draw_scenario(seed, 60, weather), draw_drains(seed, NUM_DRAINS))


@pytest.mark.parametrize("seed", range(3))
def test_large_values_are_there_afterwards(seed: int) -> None:
    drained(seed, draw_losses(seed), draw_drains(seed, NUM_DRAINS))


# ---- the head dies meanwhile


SCRIPT = ActorScript(num_calls=20, call_s=0.1, max_restarts=1, cpus=0.5)
NUM_ACTORS = 6
BEGINS_S = 0.4
"""Then the actors live, and are called."""
NODES = ({"CPU": 1.0, "head": 1.0}, {"CPU": 3.0}, {"CPU": 3.0})


class Run:
    """Actors on nodes, one of which is drained; their calls, which have no retries; and what came of them."""

    def __init__(self, kill: Callable[[SimCluster], None], seed: int = 1) -> None:
        """kill(cluster) has the head killed at some time, when the drain is about to begin."""
        self.num_commits = 0
        """Of the head's, from then on."""
        with World(seed) as world:
            journal = Journal()
            journal.expects(False, is_harmless=False, hosts_fall_silent=False)
            cluster = SimCluster(world, journal)
            world.check(cluster.check_services)
            world.run(self._play(cluster, kill), LIMIT_S)
            journal.check_everything_ended()
            self.num_restarts = journal.actors.restarts()
            self.calls = journal.actors.calls_done, journal.actors.calls_failed

    async def _play(self, cluster: SimCluster, kill: Callable[[SimCluster], None]) -> None:
        await cluster.start(NODES)
        driver = await cluster.start_driver(cluster.host_names()[0])
        program = functools.partial(live_with_actor, script=SCRIPT)
        playing = [asyncio.ensure_future(driver.play(program, "actor")) for _ in range(NUM_ACTORS)]
        await asyncio.sleep(BEGINS_S)
        cluster.restart_gcs_at({})
        kill(cluster)
        cluster.drain_node(cluster.nodes_beside_head()[0], None)
        await asyncio.gather(*playing)
        self.num_commits = cluster.num_commits
        await driver.stop()
        await cluster.until_nothing_is_left(SETTLE_S)

    def check(self, what: str) -> None:
        assert self.num_restarts, what
        assert self.calls == (NUM_ACTORS * SCRIPT.num_calls, 0), what


@pytest.mark.parametrize("step", list(CommitStep))
def test_the_head_may_die_at_every_step_of_a_drain_and_no_call_notices(step: CommitStep) -> None:
    num_commits = Run(lambda cluster: None).num_commits
    assert num_commits > 3
    for number in range(0, num_commits, 3):

        def kill(cluster: SimCluster, number: int = number) -> None:
            cluster.restart_gcs_at({(number, step): 0.3})

        Run(kill).check(f"it was killed at commit {number}")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_head_on_an_empty_store_goes_on_with_a_drain(seed: int) -> None:
    for milliseconds in range(10 * seed, 200, 20):

        def kill(cluster: SimCluster, after_s: float = milliseconds / 1000) -> None:
            lose = functools.partial(cluster.restart_gcs, 0.3, loses_store=True)
            cluster.world.loop.call_later(after_s, lose)

        Run(kill, seed).check(f"it was killed after {milliseconds} ms")
