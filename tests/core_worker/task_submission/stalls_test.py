"""Workers whose first task is long: what waits behind it is taken back, by the worker or by its raylet."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.protobuf import raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import LOST, Said, Scene, address_of, value
from tests.core_worker.task_submission.tasks import (
    NOT_STARTED,
    a_worker_with,
    answer,
    asked,
    ids_of,
    lease_states,
    lose,
    num_queued,
    push_of,
    pushed,
    two_idle_workers,
)

SECOND = address_of(b"second")
THIRD = address_of(b"third")
LOOK_S = 0.01


def looks(scene: Scene, times: int) -> None:
    scene.pass_time(times * LOOK_S + LOOK_S / 10)


def a_scene(**limits: Any) -> Scene:
    return Scene(stall_look_s=LOOK_S, **limits)


def withdrawals(scene: Scene) -> list[Said]:
    return scene.wire.all("WithdrawTasks")


def withdraw(scene: Scene, begun: int) -> None:
    """The raylet says that so many of those that were pushed have begun; no other will."""
    (asked,) = scene.wire.open("WithdrawTasks")
    assert asked.to == "raylet"
    asked.answer(raylet_pb2.WithdrawTasksReply(is_closed=True, begun=begun))


def test_a_task_that_is_first_for_two_looks_is_long_and_what_is_behind_it_is_asked_back() -> None:
    scene = a_scene()
    first, second = a_worker_with(scene, 2)
    looks(scene, 1)
    assert not scene.wire.all("GiveBackTasks") and "runs tasks" in lease_states(scene)[0]
    looks(scene, 1)
    assert [said.to for said in scene.wire.all("GiveBackTasks")] == ["unix:worker"]
    assert "runs a long task" in lease_states(scene)[0]
    scene.submit()
    assert pushed(scene) == ids_of(first, second)


def test_tasks_that_come_and_go_between_looks_are_not_long() -> None:
    scene = a_scene()
    refs = a_worker_with(scene, 4)
    for ref in refs[:3]:
        looks(scene, 1)
        answer(scene, ref)
    assert not scene.wire.all("GiveBackTasks")


def test_a_stalled_worker_is_told_again_when_more_was_pushed_while_it_gave_back() -> None:
    scene = a_scene()
    first, second = a_worker_with(scene, 2)
    # On its way when the worker blocked and gave back what it had: it sits there now, behind a task that may
    # wait for it.
    third = scene.submit()
    assert pushed(scene) == ids_of(first, second, third)
    answer(scene, second, NOT_STARTED)
    assert num_queued(scene) == 1
    looks(scene, 2)
    assert len(scene.wire.all("GiveBackTasks")) == 1
    answer(scene, third, NOT_STARTED)
    assert num_queued(scene) == 2
    # One is long, so the others may be, too: each goes to a worker of its own.
    scene.grant(SECOND)
    scene.grant(THIRD)
    assert pushed(scene, "unix:second") == ids_of(second)
    assert pushed(scene, "unix:third") == ids_of(third)


def test_while_more_waits_behind_it_a_long_task_is_looked_at_again_and_again() -> None:
    scene = a_scene(stall_asked_looks=3)
    a_worker_with(scene, 2)
    looks(scene, 3)
    assert len(scene.wire.all("GiveBackTasks")) == 2 and not withdrawals(scene)
    looks(scene, 1)
    (asked,) = withdrawals(scene)
    assert asked.request.last == 2
    assert asked.request.lease_id == scene.wire.all("RequestWorkerLease")[0].request.lease_id
    looks(scene, 5)
    assert len(withdrawals(scene)) == 1 and len(scene.wire.all("GiveBackTasks")) == 8


def test_what_waits_behind_a_frozen_task_runs_elsewhere_and_the_worker_stays_leased_until_it_answers() -> (
    None
):
    scene = a_scene()
    first, second, third = a_worker_with(scene, 3)
    copies = [push_of(scene, ref) for ref in (first, second, third)]
    looks(scene, 4)
    withdraw(scene, begun=1)
    assert num_queued(scene) == 2 and "goes back" in lease_states(scene)[0]
    # One is long, so the others may be, too: each goes to a worker of its own.
    scene.grant(SECOND)
    scene.grant(THIRD)
    assert pushed(scene, "unix:second") == ids_of(second)
    assert pushed(scene, "unix:third") == ids_of(third)
    assert not scene.wire.all("ReturnWorker")
    # Thawed: it finishes the first, and gives back what it may not start.
    copies[0].answer(value(1))
    assert scene.state_of(first) == 1 and not scene.wire.all("ReturnWorker")
    copies[1].answer(NOT_STARTED)
    assert not scene.wire.all("ReturnWorker")
    copies[2].answer(NOT_STARTED)
    (returned,) = scene.wire.all("ReturnWorker")
    assert returned.request.lease_id == withdrawals(scene)[0].request.lease_id
    answer(scene, second)
    answer(scene, third)
    assert scene.core.get([first, second, third], None) == [1, 1, 1]


def test_a_first_task_that_a_stopped_worker_has_not_begun_runs_elsewhere() -> None:
    scene = a_scene(stall_alone_looks=10)
    (ref,) = a_worker_with(scene, 1, max_retries=0)
    looks(scene, 10)
    assert not withdrawals(scene)
    looks(scene, 1)
    withdraw(scene, begun=0)
    assert num_queued(scene) == 1
    scene.grant(SECOND)
    answer(scene, ref)
    assert scene.state_of(ref) == 1
    # Its end costs nobody a retry, and its raylet hears of it.
    lose(scene)
    assert len(scene.wire.all("LostWorker")) == 1
    assert scene.wire.last("LostWorker").request.lease_id == withdrawals(scene)[0].request.lease_id
    assert len(lease_states(scene)) == 1


def test_a_worker_that_was_not_reached_yet_keeps_its_tasks() -> None:
    scene = a_scene()
    (first,) = a_worker_with(scene, 1)
    worker = scene.wire.channels["unix:worker"]
    worker.is_connecting = True
    looks(scene, 100)
    assert not withdrawals(scene) and not num_queued(scene)
    worker.is_connecting = False
    looks(scene, 12)
    assert len(withdrawals(scene)) == 1
    answer(scene, first)


def test_a_long_task_that_has_begun_is_asked_about_once_and_gets_nothing_behind_it() -> None:
    scene = a_scene()
    (first,) = a_worker_with(scene, 1)
    looks(scene, 11)
    withdrawals(scene)[0].answer(raylet_pb2.WithdrawTasksReply())
    second = scene.submit()
    assert pushed(scene) == ids_of(first)
    scene.pass_time(100 * LOOK_S)
    assert len(withdrawals(scene)) == 1 and not scene.reactor.timers
    answer(scene, first)
    assert pushed(scene) == ids_of(first, second)
    # It is looked at again.
    looks(scene, 11)
    assert len(withdrawals(scene)) == 2


def test_a_raylet_that_does_not_answer_changes_nothing() -> None:
    scene = a_scene()
    (ref,) = a_worker_with(scene, 1)
    looks(scene, 11)
    withdrawals(scene)[0].fail(RpcError(StatusCode.UNAVAILABLE, "gone"))
    assert not num_queued(scene)
    answer(scene, ref)
    assert scene.state_of(ref) == 1


def test_what_the_raylet_took_back_from_a_lease_that_is_over_changes_nothing() -> None:
    scene = a_scene()
    (ref,) = a_worker_with(scene, 1)
    looks(scene, 11)
    answer(scene, ref)
    scene.pass_time(1)
    assert not lease_states(scene)
    withdraw(scene, begun=0)
    assert not num_queued(scene) and len(scene.wire.all("ReturnWorker")) == 1


def test_where_all_was_answered_meanwhile_a_lease_that_was_closed_goes_back_at_once() -> None:
    scene = a_scene(linger_s=0.9)
    (ref,) = a_worker_with(scene, 1)
    looks(scene, 11)
    answer(scene, ref)
    withdraw(scene, begun=1)
    assert len(scene.wire.all("ReturnWorker")) == 1 and not lease_states(scene)


def test_a_task_that_is_cancelled_while_it_is_taken_back_does_not_run() -> None:
    scene = a_scene()
    first, second = a_worker_with(scene, 2)
    looks(scene, 4)
    scene.core.cancel(second, False, False)
    withdraw(scene, begun=1)
    assert isinstance(scene.state_of(second), TaskCancelledError) and not num_queued(scene)
    assert pushed(scene) == ids_of(first, second)


@pytest.mark.parametrize("thaws", [True, False])
def test_a_lease_of_which_all_was_taken_back_is_looked_at_no_more(thaws: bool) -> None:
    scene = a_scene()
    first, second = a_worker_with(scene, 2)
    copies = [push_of(scene, ref) for ref in (first, second)]
    looks(scene, 4)
    withdraw(scene, begun=1)
    told = len(scene.wire.all("GiveBackTasks"))
    scene.pass_time(1)
    # What came back waits, so it is looked whether others began before it; at nothing else.
    assert len(scene.reactor.timers) == 1 and len(scene.wire.all("GiveBackTasks")) == told
    if thaws:
        for copy in copies:
            copy.answer(NOT_STARTED)
        assert len(scene.wire.all("ReturnWorker")) == 1
        assert num_queued(scene) == 2
    else:
        for copy in copies:
            if not copy.is_answered:
                copy.fail(LOST)
        assert not scene.wire.all("ReturnWorker") and len(scene.wire.all("LostWorker")) == 1


def test_a_very_short_task_does_not_wait_for_long_ones_of_its_function() -> None:
    """They may wait for it. Each was seen to be long with nothing behind it, and nobody looks any more."""
    scene = two_idle_workers(10, wake_us=30.0)
    refs = [scene.submit() for _ in range(2 * 4)]
    for ref in refs[:3] + refs[4:7]:
        answer(scene, ref, value(1, run_us=10))
    scene.pass_time(0.1)
    assert all("runs a long task" in state for state in lease_states(scene))
    scene.submit()
    assert len(asked(scene)) == 1
