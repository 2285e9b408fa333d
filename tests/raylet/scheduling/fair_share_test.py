"""Who gives way on a node where more is asked for than there is, and when: holders that answer as real ones
do."""

from __future__ import annotations

import functools

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.scheduling.fair_share import (
    ASK_AGAIN_S,
    DRAIN_S,
    LATE_S,
    LOOK_S,
    RECLAIM_AFTER_S,
    SLICE_S,
    WAITING_MAX,
)
from ray_mono.raylet.scheduling.lease_scheduler import SHARE_AFTER_S
from tests.raylet.scheduling.floods import Flood, run_until_granted
from tests.raylet.scheduling.lease_scene import HERE, JOB_A, JOB_B, THERE, Scene, units


def test_a_job_gets_a_lease_beside_one_that_never_has_enough() -> None:
    scene = Scene(units(CPU=2))
    flood = Flood(scene, "flood", task_s=0.01)
    scene.wait(10)
    assert scene.reclaimed == [] and len(flood.held) == 2
    for number in range(5):
        scene.ask(f"call {number}", job=JOB_B, requester=2)
        run_until_granted(scene, f"call {number}", [flood], within_s=SLICE_S + 2 * LOOK_S)
        assert len(flood.held) == 1
        scene.give_back(f"call {number}")
    # Whose turn it is has no bearing on what is asked for: no more than it takes.
    assert len(scene.reclaimed) <= 6


def test_two_jobs_that_never_have_enough_share_one_cpu() -> None:
    scene = Scene(units(CPU=1))
    floods = [Flood(scene, "a", 0.01), Flood(scene, "b", 0.01, job=JOB_B, requester=2)]
    seconds = {"a": 0.0, "b": 0.0}
    while scene.now_s < 10:
        scene.wait(LOOK_S)
        for flood in floods:
            flood.answer()
        [name] = scene.running
        seconds[name[0]] += LOOK_S
    assert abs(seconds["a"] - seconds["b"]) < 1
    assert len(scene.reclaimed) <= 10 / SLICE_S


@pytest.mark.parametrize(("cpus", "least"), [(2, 0.45), (3, 0.3), (4, 0.45)])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_job_of_short_tasks_keeps_its_share_beside_one_of_long_ones(
    cpus: int, least: float, is_first: bool
) -> None:
    scene = Scene(units(CPU=cpus))
    jobs = [("short", 0.05, JOB_A, 1), ("long", 5.0, JOB_B, 2)]
    floods = {}
    for name, task_s, job, requester in jobs if is_first else reversed(jobs):
        floods[name] = Flood(scene, name, task_s, job, requester=requester)
        scene.wait(1)
    num_short = num_looks = 0
    for _ in range(int(60 / LOOK_S)):
        scene.wait(LOOK_S)
        for flood in floods.values():
            flood.answer()
        num_looks += 1
        num_short += len(floods["short"].held)
    assert least <= num_short / num_looks / cpus <= 1 - least


def test_nothing_is_asked_for_by_more_of_the_same() -> None:
    scene = Scene(units(CPU=1))
    flood = Flood(scene, "flood", 0.01)
    scene.wait(5)
    assert scene.reclaimed == [] and len(flood.held) == 1


def test_another_key_and_another_requester_of_the_same_job_have_their_turns() -> None:
    scene = Scene(units(CPU=1))
    flood = Flood(scene, "flood", 0.01)
    scene.ask("another environment", key=1)
    run_until_granted(scene, "another environment", [flood], within_s=0.5)
    scene.give_back("another environment")
    scene.ask("of a task", requester=7)
    run_until_granted(scene, "of a task", [flood], within_s=0.5)


def test_what_ran_long_when_it_was_asked_for_is_passed_over_the_next_time() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("long", requester=1)
    scene.ask("short", requester=1)
    scene.wait(1)
    scene.ask("call", job=JOB_B, requester=2)
    scene.wait(RECLAIM_AFTER_S)
    assert scene.reclaimed == ["long"]
    scene.wait(ASK_AGAIN_S + LOOK_S)
    assert scene.reclaimed == ["long", "short"]
    scene.give_back("short")
    assert "call" in scene.running


