"""Tasks with the strategy SPREAD: each asks for a worker of its own turn."""

from __future__ import annotations

from ray_mono.protobuf import common_pb2
from tests.core_worker.scene import Scene, address_of, value
from tests.core_worker.task_submission.tasks import answer, ids_of, pushed


def test_a_task_that_is_spread_leaves_its_worker_to_no_next_one() -> None:
    """The raylet's turn would come to nothing else."""
    scene = Scene()
    spread = common_pb2.SchedulingStrategy(spread=True)
    for number in range(2):
        ref = scene.submit(strategy=spread)
        asked = scene.grant(address_of(b"worker %d" % number))
        assert asked.request.strategy == spread
        answer(scene, ref, value(0, run_us=10))
        assert scene.wire.last("ReturnWorker").request.lease_id == asked.request.lease_id


def test_tasks_that_are_spread_are_not_pushed_ahead() -> None:
    scene = Scene(ahead_us=2000.0)
    spread = common_pb2.SchedulingStrategy(spread=True)
    first = scene.submit(strategy=spread)
    scene.grant()
    answer(scene, first, value(0, run_us=10))
    refs = [scene.submit(strategy=spread) for _ in range(3)]
    scene.grant()
    assert pushed(scene)[1:] == ids_of(refs[0])
    answer(scene, refs[0], value(0, run_us=10))
    assert pushed(scene)[2:] == ids_of(refs[1])
