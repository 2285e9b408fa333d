"""The GCS is killed at every step of its store while actors are registered, leased and created, and while
they are called; and its store is lost with it. Each constructor runs once, each name leads to one actor, and
nothing hangs: the judges of every simulation watch, and the cluster is empty at the end."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ray_mono.common.exceptions import ActorAlreadyExistsError
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.options import ActorOptions
from tests.simulation.actor_programs import AWAITED, ActorScript, PlainActor, live_with_actor, make_calls
from tests.simulation.checkers import Journal
from tests.simulation.cluster import SimCluster
from tests.simulation.core_process import SimDriver
from tests.simulation.scripts import TaskScript
from tests.simulation.site import Site
from tests.simulation.storage import CommitStep
from tests.simulation.task_programs import run_task
from tests.simulation.world import World

LIMIT_S = 600.0
AWAY_S = (0.05, 0.5)
SETTLE_S = 120.0
SCRIPT = ActorScript(num_calls=3)
NUM_ACTORS = 4
LATE_S = 0.05
NAMES = ("one", "two")


def live_with_named(here: Site, name: str) -> None:
    """Two want the same name: one of them gets it, whatever happens to the head, and before its argument is
    there."""
    options = ActorOptions(
        class_name="Simulated", resources=ResourceSet(), name=name, namespace="space", is_detached=True
    )
    code = here.export_class(PlainActor)
    awaited = here.submit(run_task, TaskScript(LATE_S), options=AWAITED)
    arguments = [None, here.world.scripts.number_of(SCRIPT), None, [], None, awaited]
    held = here.core.create_actor(code, options, arguments)
    here.judge(here.journal.actors.registered, held.actor_id, 0)
    for _ in range(2):  # before and after its argument is there
        try:
            here.core.create_actor(code, options, arguments)
        except ActorAlreadyExistsError:
            pass
        else:
            raise AssertionError(f"two actors have the name {name}")
        here.get(awaited)
    make_calls(here, held, SCRIPT, b"owner", SCRIPT.num_calls)
    assert here.core.get_named_actor(name, "space").actor_id == held.actor_id
    here.kill_actor(held.actor_id)


class Run:
    """One cluster whose head is killed, its drivers' work, and what came of it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.calls_done = self.calls_failed = self.restarts = 0
        self.num_commits = 0
        """Of the store, while the work went on."""

    def play(self, kill: Callable[[SimCluster], None]) -> Run:
        """kill(cluster) has the head killed at some time, when all is about to begin."""
        with World(self.seed) as world:
            journal = Journal()
            journal.expects(False, False, is_harmless=False)
            cluster = SimCluster(world, journal)
            world.check(cluster.check_services)
            world.run(self._play(cluster, kill), LIMIT_S)
            journal.check_everything_ended()
            actors = journal.actors
            self.calls_done, self.calls_failed = actors.calls_done, actors.calls_failed
            self.restarts = actors.restarts()
        return self

    async def _play(self, cluster: SimCluster, kill: Callable[[SimCluster], None]) -> None:
        await cluster.start([{"CPU": 2}, {"CPU": 2}])
        driver = await cluster.start_driver(cluster.host_names()[0])
        cluster.restart_gcs_at({})
        kill(cluster)
        programs: list[Callable[[Site], None]] = [
            *[functools.partial(live_with_actor, script=SCRIPT)] * NUM_ACTORS,
            *[functools.partial(live_with_named, name=name) for name in NAMES],
        ]
        await self._until_played(driver, programs)
        self.num_commits = cluster.num_commits
        # A head that comes late finds what is left to do.
        await asyncio.sleep(max(AWAY_S))
        await driver.stop()
        await cluster.until_nothing_is_left(SETTLE_S)

    async def _until_played(self, driver: SimDriver, programs: Sequence[Any]) -> None:
        await asyncio.gather(*(driver.play(program, "program") for program in programs))

    def check(self, what: str) -> None:
        expected = (NUM_ACTORS + len(NAMES)) * SCRIPT.num_calls
        assert (self.calls_done, self.calls_failed, self.restarts) == (expected, 0, 0), what


def nothing(cluster: SimCluster) -> None:
    pass


@pytest.mark.parametrize("step", list(CommitStep))
def test_at_every_step_of_its_store_the_gcs_may_die(step: CommitStep) -> None:
    num_commits = Run(0).play(nothing).num_commits
    assert num_commits > 10
    for number in range(num_commits):
        away_s = AWAY_S[number % 2]

        def kill(cluster: SimCluster, number: int = number, away_s: float = away_s) -> None:
            cluster.restart_gcs_at({(number, step): away_s})

        Run(0).play(kill).check(f"it was killed at commit {number}")


@pytest.mark.parametrize("seed", range(3))
def test_a_gcs_whose_store_is_lost_with_it_is_told_what_there_is(seed: int) -> None:
    for milliseconds in range(2 * seed, 120, 6):

        def kill(cluster: SimCluster, after_s: float = milliseconds / 1000) -> None:
            lose = functools.partial(cluster.restart_gcs, 0.5, loses_store=True)
            cluster.world.loop.call_later(after_s, lose)

        Run(seed).play(kill).check(f"it was killed after {milliseconds} ms")


def test_a_gcs_that_dies_while_it_is_told_leaves_the_next_to_be_told() -> None:
    steps = list(CommitStep)
    for number in range(9):

        def kill(cluster: SimCluster, number: int = number) -> None:
            def lose() -> None:
                cluster.restart_gcs_at({(number, steps[number % len(steps)]): 0.05})
                cluster.restart_gcs(0.1, loses_store=True)

            cluster.world.loop.call_later(0.01 * number, lose)

        Run(number).play(kill).check(f"it was killed at commit {number} after its store was lost")
