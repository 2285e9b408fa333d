"""The lease manager of a node that is drained."""

from __future__ import annotations

import pytest

from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.raylet.effects import RejectionKind
from tests.raylet.scheduling.lease_scene import HERE, THERE, Scene, units


def drain(scene: Scene) -> None:
    scene.take(scene.manager.drain(scene.now_s))


def test_new_requests_go_to_another_node_while_there_is_room_here() -> None:
    scene = Scene(units(CPU=2))
    scene.other_node(units(CPU=2))
    drain(scene)
    scene.ask("new")
    assert scene.spilled == {"new": THERE}


def test_what_waits_goes_to_another_node() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("running")
    scene.ask("waiting")
    drain(scene)
    assert not scene.spilled
    scene.other_node(units(CPU=1))
    assert scene.spilled == {"waiting": THERE} and "running" in scene.granted


def test_it_goes_there_at_once_although_that_one_is_full() -> None:
    scene = Scene(units(CPU=1))
    scene.other_node(units(CPU=0), total=units(CPU=1))
    scene.ask("running")
    scene.ask("waiting")
    assert not scene.spilled
    drain(scene)
    assert scene.spilled == {"waiting": THERE}
    scene.ask("later")
    assert scene.spilled == {"waiting": THERE, "later": THERE}


def test_an_actor_that_waits_is_the_heads_to_place_again() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("running")
    scene.ask("actor", for_actor=True)
    drain(scene)
    assert scene.rejected == {"actor": RejectionKind.NOT_HERE}


def test_it_waits_where_no_other_node_could_ever_run_it() -> None:
    scene = Scene(units(CPU=1))
    drain(scene)
    scene.ask("new")
    scene.wait(1.0)
    assert not scene.spilled and not scene.granted and not scene.rejected
    assert not scene.manager.has_leases, "it keeps no node that could not run it"
    scene.wait(60.0)
    assert ["has it, and is drained" in warning.message for warning in scene.warnings] == [True]


@pytest.mark.parametrize("node_id", [HERE, THERE])
def test_what_must_run_on_a_node_that_is_drained_is_refused(node_id: bytes) -> None:
    scene = Scene(units(CPU=1))
    scene.cluster.node_joined(THERE, "there", 2, units(CPU=4), is_draining=node_id == THERE)
    scene.ask("running")
    scene.ask("waiting", strategy=Strategy(StrategyKind.NODE_AFFINITY, node_id))
    if node_id == HERE:
        drain(scene)
    assert scene.rejected == {"waiting": RejectionKind.INFEASIBLE}
    assert "drained" in scene.messages["waiting"]


def test_what_was_sent_here_is_refused() -> None:
    scene = Scene(units(CPU=1))
    drain(scene)
    scene.ask("sent", grant_or_reject=True)
    assert scene.rejected == {"sent": RejectionKind.NOT_HERE}


def test_holders_for_tasks_are_asked_to_end_their_leases_once_and_actors_are_not() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("task")
    scene.ask("actor", for_actor=True)
    drain(scene)
    scene.wait(1.0)
    assert scene.reclaimed == ["task"]


def test_what_has_resources_gets_its_worker_and_is_asked_back() -> None:
    scene = Scene(units(CPU=1))
    scene.hold_starts = True
    scene.ask("reserved")
    drain(scene)
    scene.register()
    assert "reserved" in scene.granted
    scene.wait(1.0)
    assert scene.reclaimed == ["reserved"]


def test_no_workers_are_started_ahead_of_need_and_idle_ones_end() -> None:
    scene = Scene(units(CPU=2), prestart=2)
    scene.wait(1.0)
    drain(scene)
    assert scene.manager.has_leases is False
    scene.take(scene.manager.end_idle_workers(scene.now_s))
    for end in list(scene.ended):
        scene.take(scene.manager.worker_died(end.worker_id, "asked to", scene.now_s))
    scene.wait(1.0)
    assert len(scene.ended) == 2 and not len(scene.pool)


def test_another_node_that_is_drained_gets_nothing() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("running")
    scene.cluster.node_joined(THERE, "there", 2, units(CPU=4), is_draining=True)
    scene.take(scene.manager.cluster_changed(scene.now_s))
    scene.ask("waiting")
    scene.wait(1.0)
    assert not scene.spilled
    scene.give_back("running")
    assert "waiting" in scene.granted


def test_what_a_process_of_this_node_asks_for_is_placed_where_no_other_node_could_run_it() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("parent")
    drain(scene)
    scene.ask("child", owner_node=HERE)
    scene.ask("of somebody elsewhere")
    scene.ask("second child", owner_node=HERE)
    assert scene.running == ["child", "parent"]
    scene.give_back("child")
    assert scene.running == ["parent", "second child"]


def test_so_is_an_actor_of_its() -> None:
    scene = Scene(units(CPU=2))
    drain(scene)
    scene.ask("actor", for_actor=True, owner_node=HERE)
    scene.ask("of somebody elsewhere", for_actor=True, owner_node=THERE)
    assert scene.running == ["actor"] and scene.rejected == {"of somebody elsewhere": RejectionKind.NOT_HERE}


def test_a_child_that_another_node_could_run_goes_there() -> None:
    scene = Scene(units(CPU=2))
    scene.other_node(units(CPU=0), total=units(CPU=1))
    scene.ask("parent")
    drain(scene)
    scene.ask("child", owner_node=HERE)
    assert scene.spilled == {"child": THERE}