def test_actors_blocked_workers_and_what_others_resources_hold_are_not_asked_for() -> None:
    scene = Scene(units(CPU=2, A=1, B=1))
    scene.ask("actor", resources=units(A=1), for_actor=True)
    scene.ask("blocked", resources=units(CPU=1, B=1))
    scene.ask("runs", resources=units(CPU=1))
    scene.block("blocked")
    scene.ask("wants A", job=JOB_B, requester=2, resources=units(A=1))
    scene.ask("wants B", job=JOB_B, requester=2, resources=units(B=1))
    scene.wait(5)
    assert scene.reclaimed == []


def test_nothing_is_asked_for_in_vain() -> None:
    scene = Scene(units(CPU=3))
    scene.ask("actor", for_actor=True)
    scene.ask("a")
    scene.ask("b")
    scene.ask("never beside the actor", job=JOB_B, requester=2, resources=units(CPU=3))
    scene.wait(5)
    assert scene.reclaimed == []


def test_an_actor_that_waits_has_a_lease_ended_for_it() -> None:
    scene = Scene(units(CPU=1))
    flood = Flood(scene, "flood", 0.01)
    scene.ask(
        "actor", job=JOB_B, requester=9, resources=ResourceSet(), placement=units(CPU=1), for_actor=True
    )
    run_until_granted(scene, "actor", [flood], within_s=0.5)


@pytest.mark.parametrize("task_s", [0.01, 0.3, 0.4, 1.0, DRAIN_S - 4 * LOOK_S, 2.5, 5.0])
@pytest.mark.parametrize("begins_s", [0.0, 0.15, 0.35])
@pytest.mark.parametrize("name", ["large", "bundles of a group"])
def test_a_large_request_has_its_turn_when_the_small_ones_that_run_have_ended(
    task_s: float, begins_s: float, name: str
) -> None:
    scene = Scene(units(CPU=4))
    flood = Flood(scene, "small", task_s)
    # The small ones do not all end at once.
    other = Flood(scene, "other", task_s * 0.7, job=JOB_B, requester=2)
    scene.wait(1 + begins_s)
    if name == "large":
        scene.ask(name, resources=units(CPU=4), job=b"cccc", requester=3)
    else:
        scene.ask_for_bundles(name.encode(), units(CPU=2), units(CPU=2))
    is_short = task_s + 4 * LOOK_S <= DRAIN_S + 1e-9
    within_s = task_s + 4 * LOOK_S if is_short else 8 * (task_s + LOOK_S)
    run_until_granted(scene, name, [flood, other], within_s=within_s + 1e-9)


@pytest.mark.parametrize("task_s", [(0.01, 1.0), (1.0, 0.01), (0.4, 0.9), (1.0, 1.0)])
def test_a_large_request_is_not_overtaken_by_two_jobs_that_never_have_enough(
    task_s: tuple[float, float],
) -> None:
    scene = Scene(units(CPU=2))
    floods = [
        Flood(scene, name, each_s, job=name.encode() * 4, requester=number)
        for number, (name, each_s) in enumerate(zip("ab", task_s, strict=True))
    ]
    for number in range(2):
        for _ in range(30):
            scene.wait(LOOK_S)
            for flood in floods:
                flood.answer()
        scene.ask(f"large {number}", resources=units(CPU=2), job=b"cccc", requester=9)
        run_until_granted(scene, f"large {number}", floods, within_s=max(task_s) + 4 * LOOK_S + 1e-9)
        scene.give_back(f"large {number}")


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("name", ["large", "bundles of a group"])
def test_a_task_that_never_ends_keeps_out_no_large_request_that_fits_beside_it(
    name: str, is_first: bool
) -> None:
    scene = Scene(units(CPU=4))
    if is_first:
        scene.ask("endless", requester=7)
    flood = Flood(scene, "flood", 0.05)
    scene.wait(0.5)
    if not is_first:
        scene.ask("endless", requester=7)
    run_until_granted(scene, "endless", [flood], within_s=0.5)
    if name == "large":
        scene.ask(name, resources=units(CPU=3), requester=3)
    else:
        scene.ask_for_bundles(name.encode(), units(CPU=3), job=JOB_A)
    run_until_granted(scene, name, [flood], within_s=LATE_S + 8 * LOOK_S)


