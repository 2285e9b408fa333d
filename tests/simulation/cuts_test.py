"""Nodes are cut off, stand still and come back. Never do two incarnations of an actor run at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ray_mono.gcs.node_fences import NodeFences
from tests.simulation.cuts import draw_cuts, lose_one_node
from tests.simulation.loop import SimulationError
from tests.simulation.machine import SimBoard
from tests.simulation.scenario import FaultKind, run_scenario

SEEDS = range(8)
CUT = (FaultKind.PARTITION, 90.0, 60.0)
STOPPED_NODE = (FaultKind.STOP_HOST, 100.0, 12.0)
STOPPED_RAYLET = (FaultKind.STOP_RAYLET, 100.0, 12.0)
Loss = tuple[FaultKind, float, float]
"""What happens to a node, for how long, and for how long its lease lasts."""


def lose_each(loss: Loss) -> int:
    """Each of the two nodes, with plain actors and with async ones. Returns how many actors started again."""
    kind, lasts_s, lease_s = loss
    scenes = [(seed, number) for seed in (0, 1) for number in (1, 2)]
    outcomes = [
        run_scenario(seed, lose_one_node(seed, kind, number, lasts_s, lease_s)) for seed, number in scenes
    ]
    return sum(outcome.actor_restarts for outcome in outcomes)


@pytest.mark.parametrize("loss", [CUT, STOPPED_NODE, STOPPED_RAYLET])
def test_an_actor_of_a_node_that_is_lost_runs_in_one_place_at_a_time(loss: Loss) -> None:
    assert lose_each(loss)


def test_so_it_is_whatever_else_happens() -> None:
    restarts = sum(run_scenario(seed, draw_cuts(seed)).actor_restarts for seed in SEEDS)
    assert restarts


# ---- what these scenes would find


def starts_actors_elsewhere_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NodeFences, "left_s", lambda fences, node_id, now_s: 0.0)


def runs_calls_after_its_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimBoard, "is_time_over", lambda board: False)


@pytest.mark.parametrize(
    ("plant", "loss"), [(starts_actors_elsewhere_at_once, CUT), (runs_calls_after_its_time, STOPPED_NODE)]
)
def test_a_planted_bug_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], loss: Loss
) -> None:
    plant(monkeypatch)
    with pytest.raises(SimulationError, match="incarnation"):
        lose_each(loss)
