"""Normal tasks: what is pushed and pushed ahead, and what becomes of it when workers do not do it."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, raylet_pb2
from tests.core_worker.scene import (
    ELSEWHERE,
    NODE_ID,
    Reply,
    Scene,
    address_of,
    rejection,
    value,
)
from tests.core_worker.task_submission.tasks import (
    GPU,
    NOT_STARTED,
    SECOND,
    a_worker_with,
    answer,
    asked,
    crash,
    id_of,
    ids_of,
    in_store,
    lease_states,
    lose,
    num_queued,
    push_of,
    pushed,
    raylet_says,
    short_tasks,
    two_idle_workers,
)

# ---- what is pushed


def test_the_first_task_names_the_lease_to_its_worker_and_no_other() -> None:
    scene = Scene()
    refs = [scene.submit() for _ in range(2)]
    lease_id = asked(scene)[0].request.lease_id
    scene.grant(number=7)
    answer(scene, refs[0])
    first, second = (push_of(scene, ref).request for ref in refs)
    assert (first.lease_id, first.lease_number) == (lease_id, 7)
    assert (second.lease_id, second.lease_number) == (b"", 0)


def test_a_task_that_runs_again_names_its_lease_only_where_it_is_the_first() -> None:
    scene = Scene()
    a_worker_with(scene, 1)
    crash(scene)
    scene.grant(SECOND)
    again = scene.wire.last("PushTask")
    assert again.to == "unix:second" and again.request.lease_id and again.request.attempt == 1


def test_each_task_is_told_which_devices_the_lease_has() -> None:
    scene = Scene()
    refs = [scene.submit(resources=GPU) for _ in range(2)]
    scene.grant(resource_ids={"GPU": raylet_pb2.ResourceIds(ids=[3])})
    answer(scene, refs[0])
    for ref in refs:
        assert list(push_of(scene, ref).request.resource_ids["GPU"].ids) == [3]


def test_before_the_first_answer_nothing_is_pushed_ahead() -> None:
    scene = Scene()
    first, second = scene.submit(), scene.submit()
    scene.grant()
    assert pushed(scene) == ids_of(first)
    answer(scene, first, value(1, run_us=1))
    assert pushed(scene) == ids_of(first, second)


@pytest.mark.parametrize(
    ("limits", "run_us", "ahead"),
    [
        ({"ahead_us": 2000.0, "task_overhead_us": 30.0}, 970, 2),
        ({"ahead_us": 2000.0, "task_overhead_us": 30.0}, 470, 4),
        ({"ahead_us": 2000.0, "task_overhead_us": 30.0}, 5000, 1),
        ({"ahead_max": 3}, 1, 3),
    ],
)
def test_a_worker_is_given_as_many_as_it_runs_in_a_while(limits: Any, run_us: int, ahead: int) -> None:
    scene = Scene(**limits)
    short_tasks(scene, run_us)
    refs = [scene.submit() for _ in range(8)]
    scene.grant()
    assert pushed(scene) == ids_of(*refs[:ahead])
    # Filled again when half of them are answered.
    num_answered = ahead - ahead // 2
    for number, ref in enumerate(refs[:num_answered]):
        assert len(pushed(scene)) == ahead, number
        answer(scene, ref, value(1, run_us=run_us))
    assert pushed(scene) == ids_of(*refs[: num_answered + ahead])


def test_one_long_task_among_short_ones_changes_little() -> None:
    scene = Scene(ahead_us=2000.0, task_overhead_us=0.0)
    short_tasks(scene, 100)
    refs = [scene.submit() for _ in range(30)]
    scene.grant()
    assert len(pushed(scene)) == 20
    answer(scene, refs[0], value(1, run_us=600))  # 0.8 * 100 + 0.2 * 600 = 200
    for ref in refs[1:15]:
        assert len(pushed(scene)) == 20
        answer(scene, ref, value(1, run_us=200))
    assert len(pushed(scene)) == 25


@pytest.mark.parametrize(("run_us", "each"), [(30, 4), (45, 3), (60, 2), (200, 1), (10_000, 1)])
def test_very_short_tasks_go_to_a_worker_that_is_awake_before_another_is_woken(
    run_us: int, each: int
) -> None:
    scene = two_idle_workers(run_us, wake_us=100.0)
    refs = [scene.submit() for _ in range(2 * each)]
    on_first, on_second = pushed(scene, "unix:second"), pushed(scene, "unix:worker")
    assert [len(on_first), len(on_second)] == [each, each]
    assert on_first + on_second == ids_of(*refs)


@pytest.mark.timeout(30)
def test_short_tasks_of_two_functions_are_pushed_ahead_in_order() -> None:
    scene = Scene(ahead_us=2000.0, task_overhead_us=0.0)
    for name in ("f", "g"):
        ref = scene.submit(name=name)
        if scene.wire.open("RequestWorkerLease"):
            scene.grant()
        answer(scene, ref, value(0, run_us=100))
    refs = [scene.submit(name=name) for name in "ffgg"]
    assert pushed(scene)[2:] == ids_of(*refs)


def test_a_worker_that_was_given_back_is_given_nothing() -> None:
    scene = two_idle_workers(1, wake_us=100.0)
    answer(scene, scene.submit())
    scene.pass_time(1)
    assert len(scene.wire.all("ReturnWorker")) == 2
    scene.submit()
    assert len(asked(scene)) == 1


def test_while_the_workers_keep_up_with_very_short_tasks_no_more_are_asked_for() -> None:
    scene = two_idle_workers(10, wake_us=30.0, keep_up_us=100.0)
    refs = [scene.submit() for _ in range(2 * 4 + 19)]
    assert not asked(scene)
    refs.append(scene.submit())
    assert len(asked(scene)) > 0
    for ref in refs:
        answer(scene, ref, value(1, run_us=10))
    assert scene.core.get(refs, None) == [1] * len(refs)


def test_where_a_very_short_task_is_long_after_all_more_workers_are_asked_for() -> None:
    scene = two_idle_workers(10, wake_us=30.0)
    for _ in range(2 * 4 + 1):
        scene.submit()
    assert not asked(scene) and num_queued(scene) == 1
    scene.pass_time(0.011)
    assert len(asked(scene)) == 1


def test_few_tasks_that_wait_are_shared_by_the_workers() -> None:
    scene = two_idle_workers(10, wake_us=0.0)
    for _ in range(2 + 6):
        scene.submit()
    assert [len(pushed(scene, "unix:second")), len(pushed(scene, "unix:worker"))] == [4, 4]


def test_what_is_submitted_while_a_worker_is_busy_is_pushed_behind_short_tasks() -> None:
    scene = Scene()
    (first,) = a_worker_with(scene, 1)
    second = scene.submit()
    assert pushed(scene) == ids_of(first, second)


def test_nothing_is_pushed_behind_a_task_after_which_the_worker_ends() -> None:
    scene = Scene()
    short_tasks(scene, max_calls=1)
    first, second = scene.submit(max_calls=1), scene.submit(max_calls=1)
    scene.grant()
    assert pushed(scene) == ids_of(first)
    answer(scene, first, value(1, worker_exiting=True))
    (returned,) = scene.wire.all("ReturnWorker")
    # It is not told to end: others may need what it owns.
    assert returned.request.leaving and not lease_states(scene)
    scene.grant(SECOND)
    assert pushed(scene, "unix:second") == ids_of(second)


def test_tasks_that_hold_other_resources_than_cpus_get_a_worker_each_in_order() -> None:
    scene = Scene()
    slot = ResourceSet.from_units({"CPU": 1, "slot": 1})
    short_tasks(scene, resources=slot)
    first, second, third = (scene.submit(resources=slot) for _ in range(3))
    scene.grant()
    assert pushed(scene) == ids_of(first)
    scene.grant(SECOND)
    answer(scene, first, value(0, run_us=1))
    assert pushed(scene, "unix:second") == ids_of(second)
    assert pushed(scene, "unix:worker")[-1:] == ids_of(third)


def test_what_was_pushed_behind_a_worker_that_ends_by_itself_runs_elsewhere_at_no_cost() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 2, max_retries=0)
    answer(scene, first, value(1, worker_exiting=True))
    lose(scene)
    raylet_says(scene, begun=1)
    assert len(scene.wire.all("ReturnWorker")) == 1
    scene.grant(SECOND)
    assert pushed(scene, "unix:second") == ids_of(second)
    answer(scene, second)
    assert scene.core.get([first, second], None) == [1, 1]


def test_a_worker_that_is_another_one_by_now_is_given_back_and_the_task_runs_elsewhere() -> None:
    scene = Scene()
    (ref,) = a_worker_with(scene, 1, max_retries=0)
    answer(scene, ref, Reply(status=Reply.WRONG_WORKER))
    assert scene.wire.last("ReturnWorker").request.leaving
    assert len(asked(scene)) == 1
    scene.grant(SECOND)
    answer(scene, ref)
    assert scene.state_of(ref) == 1


def test_tasks_that_come_back_keep_their_places_in_the_order_of_submission() -> None:
    scene = Scene()
    first, *others = a_worker_with(scene, 4)
    for ref in others:
        answer(scene, ref, NOT_STARTED)
    others.append(scene.submit())
    assert num_queued(scene) == 4 and pushed(scene) == ids_of(first, *others[:3])
    scene.grant(SECOND)
    answer(scene, others[0], value(1, run_us=1))
    answer(scene, others[1], value(1, run_us=1))
    assert pushed(scene, "unix:second") == ids_of(*others)


def test_a_worker_that_gave_a_task_back_gets_no_more_before_its_first_is_over() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 2)
    answer(scene, second, NOT_STARTED)
    third = scene.submit()
    assert pushed(scene) == ids_of(first, second) and "runs a long task" in lease_states(scene)[0]
    answer(scene, first)
    assert pushed(scene) == ids_of(first, second, second, third)


@pytest.mark.parametrize("why", ["given back", "its worker died", "taken back, and then its worker died"])
def test_for_what_did_not_start_a_lease_is_asked_for_at_once(why: str) -> None:
    scene = Scene()
    _, second = a_worker_with(scene, 2)
    asked(scene)[0].answer(rejection(raylet_pb2.Rejection.CANCELLED))
    assert not asked(scene)
    if why == "given back":
        answer(scene, second, NOT_STARTED)
    elif why == "its worker died":
        lose(scene)
        raylet_says(scene, begun=1)
    else:
        scene.pass_time(0.05)
        scene.wire.last("WithdrawTasks").answer(raylet_pb2.WithdrawTasksReply(is_closed=True, begun=1))
        assert len(asked(scene)) == 1
        asked(scene)[0].answer(rejection(raylet_pb2.Rejection.NOT_HERE))
        crash(scene)
    assert len(asked(scene)) == (1 if why == "given back" else 2)


def test_a_worker_that_gave_its_only_task_back_is_given_the_next_one() -> None:
    scene = Scene()
    (ref,) = a_worker_with(scene, 1)
    answer(scene, ref, NOT_STARTED)
    assert pushed(scene) == ids_of(ref, ref)
    answer(scene, ref)
    assert scene.state_of(ref) == 1


# ---- a worker is gone


def test_what_waited_behind_a_task_that_its_worker_died_of_pays_nothing() -> None:
    scene = Scene()
    first, *others = a_worker_with(scene, 3, max_retries=0)
    lose(scene)
    raylet_says(scene, begun=1)
    assert isinstance(scene.state_of(first), WorkerCrashedError)
    assert not scene.wire.all("ReturnWorker")
    scene.grant(SECOND)
    assert pushed(scene, "unix:second") == ids_of(*others)


def test_what_had_begun_behind_an_answer_that_waited_is_lost_as_well() -> None:
    """The first answer waited for an owner, say, when the worker died in the second task."""
    scene = Scene()
    first, second, third = a_worker_with(scene, 3, max_retries=0)
    lose(scene)
    raylet_says(scene, begun=2)
    assert isinstance(scene.state_of(first), WorkerCrashedError)
    assert isinstance(scene.state_of(second), WorkerCrashedError)
    scene.grant(SECOND)
    assert pushed(scene, "unix:second") == ids_of(third)


@pytest.mark.parametrize(("begun", "attempts"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (None, [1, 1, 1])])
def test_whatever_had_begun_costs_a_retry(begun: int | None, attempts: list[int]) -> None:
    scene = Scene()
    refs = a_worker_with(scene, 3, max_retries=1)
    lose(scene)
    raylet_says(scene, begun)
    scene.grant(SECOND)
    answer(scene, refs[0])
    assert [push_of(scene, ref).request.attempt for ref in refs] == attempts


def test_tasks_of_a_node_that_is_gone_may_all_have_begun() -> None:
    scene = Scene()
    refs = a_worker_with(scene, 3, max_retries=0)
    lose(scene)
    scene.wire.open("LostWorker")[0].fail()
    assert all(isinstance(scene.state_of(ref), NodeDiedError) for ref in refs)


def test_a_process_that_leaves_asks_for_no_more_workers() -> None:
    """Its raylet may be gone by then: every request would fail at once, and be made again."""
    scene = Scene()
    (ref,) = a_worker_with(scene, 1, max_retries=1)
    scene.core.context.leave_cluster()
    lose(scene)
    assert not asked(scene) and isinstance(scene.state_of(ref), GetTimeoutError)


def test_a_task_whose_worker_died_runs_again_on_another_one_where_its_retries_last() -> None:
    scene = Scene()
    ref = scene.submit(max_retries=1)
    scene.grant()
    crash(scene)
    (request,) = asked(scene)
    scene.grant(SECOND)
    assert push_of(scene, ref).request.attempt == 1
    crash(scene, "unix:second")
    assert isinstance(scene.state_of(ref), WorkerCrashedError) and len(pushed(scene)) == 2


def test_a_lease_that_rests_when_its_worker_dies_is_noticed_by_the_next_task_only() -> None:
    scene = Scene()
    first = scene.submit()
    scene.grant()
    answer(scene, first)
    lose(scene)
    assert not scene.wire.all("LostWorker")
    second = scene.submit(max_retries=1)
    (told,) = scene.wire.all("LostWorker")
    told.answer(common_pb2.DeathCause())
    scene.grant(SECOND)
    answer(scene, second)
    assert scene.core.get([first, second], None) == [1, 1]


# ---- an argument has no room


def far_argument(scene: Scene, node_id: bytes = ELSEWHERE) -> Any:
    """A large object that lies there."""
    ref = scene.submit()
    scene.grant()
    answer(scene, ref, in_store(ref, node_id))
    scene.pass_time(1)
    return ref


def in_need_of_room(scene: Scene, *, is_bound: bool = False, lies: bytes = ELSEWHERE) -> Any:
    """A task that a worker here refused: its argument lies there, and finds no room."""
    affinity = common_pb2.NodeAffinity(node_id=NODE_ID, soft=not is_bound)
    strategy = common_pb2.SchedulingStrategy(node_affinity=affinity)
    ref = scene.submit(far_argument(scene, lies), strategy=strategy)
    scene.grant()
    answer(scene, ref, Reply(status=Reply.NO_ROOM))
    return ref


def test_a_task_whose_argument_has_no_room_is_placed_once_where_it_lies() -> None:
    scene = Scene()
    ref = in_need_of_room(scene)
    (request,) = [said.request for said in asked(scene)]
    assert request.strategy.node_affinity.node_id == ELSEWHERE and request.strategy.node_affinity.soft
    assert len(pushed(scene)) == 2
    # The worker that refused it is free for others.
    assert any("lingers" in state for state in lease_states(scene))
    scene.grant(address_of(b"second", ELSEWHERE))
    push = push_of(scene, ref)
    assert push.to == "second:1" and push.request.waits_for_room and not push.request.attempt
    push.answer(value(1))
    assert scene.state_of(ref) == 1


def test_what_a_worker_keeps_of_a_task_that_it_refused_is_borrowed() -> None:
    scene = Scene()
    kept = scene.core.put(1)
    ref = scene.submit(far_argument(scene))
    scene.grant()
    answer(
        scene,
        ref,
        Reply(status=Reply.NO_ROOM, borrowed=[common_pb2.ObjectReference(object_id=kept.binary())]),
    )
    (watch,) = scene.wire.all("WaitForRefRemoved")
    assert watch.to == "unix:worker" and watch.request.object_id == kept.binary()


@pytest.mark.parametrize("where", [{"is_bound": True}, {"lies": NODE_ID}])
def test_a_task_that_may_run_nowhere_else_waits_for_room_here(where: Any) -> None:
    scene = Scene()
    ref = in_need_of_room(scene, **where)
    assert push_of(scene, ref).to == "unix:worker" and push_of(scene, ref).request.waits_for_room
    assert pushed(scene)[-2:] == ids_of(ref, ref) and not asked(scene)


def test_a_cancelled_task_is_not_placed_elsewhere() -> None:
    scene = Scene()
    ref = scene.submit(far_argument(scene))
    scene.grant()
    scene.core.cancel(ref, False, False)
    answer(scene, ref, Reply(status=Reply.NO_ROOM))
    assert isinstance(scene.state_of(ref), TaskCancelledError) and not asked(scene)


# ---- cancel


def test_a_cancelled_task_leaves_the_queue() -> None:
    scene = Scene()
    refs = [scene.submit(), scene.submit(), scene.submit()]
    for ref in refs[:2]:
        scene.core.cancel(ref, False, False)
        assert isinstance(scene.state_of(ref), TaskCancelledError)
    assert num_queued(scene) == 1
    scene.grant()
    assert pushed(scene) == ids_of(refs[2])


def test_a_cancelled_task_that_was_pushed_is_not_pushed_again() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 2)
    scene.core.cancel(second, False, False)
    (told,) = scene.wire.all("CancelTask")
    assert told.to == "unix:worker" and told.request.task_id == id_of(second)
    assert isinstance(scene.state_of(second), GetTimeoutError)
    answer(scene, second, NOT_STARTED)
    assert isinstance(scene.state_of(second), TaskCancelledError) and not num_queued(scene)
    assert pushed(scene) == ids_of(first, second)


def test_a_worker_that_does_not_answer_a_cancel_by_force_is_ended_by_its_raylet() -> None:
    scene = Scene(force_s=1.0)
    short_tasks(scene)
    refs = [scene.submit() for _ in range(2)]
    scene.grant(number=7)
    for ref in refs:
        scene.core.cancel(ref, True, False)
    scene.pass_time(0.9)
    assert len(scene.wire.all("CancelTask")) == 2 and not scene.wire.all("KillWorker")
    scene.pass_time(0.2)
    # If it runs one of them, which the raylet knows.
    killed = scene.wire.all("KillWorker")
    assert [(each.to, each.request.worker_id) for each in killed] == [("raylet", scene.worker.worker_id)] * 2
    assert [(each.request.lease_number, each.request.place) for each in killed] == [(7, 1), (7, 2)]
    assert killed[0].request.force and "force=True" in killed[0].request.cause.message


@pytest.mark.parametrize("force", [True, False])
def test_a_worker_that_answered_or_was_asked_without_force_is_left_alone(force: bool) -> None:
    scene = Scene()
    (ref,) = a_worker_with(scene, 1)
    scene.core.cancel(ref, force, False)
    assert scene.wire.last("CancelTask").request.force is force
    if force:
        answer(scene, ref)
    scene.pass_time(5)
    assert not scene.wire.all("KillWorker")