def test_what_waits_for_actors_keeps_out_nobody_however_much_of_it_there_is() -> None:
    scene = Scene(units(CPU=2, R=4))
    scene.ask("first", for_actor=True)
    scene.ask("second", for_actor=True)
    for number in range(WAITING_MAX + 10):
        scene.ask(f"blocked {number}", requester=2, resources=units(CPU=1 + number / 1000))
    flood = Flood(scene, "flood", 0.05, resources=units(R=1))
    scene.wait(0.5)
    scene.ask("large", requester=3, resources=units(R=4))
    run_until_granted(scene, "large", [flood], within_s=0.05 + 4 * LOOK_S)


def test_beside_a_large_request_that_waits_for_long_tasks_a_small_one_has_a_short_one_ended() -> None:
    scene = Scene(units(CPU=4))
    scene.ask("long 1")
    scene.ask("long 2")
    scene.wait(1)
    scene.ask("short 1")
    scene.ask("short 2")
    scene.wait(1)
    scene.ask("large", resources=units(CPU=2), job=JOB_B, requester=2)
    scene.wait(0.5)
    assert scene.reclaimed == ["long 1", "long 2"]
    scene.ask("call", job=b"cccc", requester=3)
    scene.wait(2 * LOOK_S)
    assert scene.reclaimed[2:] == ["short 1"]


def test_what_is_free_is_kept_for_a_large_request_from_other_nodes_too() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("a")
    scene.ask("b")
    scene.ask("large", resources=units(CPU=2), key=1)
    scene.wait(0.1)
    scene.give_back("a")
    scene.ask("spilled", grant_or_reject=True, requester_node=THERE, requester=5)
    assert "spilled" in scene.rejected
    scene.ask("of another resource", resources=ResourceSet(), requester=6, requester_node=HERE)
    assert "of another resource" in scene.running
    scene.give_back("b")
    assert "large" in scene.running


def test_what_is_kept_for_a_request_is_free_at_once_when_it_is_cancelled() -> None:
    scene = Scene(units(CPU=3))
    for number in range(3):
        scene.ask(f"long {number}", requester=number)
    scene.ask("large", requester=4, resources=units(CPU=3))
    scene.wait(1.0)
    scene.give_back("long 0")
    scene.ask("small", requester=5)
    assert scene.running == ["long 1", "long 2"]
    scene.do(lambda now_s: scene.manager.cancel(b"large", now_s))
    assert scene.running == ["long 1", "long 2", "small"]


def test_what_is_kept_for_an_actor_and_not_held_by_it_is_free_as_soon_as_it_is_placed() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("long 0", requester=0)
    scene.ask("long 1", requester=1)
    scene.ask("actor", requester=2, placement=units(CPU=2), resources=units(), for_actor=True)
    scene.wait(1.0)
    scene.ask("small", requester=3, job=JOB_B)
    scene.give_back("long 0")
    assert scene.running == ["long 1"]
    scene.give_back("long 1")
    assert scene.running == ["actor", "small"]


# ---- accelerators


def parts_of_gpus(scene: Scene, part: float, task_s: float = 0.3) -> list[Flood]:
    """Who never has enough of these, from several connections, out of step."""
    floods = []
    for number in range(4):
        name, needs = f"small {number}", units(GPU=part)
        floods.append(
            Flood(scene, name, task_s + 0.1 * number, resources=needs, requester=number + 1, key=number)
        )
        scene.wait(0.15)
    scene.wait(1.0)
    return floods


