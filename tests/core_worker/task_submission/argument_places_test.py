"""Where tasks ask for their workers: where most bytes of their arguments lie."""

from __future__ import annotations

from typing import Any

from ray_mono.protobuf import common_pb2
from tests.core_worker.losses import THIRD, attempts, lose, made_again, make
from tests.core_worker.scene import ELSEWHERE, Scene

SPREAD = common_pb2.SchedulingStrategy(spread=True)


def asked_of(scene: Scene, *args: Any, **options: Any) -> common_pb2.SchedulingStrategy:
    """The strategy of the lease that a task with these arguments asks for."""
    scene.pass_time(1)  # no worker is left from before
    scene.submit(*args, **options)
    strategy: common_pb2.SchedulingStrategy = scene.wire.open("RequestWorkerLease")[-1].request.strategy
    return strategy


def prefers(node_id: bytes) -> common_pb2.SchedulingStrategy:
    affinity = common_pb2.NodeAffinity(node_id=node_id, soft=True, spill_on_unavailable=True)
    return common_pb2.SchedulingStrategy(node_affinity=affinity)


def test_a_task_prefers_the_node_that_has_most_bytes_of_its_arguments() -> None:
    scene = Scene()
    there, third = make(scene), make(scene, node_id=THIRD)
    assert asked_of(scene, there) == prefers(ELSEWHERE)
    assert asked_of(scene, third, third, there) == prefers(THIRD)


def test_a_task_stays_where_it_is_submitted_if_as_many_bytes_lie_there() -> None:
    scene = Scene()
    here = make(scene, node_id=scene.env.node.node_id)
    assert asked_of(scene, here) == common_pb2.SchedulingStrategy()
    assert asked_of(scene, here, make(scene, name="g"), name="g") == common_pb2.SchedulingStrategy()


def test_options_that_say_where_come_before_arguments() -> None:
    scene = Scene()
    there = make(scene)
    assert asked_of(scene, there, strategy=SPREAD) == SPREAD
    assert asked_of(scene, there, strategy=prefers(THIRD)) == prefers(THIRD)


def test_small_values_have_no_place() -> None:
    scene = Scene()
    assert asked_of(scene, 1, b"two") == common_pb2.SchedulingStrategy()


def test_a_task_whose_argument_was_lost_goes_where_it_is_made_again() -> None:
    scene = Scene()
    ref = make(scene)
    lose(scene, ref)
    user = scene.submit(ref)
    assert attempts(scene, user) == []
    made_again(scene, ref, THIRD)
    assert scene.grant().request.strategy == prefers(THIRD)
    assert attempts(scene, user) == [0]
