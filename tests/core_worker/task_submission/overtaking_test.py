"""Tasks that are long, and began before others that were submitted sooner: the raylet is asked for the CPUs
of as many as were overtaken."""

from __future__ import annotations

from typing import Any

from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.protobuf import common_pb2, raylet_pb2
from tests.core_worker.scene import Said, Scene, address_of, value
from tests.core_worker.task_submission.tasks import (
    NOT_STARTED,
    SECOND,
    answer,
    asked,
    ids_of,
    lease_states,
    lose,
    num_queued,
    pushed,
    short_tasks,
)

LOOK_S = 0.01
ORDER_S = 1.0
STANDSTILL_S = 4 * ORDER_S + LOOK_S
"""Until the first look that has found the same tasks as three before it, and a moment more."""
THIRD = address_of(b"third")


def a_scene() -> Scene:
    return Scene(
        stall_look_s=LOOK_S,
        order_look_s=ORDER_S,
        standstill_looks=3,
        wake_us=0.0,
        keep_up_us=0.0,
        ahead_max=2,
    )


def asks(scene: Scene) -> list[Said]:
    return scene.wire.all("LendCpus")


def lend(scene: Scene, *lease_ids: bytes) -> None:
    (asked_last,) = scene.wire.open("LendCpus")
    asked_last.answer(raylet_pb2.LendCpusReply(lent=lease_ids))


def leases(scene: Scene) -> list[bytes]:
    """The ids of those that were granted, in order."""
    requested = scene.wire.all("RequestWorkerLease")
    return [said.request.lease_id for said in requested if said not in asked(scene)]


def long_tasks(scene: Scene) -> list[ObjectRef[Any]]:
    """Four tasks, whose like were short: two on each of two workers, whose first tasks are long. The others
    came back, and wait."""
    short_tasks(scene)
    refs = [scene.submit() for _ in range(4)]
    scene.grant()
    scene.grant(SECOND)
    assert pushed(scene, "unix:worker")[-2:] == ids_of(*refs[:2])
    assert pushed(scene, "unix:second") == ids_of(*refs[2:])
    scene.pass_time(3 * LOOK_S)
    for ref in (refs[1], refs[3]):
        answer(scene, ref, NOT_STARTED)
    return refs


def test_a_task_that_waits_though_others_began_before_it_gets_the_cpu_of_one_that_began_too_early() -> None:
    scene = a_scene()
    first, overtaken, early, last = long_tasks(scene)
    scene.pass_time(STANDSTILL_S - ORDER_S)
    assert not asks(scene)
    scene.pass_time(ORDER_S)
    (ask,) = asks(scene)
    # The third task has begun, and the second has not. The first began in its turn.
    assert list(ask.request.lease_ids) == [leases(scene)[-1]] and ask.request.most == 1
    lend(scene, *ask.request.lease_ids)
    assert [state.partition(", ")[0].endswith("all is answered") for state in lease_states(scene)] == [
        False,
        True,
    ]
    scene.grant(THIRD)
    assert pushed(scene, "unix:third") == ids_of(overtaken)
    answer(scene, overtaken)
    assert pushed(scene, "unix:third") == ids_of(overtaken, last)
    answer(scene, early)
    assert [said.request.lease_id for said in scene.wire.all("ReturnWorker")][-1] == ask.request.lease_ids[0]
    assert scene.state_of(early) == scene.state_of(overtaken) == 1
    assert scene.state_of(first) is not None


def test_what_is_lent_may_have_gone_back_meanwhile() -> None:
    scene = a_scene()
    _first, overtaken, _early, _last = long_tasks(scene)
    scene.pass_time(STANDSTILL_S)
    (ask,) = asks(scene)
    lose(scene, "unix:second")
    lend(scene, *ask.request.lease_ids)
    scene.wire.open("LostWorker")[0].answer(common_pb2.DeathCause())
    scene.grant(THIRD)
    assert pushed(scene, "unix:third") == ids_of(overtaken)


def test_the_raylet_is_asked_again_while_nothing_is_lent() -> None:
    scene = a_scene()
    long_tasks(scene)
    scene.pass_time(STANDSTILL_S)
    for number in range(1, 4):
        assert len(asks(scene)) == number
        lend(scene)
        scene.pass_time(ORDER_S)
    assert "goes back" not in "".join(lease_states(scene))