@pytest.mark.parametrize("needs", [0.5, 1, 2, 4])
@pytest.mark.parametrize("for_actor", [False, True])
def test_who_needs_more_of_a_gpu_than_is_left_of_each_has_a_turn(needs: float, for_actor: bool) -> None:
    scene = Scene(units(CPU=4, GPU=4))
    floods = parts_of_gpus(scene, 0.35)
    large = units(GPU=needs)
    assert large.fits_in(scene.ledger.available) is (needs <= 1), "of all of them together"
    scene.ask("large", resources=large, job=JOB_B, requester=9, for_actor=for_actor)
    run_until_granted(scene, "large", floods, within_s=8 * (0.6 + LOOK_S))


def test_why_it_waits_is_told() -> None:
    scene = Scene(units(CPU=4, GPU=2))
    for number in range(2):
        scene.ask(f"small {number}", resources=units(GPU=0.6), for_actor=True)
    scene.ask("large", resources=units(GPU=0.5))
    assert scene.why("large").endswith("GPU: 0.8} free of {CPU: 4, GPU: 2}, in parts of accelerators")


def with_a_gpu_kept(num_gpus: int) -> Scene:
    """Two hold 0.35 of each, and "large" waits for a whole one."""
    scene = Scene(units(CPU=4, GPU=num_gpus))
    for number in range(2 * num_gpus):
        scene.ask(f"long {number}", resources=units(GPU=0.35), requester=number + 1)
    scene.ask("large", resources=units(GPU=1), job=JOB_B, requester=9)
    scene.wait(RECLAIM_AFTER_S + 5 * LOOK_S)
    return scene


def test_while_one_gpu_is_kept_the_others_are_used() -> None:
    scene = with_a_gpu_kept(num_gpus=4)
    for number in range(4):
        scene.ask(f"small {number}", resources=units(GPU=0.3), requester=7)
    assert [name for name in scene.running if name.startswith("small")] == ["small 0", "small 1", "small 2"]
    for asked in set(scene.reclaimed):
        assert "large" not in scene.running
        scene.give_back(asked)
    assert "large" in scene.running and len(set(scene.reclaimed)) == 2


def test_a_gpu_that_is_kept_is_free_at_once_when_the_request_is_cancelled() -> None:
    scene = with_a_gpu_kept(num_gpus=1)
    scene.ask("small", resources=units(GPU=0.3), requester=7)
    assert "small" not in scene.running
    scene.do(lambda now_s: scene.manager.cancel(b"large", now_s))
    assert "small" in scene.running


def test_a_gpu_that_is_kept_is_had_by_one_alike_that_another_node_sends() -> None:
    scene = with_a_gpu_kept(num_gpus=1)
    scene.hold_starts = True
    for number in range(2):
        scene.give_back(f"long {number}")
    scene.ask("small", resources=units(GPU=0.3), requester=7, grant_or_reject=True)
    assert "small" in scene.rejected, "the large one has it"
    scene.do(lambda now_s: scene.manager.cancel(b"large", now_s))
    scene.ask("sent here", resources=units(GPU=1), job=JOB_B, requester=8, grant_or_reject=True)
    assert "sent here" not in scene.rejected


def test_bundles_with_gpus_have_their_turn_beside_parts_of_them() -> None:
    scene = Scene(units(CPU=4, GPU=4))
    floods = parts_of_gpus(scene, 0.35)
    scene.ask_for_bundles(b"g" * 18, units(GPU=1), units(GPU=1))
    run_until_granted(scene, (b"g" * 18).decode(), floods, within_s=8 * (0.6 + LOOK_S))


def test_nothing_is_kept_for_what_waits_for_an_actor() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("actor", for_actor=True)
    scene.ask("large", resources=units(CPU=2))
    for number in range(20):
        scene.wait(0.1)
        scene.ask(f"small {number}", requester=2)
        assert f"small {number}" in scene.running
        scene.give_back(f"small {number}")


