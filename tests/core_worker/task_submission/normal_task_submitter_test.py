"""Normal tasks and leases: what is asked of raylets, what is pushed and pushed ahead, and what becomes of it when workers do not do it."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import (
    GetTimeoutError,
    LocalRayletDiedError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import (
    ELSEWHERE,
    NODE_ID,
    Reply,
    Said,
    Scene,
    address_of,
    grant,
    rejection,
    value,
)
from tests.core_worker.task_submission.tasks import (
    NOT_STARTED,
    a_worker_with,
    answer,
    id_of,
    ids_of,
    in_store,
    lease_states,
    lose,
    num_queued,
    push_of,
    pushed,
    short_tasks,
)

SECOND = address_of(b"second")
Rejection = raylet_pb2.Rejection


def asked(scene: Scene) -> list[Said]:
    """Lease requests without an answer."""
    return scene.wire.open("RequestWorkerLease")


# ---- what is asked


def test_a_request_says_what_the_task_needs_and_who_asks() -> None:
    scene = Scene()
    scene.submit(name="f", resources=ResourceSet.from_units({"CPU": 2}), runtime_env="{}")
    (request,) = [said.request for said in asked(scene)]
    assert asked(scene)[0].to == "raylet" and not request.grant_or_reject and not request.backlog
    assert ResourceSet.from_proto(request.resources) == ResourceSet.from_units({"CPU": 2})
    assert (request.task_name, request.runtime_env, request.job_id) == ("f", "{}", b"job1")
    assert request.requester == scene.address and not request.outlives_job


def test_each_waiting_task_asks_for_a_lease_up_to_the_limit() -> None:
    scene = Scene(lease_requests_max=2)
    for number in range(1, 5):
        scene.submit()
        assert len(asked(scene)) == min(number, 2)
    assert len({said.request.lease_id for said in asked(scene)}) == 2


def test_a_request_says_how_many_tasks_wait_beyond_those_that_ask_too() -> None:
    scene = Scene(lease_requests_max=2)
    for name in ("first", "second", "third", "fourth"):
        scene.submit(name=name)
    asked(scene)[0].answer(rejection(Rejection.CANCELLED))
    assert asked(scene)[-1].request.backlog == 2 and asked(scene)[-1].request.task_name == "first"


GPU = ResourceSet.from_units({"GPU": 1})


@pytest.mark.parametrize(
    "other",
    [{"resources": GPU}, {"runtime_env": '{"env_vars": {}}'}, {"max_calls": 1}],
    ids=["shape", "environment", "workers that end"],
)
def test_tasks_that_may_not_share_a_worker_have_queues_of_their_own(other: dict[str, Any]) -> None:
    scene = Scene()
    first = scene.submit()
    scene.grant()
    answer(scene, first)
    like = scene.submit(name="g", max_retries=7)
    assert pushed(scene) == ids_of(first, like) and not asked(scene)
    answer(scene, like)
    scene.submit(**other)
    assert len(pushed(scene)) == 2
    keys = [said.request.scheduling_key for said in scene.wire.all("RequestWorkerLease")]
    assert len(keys) == 2 and keys[0] != keys[1]


def test_tasks_of_different_strategies_do_not_share_a_worker() -> None:
    scene = Scene()
    first = scene.submit()
    scene.grant()
    answer(scene, first)
    affinity = common_pb2.SchedulingStrategy(node_affinity=common_pb2.NodeAffinity(node_id=ELSEWHERE))
    scene.submit(strategy=affinity)
    assert len(pushed(scene)) == 1 and asked(scene)[0].request.strategy == affinity


def test_another_nodes_raylet_that_the_own_one_names_grants_or_rejects() -> None:
    scene = Scene()
    ref = scene.submit()
    spillback = raylet_pb2.Spillback(host="far", port=7)
    asked(scene)[0].answer(raylet_pb2.RequestWorkerLeaseReply(spillback=spillback))
    (again,) = asked(scene)
    assert again.to == "far:7" and again.request.grant_or_reject
    assert again.request.lease_id != scene.wire.all("RequestWorkerLease")[0].request.lease_id
    again.answer(grant(scene.worker))
    answer(scene, ref)
    scene.pass_time(1)
    # Its lease is that raylet's, and so is what is said of it.
    assert scene.wire.last("ReturnWorker").to == "far:7" and len(scene.wire.all("WatchReclaims")) == 2


def test_where_it_fits_nowhere_else_the_other_node_lets_it_wait() -> None:
    scene = Scene()
    scene.submit()
    spillback = raylet_pb2.Spillback(host="far", port=7, may_wait=True)
    asked(scene)[0].answer(raylet_pb2.RequestWorkerLeaseReply(spillback=spillback))
    assert asked(scene)[0].to == "far:7" and not asked(scene)[0].request.grant_or_reject


def test_nothing_is_asked_elsewhere_for_nobody() -> None:
    scene = Scene()
    ref = scene.submit()
    scene.core.cancel(ref, False, False)
    spillback = raylet_pb2.Spillback(host="far", port=7)
    asked(scene)[0].answer(raylet_pb2.RequestWorkerLeaseReply(spillback=spillback))
    assert not asked(scene)


def test_a_rejection_elsewhere_has_the_own_raylet_asked_again_a_little_later_and_once() -> None:
    scene = Scene(rejected_retry_s=0.05)
    scene.submit()
    scene.submit()
    for said in asked(scene):
        said.answer(rejection(Rejection.NOT_HERE))
    scene.pass_time(0.04)
    assert not asked(scene)
    scene.pass_time(0.02)
    assert [said.to for said in asked(scene)] == ["raylet", "raylet"]
    asked(scene)[0].answer(rejection(Rejection.NOT_HERE))
    scene.pass_time(0.06)
    assert len(asked(scene)) == 2


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Rejection.RUNTIME_ENV_FAILED, RuntimeEnvSetupError),
        (Rejection.INFEASIBLE, TaskUnschedulableError),
        (Rejection.JOB_FINISHED, TaskUnschedulableError),
    ],
)
def test_a_rejection_for_good_fails_every_task_of_the_queue_and_no_other(kind: Any, error: type) -> None:
    scene = Scene()
    refs = [scene.submit(), scene.submit()]
    other = scene.submit(resources=GPU)
    asked(scene)[0].answer(rejection(kind, "for this reason"))
    for ref in refs:
        found = scene.state_of(ref)
        assert isinstance(found, error) and "for this reason" in str(found)
    assert isinstance(scene.state_of(other), GetTimeoutError) and num_queued(scene) == 1


def test_a_request_that_was_cancelled_is_made_again_for_what_was_submitted_meanwhile() -> None:
    scene = Scene()
    first = scene.submit()
    (request,) = asked(scene)
    scene.core.cancel(first, False, False)
    request.answer(rejection(Rejection.CANCELLED))
    assert not asked(scene)
    scene.submit()
    (request,) = asked(scene)
    request.answer(rejection(Rejection.CANCELLED))
    assert len(asked(scene)) == 1


@pytest.mark.parametrize(("leaves", "told"), [(False, LocalRayletDiedError), (True, GetTimeoutError)])
def test_a_raylet_that_answers_nothing_has_died_unless_this_process_leaves(leaves: bool, told: type) -> None:
    scene = Scene()
    ref = scene.submit()
    if leaves:
        scene.context.leave_cluster()
    asked(scene)[0].fail()
    assert isinstance(scene.state_of(ref), told)


def test_a_raylet_whose_queue_is_full_is_asked_again_later() -> None:
    scene = Scene()
    scene.submit()
    asked(scene)[0].fail(RpcError(StatusCode.RESOURCE_EXHAUSTED, "too many wait"))
    assert not asked(scene)
    scene.pass_time(0.06)
    assert len(asked(scene)) == 1


def test_of_another_node_that_died_the_tasks_go_elsewhere() -> None:
    scene = Scene()
    ref = scene.submit()
    spillback = raylet_pb2.Spillback(host="far", port=7)
    asked(scene)[0].answer(raylet_pb2.RequestWorkerLeaseReply(spillback=spillback))
    asked(scene)[0].fail()
    scene.pass_time(0.06)
    assert asked(scene)[0].to == "raylet"
    scene.grant()
    answer(scene, ref)
    assert scene.state_of(ref) == 1


def test_lease_requests_that_nobody_waits_for_are_cancelled() -> None:
    scene = Scene()
    refs = [scene.submit() for _ in range(3)]
    lease_ids = [said.request.lease_id for said in asked(scene)]
    assert len(lease_ids) == 3
    scene.grant()
    for ref in refs:
        assert not scene.wire.all("CancelWorkerLease")
        answer(scene, ref)
    cancelled = scene.wire.all("CancelWorkerLease")
    assert [said.request.lease_id for said in cancelled] == lease_ids[1:]
    assert {said.to for said in cancelled} == {"raylet"}


def test_requests_are_cancelled_when_the_last_task_that_waits_is() -> None:
    scene = Scene()
    refs = [scene.submit(), scene.submit()]
    for ref in refs:
        assert not scene.wire.all("CancelWorkerLease")
        scene.core.cancel(ref, False, False)
    cancelled = [said.request.lease_id for said in scene.wire.all("CancelWorkerLease")]
    assert cancelled == [said.request.lease_id for said in asked(scene)]


# ---- an idle lease


def test_an_idle_lease_runs_the_next_task_without_asking() -> None:
    scene = Scene()
    first = scene.submit()
    scene.grant()
    answer(scene, first)
    scene.pass_time(0.003)
    second = scene.submit()
    assert pushed(scene) == ids_of(first, second)
    assert len(scene.wire.all("RequestWorkerLease")) == 1


def test_an_idle_lease_goes_back_after_its_linger() -> None:
    scene = Scene(linger_s=0.005)
    ref = scene.submit()
    asked_for = scene.grant()
    answer(scene, ref)
    scene.pass_time(0.004)
    assert not scene.wire.all("ReturnWorker")
    scene.pass_time(0.002)
    (returned,) = scene.wire.all("ReturnWorker")
    assert returned.request.lease_id == asked_for.request.lease_id and not returned.request.leaving
    assert not lease_states(scene)
    scene.submit()
    assert len(pushed(scene)) == 1 and len(asked(scene)) == 1


def test_a_lease_that_was_used_lingers_anew_and_goes_back_once() -> None:
    scene = Scene(linger_s=0.005)
    first = scene.submit()
    scene.grant()
    answer(scene, first)
    scene.pass_time(0.004)
    answer(scene, scene.submit())
    scene.pass_time(0.004)
    assert not scene.wire.all("ReturnWorker")
    scene.pass_time(0.004)
    assert len(scene.wire.all("ReturnWorker")) == 1
    scene.pass_time(1)
    assert len(scene.wire.all("ReturnWorker")) == 1


def test_a_lease_that_runs_a_task_does_not_go_back() -> None:
    scene = Scene(linger_s=0.005)
    first = scene.submit()
    scene.grant()
    answer(scene, first)
    second = scene.submit()
    scene.pass_time(0.1)
    assert not scene.wire.all("ReturnWorker")
    answer(scene, second)
    scene.pass_time(0.006)
    assert len(scene.wire.all("ReturnWorker")) == 1


def test_a_lease_that_comes_when_nothing_waits_any_more_lingers_and_goes_back() -> None:
    scene = Scene()
    ref = scene.submit()
    scene.core.cancel(ref, False, False)
    scene.grant()
    assert not pushed(scene)
    scene.pass_time(0.1)
    assert len(scene.wire.all("ReturnWorker")) == 1


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
    lose(scene)
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
    # Each answer makes room for one.
    answer(scene, refs[0], value(1, run_us=run_us))
    assert pushed(scene) == ids_of(*refs[: ahead + 1])


def test_one_long_task_among_short_ones_changes_little() -> None:
    scene = Scene(ahead_us=2000.0, task_overhead_us=0.0)
    short_tasks(scene, 100)
    refs = [scene.submit() for _ in range(30)]
    scene.grant()
    assert len(pushed(scene)) == 20
    answer(scene, refs[0], value(1, run_us=600))  # 0.8 * 100 + 0.2 * 600 = 200
    for ref in refs[1:11]:
        assert len(pushed(scene)) == 20
        answer(scene, ref, value(1, run_us=200))
    assert len(pushed(scene)) == 21


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


def test_what_was_pushed_behind_a_worker_that_ends_by_itself_runs_elsewhere_at_no_cost() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 2, max_retries=0)
    answer(scene, first, value(1, worker_exiting=True))
    lose(scene)
    assert not scene.wire.all("LostWorker") and len(scene.wire.all("ReturnWorker")) == 1
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
    asked(scene)[0].answer(rejection(Rejection.CANCELLED))
    assert not asked(scene)
    if why == "given back":
        answer(scene, second, NOT_STARTED)
    elif why == "its worker died":
        lose(scene)
    else:
        scene.pass_time(0.05)
        scene.wire.last("WithdrawTasks").answer(raylet_pb2.WithdrawTasksReply(is_closed=True, begun=1))
        assert len(asked(scene)) == 1
        asked(scene)[0].answer(rejection(Rejection.NOT_HERE))
        lose(scene)
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
    (told,) = scene.wire.all("LostWorker")
    told.answer(common_pb2.DeathCause(message="signal 9"))
    assert isinstance(scene.state_of(first), WorkerCrashedError)
    assert not scene.wire.all("ReturnWorker")
    scene.grant(SECOND)
    assert pushed(scene, "unix:second") == ids_of(*others)


def test_a_task_whose_worker_died_runs_again_on_another_one_where_its_retries_last() -> None:
    scene = Scene()
    ref = scene.submit(max_retries=1)
    scene.grant()
    lose(scene)
    (request,) = asked(scene)
    scene.grant(SECOND)
    assert push_of(scene, ref).request.attempt == 1
    lose(scene, "unix:second")
    scene.wire.last("LostWorker").answer(common_pb2.DeathCause())
    assert isinstance(scene.state_of(ref), WorkerCrashedError) and len(pushed(scene)) == 2


def test_a_lease_that_rests_when_its_worker_dies_is_noticed_by_the_next_task_only() -> None:
    scene = Scene()
    first = scene.submit()
    scene.grant()
    answer(scene, first)
    lose(scene)
    assert not scene.wire.all("LostWorker")
    second = scene.submit(max_retries=1)
    assert len(scene.wire.all("LostWorker")) == 1
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


# ---- others wait


def reclaim(scene: Scene, *lease_ids: bytes) -> None:
    scene.wire.all("WatchReclaims")[0].part(raylet_pb2.ReclaimedLeases(lease_ids=lease_ids))


def lease_id(scene: Scene) -> bytes:
    """Of the first one that was asked for since the tasks are short."""
    return scene.wire.all("RequestWorkerLease")[0].request.lease_id  # type: ignore[no-any-return]


def test_a_lease_that_others_wait_for_ends_with_what_was_pushed() -> None:
    scene = Scene()
    first, second = a_worker_with(scene, 2)
    reclaim(scene, b"another's", lease_id(scene))
    assert [said.to for said in scene.wire.all("GiveBackTasks")] == ["unix:worker"]
    third = scene.submit()
    answer(scene, second, NOT_STARTED)
    assert not scene.wire.all("ReturnWorker")
    answer(scene, first)
    assert scene.state_of(first) == 1
    assert len(scene.wire.all("ReturnWorker")) == 1 and not lease_states(scene)
    # And is asked for again, for what is left.
    assert num_queued(scene) == 2
    scene.grant(SECOND)
    assert pushed(scene, "unix:second") == ids_of(second, third)


def test_a_lease_that_others_wait_for_and_that_runs_one_task_is_not_asked_to_give_back() -> None:
    scene = Scene()
    (ref,) = a_worker_with(scene, 1)
    reclaim(scene, lease_id(scene))
    reclaim(scene, lease_id(scene))
    assert not scene.wire.all("GiveBackTasks") and not scene.wire.all("ReturnWorker")
    assert "goes back" in lease_states(scene)[0]
    answer(scene, ref)
    assert len(scene.wire.all("ReturnWorker")) == 1


def test_what_a_lease_that_ends_gives_back_is_asked_for_at_once() -> None:
    scene = Scene()
    _, second = a_worker_with(scene, 2)
    asked(scene)[0].answer(rejection(Rejection.CANCELLED))
    reclaim(scene, lease_id(scene))
    assert not asked(scene)
    answer(scene, second, NOT_STARTED)
    assert len(asked(scene)) == 1


def test_an_idle_lease_that_others_wait_for_ends_at_once() -> None:
    scene = Scene()
    (ref,) = a_worker_with(scene, 1)
    answer(scene, ref)
    reclaim(scene, lease_id(scene))
    assert len(scene.wire.all("ReturnWorker")) == 1
    scene.pass_time(1)
    assert len(scene.wire.all("ReturnWorker")) == 1
    scene.submit()
    assert pushed(scene) == ids_of(ref) and len(asked(scene)) == 1


def test_a_raylet_is_watched_once_and_again_after_it_was_lost() -> None:
    scene = Scene()
    scene.submit()
    scene.submit()
    (watch,) = scene.wire.all("WatchReclaims")
    watch.fail()
    scene.submit()
    assert len(scene.wire.all("WatchReclaims")) == 2


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
    first, second = a_worker_with(scene, 2)
    for ref in (first, second):
        scene.core.cancel(ref, True, False)
    scene.pass_time(0.9)
    assert len(scene.wire.all("CancelTask")) == 2 and not scene.wire.all("KillWorker")
    scene.pass_time(0.2)
    # Once, for the one that runs.
    (killed,) = scene.wire.all("KillWorker")
    assert killed.to == "raylet" and killed.request.worker_id == scene.worker.worker_id
    assert killed.request.force and "force=True" in killed.request.cause.message


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