def test_after_that_tasks_begin_in_their_order_until_the_queue_has_no_worker() -> None:
    scene = a_scene()
    first, overtaken, early, last = long_tasks(scene)
    scene.pass_time(STANDSTILL_S)
    lend(scene, *asks(scene)[0].request.lease_ids)
    more = [scene.submit() for _ in range(3)]
    answer(scene, first, value(1, run_us=1))
    for ref in (overtaken, last, *more):
        assert pushed(scene)[-1:] == ids_of(ref)
        answer(scene, ref, value(1, run_us=1))
    answer(scene, early)
    scene.pass_time(1)
    assert not lease_states(scene)
    again = [scene.submit() for _ in range(2)]
    scene.grant()
    assert pushed(scene)[-2:] == ids_of(*again)


def test_what_the_raylet_names_again_is_no_news() -> None:
    scene = a_scene()
    long_tasks(scene)
    scene.pass_time(STANDSTILL_S)
    for _ in range(2):
        lend(scene, *asks(scene)[0].request.lease_ids)
        assert [state.count("goes back") for state in lease_states(scene)] == [0, 1]
        scene.pass_time(ORDER_S)


def test_nothing_is_asked_where_one_ends_in_time_and_the_overtaken_task_begins() -> None:
    scene = a_scene()
    first, overtaken, _, last = long_tasks(scene)
    scene.pass_time(STANDSTILL_S - ORDER_S)
    answer(scene, first)
    assert pushed(scene)[-1:] == ids_of(overtaken)
    # What waits now was submitted last.
    scene.pass_time(2 * STANDSTILL_S)
    assert not asks(scene) and num_queued(scene) == 1 and scene.state_of(last) is not None


def test_tasks_that_began_in_their_order_keep_their_cpus_while_later_ones_wait() -> None:
    scene = a_scene()
    short_tasks(scene)
    refs = [scene.submit() for _ in range(2)]
    scene.grant()
    scene.pass_time(3 * LOOK_S)
    answer(scene, refs[1], NOT_STARTED)
    scene.pass_time(2 * STANDSTILL_S)
    assert num_queued(scene) == 1 and not asks(scene)


def test_a_task_whose_arguments_came_later_has_not_been_overtaken() -> None:
    scene = a_scene()
    producer = scene.submit()
    scene.grant()
    waits, long = scene.submit(producer), scene.submit()
    scene.grant(SECOND)
    scene.pass_time(3 * LOOK_S)
    leaves = value(1)
    leaves.worker_exiting = True
    answer(scene, producer, leaves)
    assert pushed(scene, "unix:second") == ids_of(long) and num_queued(scene) == 1
    scene.pass_time(2 * STANDSTILL_S)
    assert not asks(scene) and scene.state_of(waits) is not None


def test_a_task_that_runs_again_has_not_been_overtaken() -> None:
    scene = a_scene()
    runs_again, long = scene.submit(max_retries=1), scene.submit()
    scene.grant()
    scene.grant(SECOND)
    assert pushed(scene, "unix:second") == ids_of(long)
    lose(scene)
    (told,) = scene.wire.open("LostWorker")
    told.answer(common_pb2.DeathCause(message="signal 9"))
    assert num_queued(scene) == 1 and scene.state_of(runs_again) is not None
    scene.pass_time(2 * STANDSTILL_S)
    assert not asks(scene)


def test_what_was_lent_goes_back_at_once_where_the_worker_has_answered_meanwhile() -> None:
    scene = a_scene()
    _, overtaken, early, _ = long_tasks(scene)
    scene.pass_time(STANDSTILL_S)
    (ask,) = asks(scene)
    answer(scene, early)
    assert pushed(scene, "unix:second")[-1:] == ids_of(overtaken)
    lend(scene, *ask.request.lease_ids)
    assert not scene.wire.all("ReturnWorker", "raylet")[1:]
    answer(scene, overtaken)
    assert [said.request.lease_id for said in scene.wire.all("ReturnWorker")][-1] == ask.request.lease_ids[0]


def test_when_no_task_is_long_any_more_nobody_looks() -> None:
    scene = a_scene()
    refs = long_tasks(scene)
    scene.grant(THIRD)
    for ref in (refs[0], refs[2], refs[1], refs[3]):
        answer(scene, ref)
    scene.pass_time(2 * STANDSTILL_S)
    assert not asks(scene) and not lease_states(scene)
