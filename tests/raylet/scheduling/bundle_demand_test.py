"""Bundles of placement groups that wait in the queue of leases: what they take when they have their turn, and
what is left of them when they do not.
"""

from __future__ import annotations

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.effects import RejectionKind
from tests.raylet.scheduling.lease_scene import JOB_A, JOB_B, Scene, units

G, H = b"g" * 18, b"h" * 18


def busy(total: ResourceSet) -> Scene:
    """A node whose first two CPUs have tasks."""
    scene = Scene(total)
    for name in ("a", "b"):
        scene.ask(name)
    return scene


def test_bundles_are_held_together_when_all_that_they_need_is_free() -> None:
    scene = busy(units(CPU=2))
    scene.ask_for_bundles(G, units(CPU=1.5), units(CPU=0.5))
    scene.wait(0.2)
    assert scene.reclaimed == ["a", "b"]
    scene.give_back("a")
    assert not scene.held and not scene.manager.held_bundles()
    scene.give_back("b")
    assert scene.held == [G.decode()] and scene.manager.held_bundles() == {G: [0, 1]}
    assert not scene.manager.leases()
    scene.do(lambda now_s: scene.manager.return_bundles({G: [0, 1]}, False, now_s))
    assert scene.ledger.available == units(CPU=2)


def test_what_is_kept_for_bundles_no_task_takes_and_no_other_bundle() -> None:
    scene = busy(units(CPU=2))
    scene.ask_for_bundles(G, units(CPU=2))
    scene.wait(0.5)
    scene.give_back("a")
    scene.ask("c", job=JOB_A)
    refusal, effects = scene.manager.prepare_bundles(H, {0: units(CPU=1)}, scene.now_s)
    scene.take(effects)
    text = "it needs {CPU: 1}, node 62626262 has {CPU: 1} free, and keeps that for what has waited longer"
    assert refusal == text and scene.running == ["b"]
    kept = "and keeps that for what has waited longer"
    assert scene.why("c") == f"needs {{CPU: 1}}; node 62626262 has {{CPU: 1}} free of {{CPU: 2}}, {kept}"
    assert scene.why(G.decode()) == "needs {CPU: 2}; node 62626262 has {CPU: 1} free of {CPU: 2}"
    assert scene.manager.prepare_bundles(H, {0: ResourceSet()}, scene.now_s)[0] == ""
    scene.give_back("b")
    assert scene.held == [G.decode()] and "c" not in scene.running


def test_a_stream_of_groups_does_not_starve_a_large_task() -> None:
    scene = busy(units(CPU=2))
    scene.ask("large", job=JOB_B, resources=units(CPU=2), requester=2)
    scene.wait(0.5)
    for name in ("a", "b"):
        scene.give_back(name)
        refusal, effects = scene.manager.prepare_bundles(H, {0: units(CPU=1)}, scene.now_s)
        scene.take(effects)
        assert refusal
    assert scene.running == ["large"]


@pytest.mark.parametrize("is_withdrawn", [True, False])
def test_bundles_that_are_withdrawn_or_whose_requester_is_gone_leave_nothing(is_withdrawn: bool) -> None:
    scene = busy(units(CPU=2))
    scene.ask_for_bundles(G, units(CPU=2), requester=9)
    scene.wait(0.5)
    scene.give_back("a")
    scene.ask("c", requester=2)
    assert scene.running == ["b"]
    if is_withdrawn:
        scene.do(lambda now_s: scene.manager.cancel(G, now_s))
    else:
        scene.do(lambda now_s: scene.manager.requester_gone(9, now_s))
    assert scene.rejected[G.decode()] is RejectionKind.CANCELLED and scene.running == ["b", "c"]
    for name in ("b", "c"):
        scene.give_back(name)
    scene.wait(1.0)
    assert not scene.held and scene.ledger.available == units(CPU=2)
    assert not scene.manager.describe(scene.now_s)["num_shapes_remembered"]


@pytest.mark.parametrize("is_drained_before", [True, False])
def test_a_node_that_is_drained_holds_none(is_drained_before: bool) -> None:
    scene = busy(units(CPU=2))
    scene.other_node(free=units(CPU=0), total=units(CPU=4))
    if is_drained_before:
        scene.do(scene.manager.drain)
    scene.ask_for_bundles(G, units(CPU=2))
    if not is_drained_before:
        scene.do(scene.manager.drain)
    assert scene.messages[G.decode()] == "node 62626262 is drained"


def test_they_do_not_end_with_their_job_and_its_driver_is_told_nothing() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("actor", for_actor=True)
    scene.ask_for_bundles(G, units(CPU=2), job=JOB_B)
    scene.do(lambda now_s: scene.manager.job_finished(JOB_B, now_s))
    scene.wait(60.0)
    assert not scene.warnings and not scene.rejected and scene.collected_at_s
    scene.worker_dies("actor")
    assert scene.held == [G.decode()]


def test_parts_of_accelerators_wait_for_whole_ones_where_they_are_more_than_one() -> None:
    scene = Scene(units(GPU=2))
    for name, amount in (("a", 0.3), ("b", 1)):
        scene.ask(name, resources=units(GPU=amount))
    scene.ask_for_bundles(G, units(GPU=0.6), units(GPU=0.6))
    scene.give_back("b")
    assert not scene.held
    scene.give_back("a")
    assert scene.held == [G.decode()]


def test_parts_of_accelerators_that_do_not_fit_into_whole_ones_are_refused() -> None:
    scene = Scene(units(GPU=4))
    scene.ask("a", resources=units(GPU=2))
    scene.ask_for_bundles(G, *[units(GPU=0.6)] * 5)
    scene.give_back("a")
    assert "in parts of accelerators" in scene.messages[G.decode()]
    assert scene.ledger.available == units(GPU=4) and not scene.manager.held_bundles()
