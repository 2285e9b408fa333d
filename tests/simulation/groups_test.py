"""Placement groups while nodes, workers, networks and heads fail; and bugs of theirs, planted and found."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ray_mono.common.scheduling.bundle_resources import ANY_BUNDLE, asked_for_in
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.task_submission.removed_groups import RemovedGroups
from ray_mono.gcs.placement_group.bundle_client import BundleClient
from ray_mono.gcs.placement_group.bundle_placement import BundleStrategy
from ray_mono.gcs.placement_group.wanted_places import WantedPlaces
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.scheduling.lease_scheduler import LeaseScheduler
from tests.simulation.draws import Weather, draw_drains, draw_scenario, in_order
from tests.simulation.explorer_draws import with_groups
from tests.simulation.group_checkers import GroupCheckFailed, GroupJournal
from tests.simulation.loop import SimulationError
from tests.simulation.scenario import Scenario, run_scenario

NUM_SEEDS = 8
NUM_SEEDS_MAX = 60
"""Where a planted bug has to be found."""
HANGS_AFTER_S = 300.0

Plant = Callable[[pytest.MonkeyPatch], None]


def draw_groups(seed: int, weather: Weather) -> Scenario:
    """Little but groups. In calm weather nodes may be drained, in their own time."""
    scenario = draw_scenario(seed, 20, weather)
    scenario = replace(scenario, actors=(), programs=(), generators=(), maps=())
    rng = random.Random(f"{seed}/groups")
    if weather is Weather.CALM:
        drains = draw_drains(seed, rng.choice([0, 3]))
        faults = in_order(replace(drain, choice=drain.choice // 2 * 2) for drain in drains)
        scenario = replace(scenario, faults=faults)
    while not scenario.groups:
        scenario = with_groups(scenario, rng)
    return scenario


@pytest.mark.parametrize("weather", [Weather.CALM, Weather.DEATHS, Weather.STORM])
def test_groups_are_placed_used_and_removed_whatever_fails(weather: Weather) -> None:
    num_created = num_removals = 0
    for seed in range(NUM_SEEDS):
        created, removals = run_scenario(seed, draw_groups(seed, weather)).groups
        num_created, num_removals = num_created + created, num_removals + removals
    assert num_created and num_removals


def test_the_judge_sees_work_that_sits_in_the_halves_of_two_bundles() -> None:
    group, whole, half = b"g" * 18, ResourceSet.from_units({"CPU": 2}), ResourceSet.from_units({"CPU": 1})
    journal = GroupJournal()
    journal.made(group, "PACK", [whole, whole])
    in_each = [(asked_for_in(half, group, index), False) for index in (0, 1)]
    journal.check_node(b"node", [*in_each, (asked_for_in(half, group, ANY_BUNDLE), False)])
    with pytest.raises(GroupCheckFailed):
        journal.check_node(b"node", [*in_each, (asked_for_in(whole, group, ANY_BUNDLE), False)])


# ---- planted bugs


def lets_tasks_into_removed_groups(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RemovedGroups, "__contains__", lambda groups, group_id: False)


def places_nothing_for_whom_a_drained_node_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseScheduler, "_place_children", lambda scheduler, now_s: None)


def leaves_what_runs_in_a_removed_group(patch: pytest.MonkeyPatch) -> None:
    honest = LeaseManager._kill

    def kill(manager: LeaseManager, lease: Any, reason: str, now_s: float) -> Any:
        return [] if "group was removed" in reason else honest(manager, lease, reason, now_s)

    patch.setattr(LeaseManager, "_kill", kill)


def keeps_the_bundles_of_groups_that_end_with_their_job(patch: pytest.MonkeyPatch) -> None:
    honest = BundleClient.give_back

    def give_back(client: BundleClient, node_id: Any, bundles: Any, is_removed: bool) -> None:
        if not is_removed:
            honest(client, node_id, bundles, is_removed)

    patch.setattr(BundleClient, "give_back", give_back)


def spreads_no_group_strictly(patch: pytest.MonkeyPatch) -> None:
    honest = WantedPlaces.place

    def place(wanted: WantedPlaces, nodes: Any) -> Any:
        if wanted.strategy is BundleStrategy.STRICT_SPREAD:
            wanted = wanted._replace(strategy=BundleStrategy.PACK)
        return honest(wanted, nodes)

    patch.setattr(WantedPlaces, "place", place)


PLANTS: list[tuple[Plant, Weather]] = [
    (lets_tasks_into_removed_groups, Weather.CALM),
    (places_nothing_for_whom_a_drained_node_waits, Weather.CALM),
    (leaves_what_runs_in_a_removed_group, Weather.CALM),
    (keeps_the_bundles_of_groups_that_end_with_their_job, Weather.CALM),
    (spreads_no_group_strictly, Weather.CALM),
]


@pytest.mark.parametrize(("plant", "weather"), PLANTS, ids=[plant.__name__ for plant, _ in PLANTS])
def test_a_seed_finds(monkeypatch: pytest.MonkeyPatch, plant: Plant, weather: Weather) -> None:
    plant(monkeypatch)
    with pytest.raises(SimulationError):
        for seed in range(NUM_SEEDS_MAX):
            run_scenario(seed, draw_groups(seed, weather), liveness_s=HANGS_AFTER_S)
