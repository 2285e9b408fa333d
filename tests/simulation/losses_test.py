"""Nodes die whose stores hold what tasks and generators have made: whoever needs it gets it all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ray_mono.core_worker.objects.lineage import Lineage, WhyNot
from ray_mono.core_worker.objects.object_recovery import ObjectRecovery
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_submission.reconstruction import Reconstruction
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from tests.simulation.draws import Weather, draw_losses
from tests.simulation.loop import SimulationError
from tests.simulation.scenario import run_scenario

SEEDS = range(8)


@pytest.fixture
def made_again(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The tasks that ran again, since something that they had returned was lost."""
    made: list[bytes] = []
    honest = TaskManager.make_again

    def make_again(tasks: TaskManager, task: PendingTask, arg_ids: Sequence[bytes]) -> None:
        made.append(task.task_id)
        honest(tasks, task, arg_ids)

    monkeypatch.setattr(TaskManager, "make_again", make_again)
    return made


def test_nothing_is_lost_that_can_be_made_again(made_again: list[bytes]) -> None:
    for seed in SEEDS:
        assert run_scenario(seed, draw_losses(seed)).object_reads[0]
    assert len(made_again) >= 10


@pytest.mark.parametrize("seed", range(3))
def test_nor_where_connections_break_and_hosts_fall_silent(seed: int) -> None:
    run_scenario(seed, draw_losses(seed, Weather.STORM))


# ---- what the seeds above would find


def keeps_no_task(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lineage, "finished", lambda lineage, task: False)


def says_nothing_of_losses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ObjectRecovery, "lost", lambda recovery, object_id, node_ids: None)


def forgets_some_losses(patch: pytest.MonkeyPatch) -> None:
    honest, asked = Reconstruction.why_not, [0]

    def why_not(reconstruction: Reconstruction, object_id: bytes) -> WhyNot | None:
        asked[0] += 1
        return WhyNot.MAX_ATTEMPTS if asked[0] % 3 == 0 else honest(reconstruction, object_id)

    patch.setattr(Reconstruction, "why_not", why_not)


def keeps_a_large_return_that_nobody_wants(patch: pytest.MonkeyPatch) -> None:
    honest = TaskManager._store_return

    def store_return(tasks: TaskManager, returned: Any) -> None:
        if tasks._references.get(returned.object_id) is not None:
            honest(tasks, returned)

    patch.setattr(TaskManager, "_store_return", store_return)


PLANTS = [
    keeps_no_task,
    says_nothing_of_losses,
    forgets_some_losses,
    keeps_a_large_return_that_nobody_wants,
]


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(SimulationError):
        for seed in SEEDS:
            run_scenario(seed, draw_losses(seed))