def test_a_node_idles_at_most_half_of_the_time_for_a_large_request_whose_turn_never_comes() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("endless")
    scene.ask("large", resources=units(CPU=2))
    ran = 0
    for number in range(400):
        scene.ask(f"small {number}", requester=2, job=JOB_B)
        scene.wait(0.05)
        if f"small {number}" in scene.running:
            ran += 1
            scene.give_back(f"small {number}")
        else:
            scene.do(functools.partial(scene.manager.cancel, f"small {number}".encode()))
    assert ran >= 150


def test_what_fits_on_another_node_only_goes_there_to_wait() -> None:
    scene = Scene(units(CPU=1))
    scene.other_node(units(), total=units(CPU=1, A=1))
    scene.ask("there", resources=units(A=1))
    scene.ask("actor", resources=units(A=1), for_actor=True)
    scene.ask("here", resources=units(CPU=1))
    scene.ask("next", resources=units(CPU=1))
    assert scene.spilled == {}
    scene.wait(RECLAIM_AFTER_S)
    assert scene.spilled == {"there": THERE} and scene.may_wait == ["there"]


def test_what_has_waited_for_long_waits_on_all_nodes_that_could_hold_it_each_once() -> None:
    scene = Scene(units(CPU=2))
    scene.other_node(units(CPU=0), total=units(CPU=2))
    for number in range(2):
        scene.ask(f"runs {number}", job=JOB_A, requester=number + 1)
    for number in range(4):
        scene.ask(f"waits {number}", job=JOB_B, requester=9)
    scene.ask("sent here", job=JOB_B, requester=8, requester_node=THERE)
    scene.ask("actor", job=JOB_B, requester=7, for_actor=True)
    scene.wait(SHARE_AFTER_S - LOOK_S)
    assert not scene.spilled
    scene.wait(3.0)
    assert scene.spilled == {"waits 0": THERE, "waits 2": THERE} and scene.may_wait == [*scene.spilled]


def test_whoever_takes_a_lease_over_with_another_connection_is_asked_for_it_again() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("held", requester=1)
    scene.wait(1)
    scene.ask("call", job=JOB_B, requester=2)
    scene.wait(1)
    assert scene.reclaimed == ["held"]
    scene.ask("held", requester=3)
    scene.wait(1)
    assert scene.reclaimed == ["held", "held"]


@pytest.mark.parametrize("requester_node", [HERE, THERE])
def test_whom_living_actors_keep_out_goes_where_tasks_give_way(requester_node: bytes) -> None:
    scene = Scene(units(CPU=2))
    scene.ask("actor", for_actor=True)
    scene.ask("small")
    scene.other_node(units(), total=units(CPU=2))
    scene.ask("large", resources=units(CPU=2), requester_node=requester_node)
    scene.wait(0.2)
    assert not scene.spilled
    scene.wait(0.2)
    assert scene.spilled == {"large": THERE} and scene.may_wait == ["large"]


def test_whom_actors_keep_out_everywhere_stays_where_it_is() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("actor", for_actor=True)
    scene.ask("small")
    scene.other_node(units(), total=units(CPU=2), lasting=units(CPU=1))
    scene.ask("large", resources=units(CPU=2))
    scene.wait(5.0)
    assert not scene.spilled
    scene.other_node(units(), version=2, total=units(CPU=2))
    scene.wait(1.0)
    assert scene.spilled == {"large": THERE}


def test_bundles_keep_others_out_as_actors_do() -> None:
    scene = Scene(units(CPU=2))
    scene.take(scene.manager.prepare_bundles(b"g" * 18, {0: units(CPU=1)}, scene.now_s)[1])
    assert scene.manager.lasting() == units(CPU=1)
    scene.other_node(units(), total=units(CPU=2))
    scene.ask("large", resources=units(CPU=2))
    scene.wait(0.4)
    assert scene.spilled == {"large": THERE}
