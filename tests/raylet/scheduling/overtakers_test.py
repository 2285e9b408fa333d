"""Who waits beside actors and groups that come and go: these do not give way, and end."""

from __future__ import annotations

import pytest

from ray_mono.raylet.effects import RejectionKind
from ray_mono.raylet.scheduling.fair_share import DRAIN_S, LOOK_S
from ray_mono.raylet.scheduling.lease_scheduler import LEAVES_PERIOD_S
from tests.raylet.scheduling.floods import Flood, Stream
from tests.raylet.scheduling.lease_scene import JOB_A, THERE, Scene, units


def play(scene: Scene, streams: list[Stream], seconds: float) -> None:
    for _ in range(int(seconds / LOOK_S)):
        scene.wait(LOOK_S)
        for stream in streams:
            stream.answer()


def run_beside(scene: Scene, name: str, streams: list[Stream], within_s: float) -> None:
    begin_s = scene.now_s
    while name not in scene.granted and name not in scene.held:
        assert scene.now_s - begin_s <= within_s, f"{name} was not granted within {within_s} s"
        play(scene, streams, LOOK_S)


@pytest.mark.parametrize("life_s", [0.2, 0.7, 0.95, 3.0, 7.0])
@pytest.mark.parametrize("kind", ["actor", "group"])
@pytest.mark.parametrize("large", ["task", "actor", "bundles"])
def test_a_large_request_is_not_overtaken_for_ever_by_actors_and_groups_that_come_and_go(
    kind: str, life_s: float, large: str
) -> None:
    scene = Scene(units(CPU=4))
    streams = [Stream(scene, kind, 6, life_s)]
    play(scene, streams, 2 * life_s + 0.3)
    if large == "bundles":
        scene.ask_for_bundles(b"large", units(CPU=2), units(CPU=2), job=JOB_A)
    else:
        scene.ask("large", resources=units(CPU=4), requester=3, for_actor=large == "actor")
    is_short = 2 * life_s + 4 * LOOK_S <= DRAIN_S
    within_s = 2 * life_s + 4 * LOOK_S if is_short else 8 * (life_s + LOOK_S)
    run_beside(scene, "large", streams, within_s)


def test_a_large_request_for_gpus_is_not_overtaken_by_groups_and_tasks_that_have_parts_of_them() -> None:
    scene = Scene(units(GPU=2, CPU=4))
    stream = Stream(scene, "group", 3, 0.4, units(GPU=0.4))
    play(scene, [stream], 1.0)
    flood = Flood(scene, "part", 0.2, resources=units(GPU=0.4))
    play(scene, [stream], 1.0)
    scene.ask("large", resources=units(GPU=2), requester=3, job=b"cccc")
    begin_s = scene.now_s
    while "large" not in scene.granted:
        assert scene.now_s - begin_s <= 8 * (0.4 + LOOK_S)
        play(scene, [stream], LOOK_S)
        flood.answer()


def test_nothing_is_kept_for_the_sake_of_actors_that_were_there_first_or_that_stay() -> None:
    scene = Scene(units(CPU=4))
    scene.ask("first", for_actor=True)
    scene.ask("large", resources=units(CPU=4))
    scene.wait(1.0)
    scene.ask("small", requester=5)
    assert "small" in scene.running
    scene.give_back("small")
    # One comes and stays. The one that was there first ends: now only those that came later are in the way.
    scene.ask("stays", for_actor=True)
    scene.give_back("first", dispose=True)
    scene.worker_dies("first")
    idle_s = 0.0
    for number in range(int(100 / LOOK_S)):
        scene.wait(LOOK_S)
        scene.ask(f"small {number}", requester=6)
        if f"small {number}" in scene.running:
            scene.give_back(f"small {number}")
        else:
            idle_s += LOOK_S
            scene.do(lambda now_s, name=f"small {number}": scene.manager.cancel(name.encode(), now_s))
    assert idle_s < 8.0
    scene.give_back("stays", dispose=True)
    scene.worker_dies("stays")
    assert "large" in scene.running


def test_whoever_was_sent_from_node_to_node_is_not_overtaken_anew_at_each() -> None:
    scene = Scene(units(CPU=4))
    stream = Stream(scene, "group", 6, 3.0)
    play(scene, [stream], 10.0)
    scene.ask("large", resources=units(CPU=4), requester=3, requester_node=THERE, waited_s=5.0)
    run_beside(scene, "large", [stream], within_s=3.0 + 2 * LOOK_S)


def test_an_actor_whose_node_fills_with_groups_is_asked_for_elsewhere_where_there_is_room() -> None:
    scene = Scene(units(CPU=2))
    scene.take(scene.manager.prepare_bundles(b"g" * 18, {0: units(CPU=1)}, scene.now_s)[1])
    scene.ask("actor", resources=units(CPU=2), for_actor=True)
    scene.ask("another", resources=units(CPU=2), for_actor=True)
    scene.wait(1.0)
    assert not scene.rejected
    scene.other_node(units(), total=units(CPU=2))
    while not scene.rejected and scene.now_s < 1.0 + LEAVES_PERIOD_S + LOOK_S:
        scene.wait(LOOK_S)
    # One at a time: there is room for one.
    assert scene.rejected == {"actor": RejectionKind.NOT_HERE}
    assert scene.messages["actor"].startswith("actors and groups that were there first hold {CPU: 2} of node")
