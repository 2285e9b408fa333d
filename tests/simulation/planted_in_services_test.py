"""Bugs planted in the GCS, in object managers and between nodes, and that seeds of the explorer find them.

A test begins at a seed that is known to find its bug. Where that one does not find it any more, those after
it are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ray_mono.common.exceptions import ActorUnavailableError
from ray_mono.core_worker.task_execution.task_receiver import TaskReceiver
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.called_actor import CalledActor
from ray_mono.gcs.actor.actor_state import Actor
from ray_mono.gcs.job_manager import JobManager
from ray_mono.gcs.node_fences import NodeFences
from ray_mono.gcs.storage.table_storage import Table
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.object_manager.ranges import Part, Ranges
from ray_mono.object_manager.spills import Spills
from ray_mono.raylet.evacuation import Evacuation
from tests.simulation.draws import Weather, draw_drains, draw_losses, draw_scenario, in_order
from tests.simulation.explore import draw
from tests.simulation.explorer_draws import draw_any_cuts
from tests.simulation.loop import SimulationError
from tests.simulation.scenario import Scenario, run_scenario

NUM_SEEDS = 40
NUM_DRAINS = 3
HANGS_AFTER_S = 300.0

Plant = Callable[[pytest.MonkeyPatch], None]


def never_restarts_an_actor(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Actor, "has_restarts", lambda actor, is_preempted: False)


def never_retries_a_call(patch: pytest.MonkeyPatch) -> None:
    def settle_sent(submitter: ActorTaskSubmitter, actor: CalledActor, why: str) -> None:
        for task in actor.take_sent():
            submitter._tasks.fail_unless_cancelled(task, ActorUnavailableError(why, actor.actor_id))

    patch.setattr(ActorTaskSubmitter, "_settle_sent", settle_sent)


def runs_a_constructor_again_when_a_new_head_asks(patch: pytest.MonkeyPatch) -> None:
    honest = TaskReceiver.PushTask

    def push(receiver: TaskReceiver, request: Any, call: Any) -> None:
        receiver._creation = None
        honest(receiver, request, call)

    patch.setattr(TaskReceiver, "PushTask", push)


def stores_no_nodes(patch: pytest.MonkeyPatch) -> None:
    honest = WriteThrough.put

    def put(writes: WriteThrough, table: Table, key: bytes, value: bytes) -> None:
        if table is not Table.NODE:
            honest(writes, table, key, value)

    patch.setattr(WriteThrough, "put", put)


def forgets_whose_driver_is_not_there(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(JobManager, "without_driver", lambda jobs: [])


def leaves_a_gap_where_a_second_holder_begins(patch: pytest.MonkeyPatch) -> None:
    honest = Ranges.take

    def take(ranges: Ranges) -> Part | None:
        part = honest(ranges)
        if part is not None and part.at and part.end - part.at > 100:
            part.at += 64
        return part

    patch.setattr(Ranges, "take", take)


def leaves_files_of_dead_objects(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Spills, "remove", lambda spills, file: None)


def says_of_a_drained_node_that_its_objects_were_copied(patch: pytest.MonkeyPatch) -> None:
    async def ask(evacuation: Evacuation, node: object, batch: Sequence[Any]) -> list[bytes]:
        return [item.object_id for item in batch]

    patch.setattr(Evacuation, "_ask", ask)


def starts_actors_elsewhere_while_their_node_may_run_them(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NodeFences, "left_s", lambda fences, node_id, now_s: 0.0)


def draw_harmless_drains(seed: int) -> Scenario:
    """Of nodes with large values, in their own time."""
    drains = [replace(drain, choice=drain.choice // 2 * 2) for drain in draw_drains(seed, NUM_DRAINS)]
    calm = draw_scenario(seed, 20, Weather.CALM)
    return replace(calm, losses=draw_losses(seed).losses[:1], faults=in_order(drains))


PLANTS: list[tuple[Plant, int]] = [
    (never_restarts_an_actor, 9000011),
    (never_retries_a_call, 9000014),
    (runs_a_constructor_again_when_a_new_head_asks, 9000016),
    (stores_no_nodes, 9000003),
    (forgets_whose_driver_is_not_there, 9002082),
    (leaves_a_gap_where_a_second_holder_begins, 9000009),
    (leaves_files_of_dead_objects, 9000005),
]
"""With the seed to begin at."""
RARE_PLANTS: list[tuple[Plant, Callable[[int], Scenario], int]] = [
    (starts_actors_elsewhere_while_their_node_may_run_them, draw_any_cuts, 59),
    (says_of_a_drained_node_that_its_objects_were_copied, draw_harmless_drains, 4),
]
"""One of a thousand seeds finds these, and more of those that draw what they are about."""


@pytest.mark.parametrize(("plant", "first"), PLANTS, ids=[plant.__name__ for plant, _ in PLANTS])
def test_a_seed_of_the_explorer_finds(monkeypatch: pytest.MonkeyPatch, plant: Plant, first: int) -> None:
    plant(monkeypatch)
    with pytest.raises(SimulationError):
        for seed in range(first, first + NUM_SEEDS):
            run_scenario(seed, draw(seed, num_tasks=120), liveness_s=HANGS_AFTER_S)


@pytest.mark.parametrize(
    ("plant", "draw_one", "first"), RARE_PLANTS, ids=[plant.__name__ for plant, _, _ in RARE_PLANTS]
)
def test_a_seed_of_those_that_draw_it_finds(
    monkeypatch: pytest.MonkeyPatch, plant: Plant, draw_one: Callable[[int], Scenario], first: int
) -> None:
    plant(monkeypatch)
    with pytest.raises(SimulationError):
        for seed in range(first, first + NUM_SEEDS):
            run_scenario(seed, draw_one(seed), liveness_s=HANGS_AFTER_S)
