"""What is pushed ahead goes by how long its function takes lately."""

from __future__ import annotations

from tests.core_worker.scene import Scene, value
from tests.core_worker.task_submission.tasks import (
    NOT_STARTED,
    SECOND,
    a_worker_with,
    answer,
    asked,
    ids_of,
    num_queued,
    pushed,
    short_tasks,
    two_idle_workers,
)


def test_how_long_one_function_takes_says_nothing_of_another() -> None:
    """Those that have never run may wait for each other, so each gets a worker of its own, in order."""
    scene = two_idle_workers(10)
    refs = [scene.submit(name="new") for _ in range(4)]
    assert pushed(scene, "unix:second") + pushed(scene, "unix:worker") == ids_of(*refs[:2])
    answer(scene, refs[0], value(1, run_us=10_000))
    assert num_queued(scene) == 1


def test_nothing_waits_behind_a_function_that_has_never_run() -> None:
    scene = two_idle_workers(10)
    refs = [scene.submit(name="new"), *(scene.submit() for _ in range(9))]
    assert pushed(scene, "unix:second") == ids_of(refs[0])
    assert len(pushed(scene, "unix:worker")) > 2


def test_options_of_a_call_change_nothing_about_how_long_its_function_takes() -> None:
    scene = Scene()
    short_tasks(scene)
    refs = [scene.submit(name="f", max_retries=number) for number in range(1, 4)]
    scene.grant()
    assert pushed(scene) == ids_of(*refs)


def test_what_waits_behind_tasks_that_are_longer_than_was_thought_goes_to_others_too() -> None:
    scene = Scene(spread_us=10_000.0)
    refs = a_worker_with(scene, 20)
    answer(scene, refs[0], value(1, run_us=4000))
    assert not scene.wire.all("GiveBackTasks")  # once may be chance
    answer(scene, refs[1], value(1, run_us=4000))
    assert len(scene.wire.all("GiveBackTasks")) == 1
    for ref in refs[3:]:
        answer(scene, ref, NOT_STARTED)
    asked_before = len(asked(scene))
    assert num_queued(scene) == 17 and asked_before > 1
    scene.grant(SECOND)
    assert pushed(scene, "unix:second")[:1] == ids_of(refs[3])
