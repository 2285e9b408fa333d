"""Jobs whose tasks need different amounts: they have the node in turn, each for as long."""

from __future__ import annotations

import pytest

from ray_mono.raylet.scheduling.fair_share import LOOK_S
from ray_mono.raylet.scheduling.usage import FORGET_AFTER_S, OWED_MAX_S, Usage
from tests.raylet.scheduling.floods import Flood, run_until_granted
from tests.raylet.scheduling.lease_scene import JOB_A, JOB_B, Scene, units

NODE = units(CPU=4, GPU=2)


def test_a_job_has_had_what_it_held_most_of_for_as_long_as_it_did() -> None:
    usage = Usage()
    wanted_by = {JOB_A, JOB_B}
    for now_s in (1.0, 1.5):
        usage.count({JOB_A: units(CPU=1), JOB_B: units(CPU=1, GPU=1)}, wanted_by, NODE, now_s)
    assert (usage.of(JOB_A), usage.of(JOB_B)) == (0.125, 0.25)
    # One that comes owes nothing, and is owed no more than the one that had least.
    usage.count({}, {*wanted_by, b"cccc"}, NODE, 1.6)
    assert usage.of(b"cccc") == 0.125
    # What one had is known when it comes back soon.
    usage.count({}, {JOB_A}, NODE, 1.7)
    usage.count({}, wanted_by, NODE, 1.8)
    assert (usage.of(JOB_A), usage.of(JOB_B)) == (0.125, 0.25)
    usage.count({JOB_A: units(CPU=4)}, wanted_by, NODE, 1.8 + FORGET_AFTER_S + 0.1)
    assert usage.of(JOB_A) == usage.of(JOB_B) == 0.0


def test_a_job_that_wants_no_more_than_it_has_is_owed_nothing() -> None:
    usage = Usage()
    for look in range(100):
        usage.count({JOB_A: units(CPU=3), JOB_B: units(CPU=1)}, {JOB_A}, NODE, look * LOOK_S)
    assert not usage.ahead_s(JOB_A)
    usage.count({JOB_A: units(CPU=3), JOB_B: units(CPU=1)}, {JOB_A, JOB_B}, NODE, 100 * LOOK_S)
    assert not usage.ahead_s(JOB_A)


def test_nobody_is_owed_more_than_a_little() -> None:
    usage = Usage()
    for look in range(1000):
        usage.count({JOB_A: units(CPU=4)}, {JOB_A, JOB_B}, NODE, look * LOOK_S)
    assert usage.of(JOB_A) - usage.of(JOB_B) == OWED_MAX_S


@pytest.mark.parametrize("task_s", [(0.1, 0.1), (0.5, 0.5), (0.05, 5.0), (1.0, 0.05)])
@pytest.mark.parametrize("large_cpus", [3, 4])
def test_a_job_of_small_tasks_and_one_of_large_ones_have_the_node_for_as_long(
    large_cpus: int, task_s: tuple[float, float]
) -> None:
    scene = Scene(units(CPU=4))
    floods = [
        Flood(scene, name, each_s, job=name.encode() * 4, requester=number, resources=units(CPU=cpus))
        for number, (name, each_s, cpus) in enumerate(
            zip("ab", task_s, (1, large_cpus), strict=True), start=1
        )
    ]
    floods[0].ask(4)  # it always waits for more than it has
    held = [0, 0]
    for _ in range(int(60 / LOOK_S)):
        scene.wait(LOOK_S)
        for number, flood in enumerate(floods):
            held[number] += len(flood.held) * (1, large_cpus)[number]
        for flood in floods:
            flood.answer()
    # Where tasks take 5 s a few of them make the difference.
    assert min(held) >= 0.4 * sum(held), held


@pytest.mark.parametrize(
    "jobs",
    [
        [(4, 1.0), (4, 0.1), (1, 0.05)],
        [(4, 1.0), (4, 0.1), (4, 0.1), (4, 0.1)],
        [(4, 1.0), (1, 0.05), (4, 0.1), (3, 0.2)],
        [(1, 0.1), (1, 0.3), (1, 0.05)],
    ],
)
def test_of_many_jobs_each_has_its_share_of_a_node(jobs: list[tuple[int, float]]) -> None:
    scene = Scene(units(CPU=4))
    floods = []
    for number, (cpus, task_s) in enumerate(jobs, start=1):
        flood = Flood(
            scene, f"{number}:", task_s, bytes([number]) * 4, requester=number, resources=units(CPU=cpus)
        )
        flood.ask(4)
        floods.append(flood)
    held = [0] * len(jobs)
    for _ in range(int(60 / LOOK_S)):
        scene.wait(LOOK_S)
        for number, flood in enumerate(floods):
            held[number] += len(flood.held) * jobs[number][0]
        for flood in floods:
            flood.answer()
    assert min(held) >= 0.6 * sum(held) / len(jobs), held


def test_a_job_that_is_ahead_has_its_turn_though_the_other_never_catches_up() -> None:
    scene = Scene(units(CPU=4, A=1))
    ahead = Flood(scene, "ahead", 0.1, resources=units(CPU=1))
    scene.wait(OWED_MAX_S)
    scene.ask("an actor", resources=units(A=1), for_actor=True)
    other = Flood(scene, "other", 0.1, job=JOB_B, requester=2)
    run_until_granted(scene, "other 1", [ahead, other], within_s=0.5)
    # It waits for what never comes.
    scene.ask("never", resources=units(A=1, CPU=1), job=JOB_B, requester=2)
    scene.ask("large", resources=units(CPU=4))
    run_until_granted(scene, "large", [ahead, other], within_s=2 * OWED_MAX_S + 0.5)
