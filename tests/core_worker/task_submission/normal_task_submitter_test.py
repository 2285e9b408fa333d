"""The task submitter with workers that are played: what it pushes ahead, and what becomes of it when the first task is long."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import LocalRayletDiedError
from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.task_submission.stalls import ALONE_LOOKS, ASKED_LOOKS
from ray_mono.core_worker.task_submission.task_manager import NO_ROOM, NOT_STARTED
from ray_mono.protobuf import common_pb2, core_worker_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.submitter_scene import FakeTask, Reply, Scene, a_worker_with


def test_a_stalled_worker_is_told_again_when_more_was_pushed_while_it_gave_back() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 1, 2)
    # On its way when the worker blocked and gave back what it had: it sits there now, behind a task that may wait for it.
    (third,) = scene.submit(3)
    scene.submitter._push_ahead(scene.lease)
    assert list(scene.lease.tasks) == [first, second, third]
    scene.pushed["push 1"](Reply(status=NOT_STARTED), None)
    assert list(scene.lease.tasks) == [first, third] and list(scene.queue.tasks) == [second]
    assert third.place and not second.place, "it is on no lease"
    scene.fire()
    scene.fire()
    assert scene.given_back == 1
    scene.pushed["push 2"](Reply(status=NOT_STARTED), None)
    assert list(scene.lease.tasks) == [first]
    assert set(scene.queue.tasks) == {second, third}


def test_a_cancelled_task_leaves_the_queue() -> None:
    scene = Scene()
    first, second = scene.submit(1, 2)
    for task in (first, second):
        scene.submitter.cancel(task, core_worker_pb2.CancelTaskRequest(task_id=task.task_id))
    assert scene.cancelled == [first, second]
    assert not scene.queue.tasks


def test_a_cancelled_task_that_was_pushed_is_not_pushed_again() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 1, 2)
    scene.core.tasks.cancelled.add(second.task_id)
    scene.submitter.cancel(second, core_worker_pb2.CancelTaskRequest(task_id=second.task_id))
    assert scene.told == [second.task_id] and not scene.cancelled
    scene.pushed["push 1"](Reply(status=NOT_STARTED), None)
    assert scene.cancelled == [second]
    assert not scene.queue.tasks and list(scene.lease.tasks) == [first]


def test_tasks_that_come_back_keep_their_places_in_the_order_of_submission() -> None:
    scene = Scene()
    a_worker_with(scene, 1, 2, 3, 4)
    for push in (1, 2, 3):
        scene.answer(push, NOT_STARTED)
    scene.submit(5)
    assert [task.name for task in scene.queue.tasks] == ["task 2", "task 3", "task 4", "task 5"]


def test_what_waited_behind_a_task_that_its_worker_died_of_pays_nothing() -> None:
    scene = Scene()
    first, *others = a_worker_with(scene, 1, 2, 3)
    gone = RpcError(StatusCode.UNAVAILABLE, "gone")
    for push in range(3):
        scene.pushed[f"push {push}"](None, gone)
    assert scene.lost == [first]
    assert list(scene.queue.tasks) == others
    assert len(scene.raylet.lost) == 1 and scene.raylet.returned == []


@pytest.mark.parametrize(("leaves", "told"), [(False, [LocalRayletDiedError]), (True, [])])
def test_a_raylet_that_answers_nothing_has_died_unless_this_process_leaves(
    leaves: bool, told: list[type]
) -> None:
    scene = Scene()
    scene.submit(1)
    scene.core.is_leaving = leaves
    (on_lease,) = scene.raylet.asked.values()
    on_lease(None, RpcError(StatusCode.UNAVAILABLE, "this process disconnected"))
    assert [type(error) for error in scene.failed] == told


def test_lease_requests_that_nobody_waits_for_are_cancelled() -> None:
    scene = Scene()
    scene.submit(1, 2, 3)
    asked = list(scene.raylet.asked)
    assert len(asked) == 3
    for push in range(3):
        if push == 0:
            scene.grant()
        scene.answer(push)
    assert scene.raylet.cancelled == asked[1:]


def test_requests_are_cancelled_when_the_last_task_that_waits_is() -> None:
    scene = Scene()
    tasks = scene.submit(1, 2)
    for task in tasks:
        assert scene.raylet.cancelled == []
        scene.submitter.cancel(task, core_worker_pb2.CancelTaskRequest(task_id=task.task_id))
    assert scene.raylet.cancelled == list(scene.raylet.asked)


# ---- an argument has no room


def in_need_of_room(scene: Scene, *, is_bound: bool = False, lies: bytes = b"far") -> Any:
    """A task that a worker refused: its argument lies elsewhere, and finds no room."""
    affinity = common_pb2.NodeAffinity(node_id=b"here", soft=not is_bound)
    strategy = common_pb2.SchedulingStrategy(node_affinity=affinity)
    scene.queue = scene.submitter.queue_for(TaskOptions(strategy=strategy))
    (task,) = scene.submit(1)
    task.request.args.add(location_node_ids=[lies], size_bytes=10)
    scene.grant(b"here")
    scene.answer(0, NO_ROOM)
    return task


def test_a_task_whose_argument_has_no_room_is_placed_once_where_it_lies() -> None:
    scene = Scene()
    task = in_need_of_room(scene)
    assert not scene.queue.tasks and scene.raylet.strategies[-1].node_affinity.node_id == b"far"
    assert scene.raylet.strategies[-1].node_affinity.soft
    assert task.request.waits_for_room and task.retries_left == 1
    assert scene.borrowers == [b"here"]
    # The worker that refused it is free for others.
    assert len(scene.queue.idle) == 1
    scene.grant(b"far")
    scene.answer(1)
    assert scene.completed == [task] and scene.lost == []


@pytest.mark.parametrize("where", [{"is_bound": True}, {"lies": b"here"}])
def test_a_task_that_may_run_nowhere_else_waits_for_room_here(where: Any) -> None:
    scene = Scene()
    task = in_need_of_room(scene, **where)
    assert list(scene.lease.tasks) == [task] and task.request.waits_for_room
    assert not scene.raylet.asked


def test_a_cancelled_task_is_not_placed_elsewhere() -> None:
    scene = Scene()
    scene.core.tasks.cancelled.add(FakeTask(1).task_id)
    assert scene.cancelled == [in_need_of_room(scene)] and not scene.raylet.asked


# ---- others wait


def reclaim(scene: Scene) -> None:
    assert scene.raylet.reclaim is not None
    scene.raylet.reclaim(raylet_pb2.ReclaimedLeases(lease_ids=[scene.lease.lease_id]))


def test_a_lease_that_others_wait_for_ends_with_what_was_pushed() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 1, 2)
    reclaim(scene)
    assert scene.given_back == 1
    (third,) = scene.submit(3)
    scene.answer(1, NOT_STARTED)
    assert scene.raylet.returned == []
    scene.answer(0)
    assert scene.completed == [first]
    assert len(scene.raylet.returned) == 1 and not scene.queue.leases
    # And is asked for again, for what is left.
    assert list(scene.queue.tasks) == [second, third]
    scene.grant()
    assert [task.name for task in scene.lease.tasks] == ["task 2", "task 3"]


def test_an_idle_lease_that_others_wait_for_ends_at_once() -> None:
    scene = Scene()
    a_worker_with(scene, 1)
    scene.answer(0)
    assert scene.queue.idle
    reclaim(scene)
    assert not scene.queue.idle and len(scene.raylet.returned) == 1
    scene.fire()
    assert len(scene.raylet.returned) == 1


# ---- a worker that does not answer


def withdraw(scene: Scene, begun: int) -> None:
    ((request, done),) = scene.raylet.withdrawals
    assert request.last == len(scene.lease.tasks)
    done(raylet_pb2.WithdrawTasksReply(is_closed=True, begun=begun), None)


def test_what_waits_behind_a_frozen_task_runs_elsewhere_and_the_worker_stays_leased_until_it_answers() -> (
    None
):
    scene = Scene()
    first, second, third = a_worker_with(scene, 1, 2, 3)
    frozen = scene.lease
    scene.fire(1 + ASKED_LOOKS)
    withdraw(scene, begun=1)
    assert list(frozen.tasks) == [first] and list(scene.queue.tasks) == [second, third]
    scene.grant()
    assert scene.raylet.returned == []
    # Thawed: it finishes the first, and gives back what it may not start.
    scene.answer(0)
    assert scene.completed == [first] and scene.raylet.returned == []
    scene.answer(1, NOT_STARTED)
    scene.answer(2, NOT_STARTED)
    assert [request.lease_id for request in scene.raylet.returned] == [frozen.lease_id]
    scene.answer(3)
    scene.answer(4)
    assert scene.completed == [first, second, third]


def test_a_first_task_that_a_stopped_worker_has_not_begun_runs_elsewhere() -> None:
    scene = Scene()
    (first,) = a_worker_with(scene, 1)
    stopped = scene.lease
    scene.fire(1 + ALONE_LOOKS)
    withdraw(scene, begun=0)
    assert list(scene.queue.tasks) == [first] and not stopped.tasks
    scene.grant()
    scene.answer(1)
    assert scene.completed == [first]
    # Its end costs nobody a retry.
    scene.pushed["push 0"](None, RpcError(StatusCode.UNAVAILABLE, "gone"))
    assert scene.lost == []
    assert scene.raylet.lost == [stopped.lease_id]


def test_a_long_task_that_has_begun_is_asked_about_once_and_gets_nothing_behind_it() -> None:
    scene = Scene()
    (first,) = a_worker_with(scene, 1)
    scene.fire(1 + ALONE_LOOKS)
    ((_, done),) = scene.raylet.withdrawals
    done(raylet_pb2.WithdrawTasksReply(), None)
    (second,) = scene.submit(2)
    assert list(scene.lease.tasks) == [first] and list(scene.queue.tasks) == [second]
    scene.fire(50)
    assert len(scene.raylet.withdrawals) == 1 and not scene.timers
    scene.answer(0)
    assert list(scene.lease.tasks) == [second]


def test_a_task_that_is_cancelled_while_it_is_taken_back_does_not_run() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 1, 2)
    scene.fire(1 + ASKED_LOOKS)
    scene.core.tasks.cancelled.add(second.task_id)
    withdraw(scene, begun=1)
    assert scene.cancelled == [second] and not scene.queue.tasks
    assert list(scene.lease.tasks) == [first]


def test_a_worker_that_does_not_answer_a_cancel_by_force_is_ended_by_its_raylet() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 1, 2)
    for task in (first, second):
        request = core_worker_pb2.CancelTaskRequest(task_id=task.task_id, force=True)
        scene.submitter.cancel(task, request)
    assert len(scene.told) == 2 and scene.raylet.killed == []
    scene.fire()
    # Once, for the one that runs.
    assert len(scene.raylet.killed) == 1


def test_a_worker_that_answered_a_cancel_by_force_is_left_alone() -> None:
    scene = Scene()
    (first,) = a_worker_with(scene, 1)
    scene.submitter.cancel(first, core_worker_pb2.CancelTaskRequest(task_id=first.task_id, force=True))
    scene.answer(0)
    scene.fire()
    assert scene.raylet.killed == []
