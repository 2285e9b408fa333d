"""Leases: what is asked of raylets, how long a worker is kept, and how it goes back."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import (
    GetTimeoutError,
    LocalRayletDiedError,
    RuntimeEnvSetupError,
    TaskUnschedulableError,
)
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import (
    ELSEWHERE,
    Scene,
    grant,
    rejection,
)
from tests.core_worker.task_submission.tasks import (
    GPU,
    NOT_STARTED,
    SECOND,
    a_worker_with,
    answer,
    asked,
    ids_of,
    lease_states,
    num_queued,
    pushed,
)

# ---- what is asked


def test_a_lease_is_asked_for_in_the_name_of_the_first_task_that_waits() -> None:
    """Whoever reads why nothing starts knows it by the name that its options gave it."""
    scene = Scene()
    for name in ("first", "second"):
        ref = scene.submit(name=name)
        (said,) = asked(scene)
        assert said.request.task_name == name
        scene.grant()
        answer(scene, ref)
        scene.pass_time(1)


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
    asked(scene)[0].answer(rejection(raylet_pb2.Rejection.CANCELLED))
    assert asked(scene)[-1].request.backlog == 2 and asked(scene)[-1].request.task_name == "first"


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
    told = scene.wire.last("ReturnedElsewhere")
    assert told.to == "raylet" and told.request.node_id == scene.worker.node_id
    assert ResourceSet.from_proto(told.request.resources) == ResourceSet.from_units({"CPU": 1})


def test_where_it_fits_nowhere_else_the_other_node_lets_it_wait() -> None:
    scene = Scene()
    scene.submit()
    spillback = raylet_pb2.Spillback(host="far", port=7, may_wait=True, waited_s=1.5)
    asked(scene)[0].answer(raylet_pb2.RequestWorkerLeaseReply(spillback=spillback))
    assert asked(scene)[0].to == "far:7" and not asked(scene)[0].request.grant_or_reject
    assert asked(scene)[0].request.waited_s == 1.5


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
        said.answer(rejection(raylet_pb2.Rejection.NOT_HERE))
    scene.pass_time(0.04)
    assert not asked(scene)
    scene.pass_time(0.02)
    assert [said.to for said in asked(scene)] == ["raylet", "raylet"]
    asked(scene)[0].answer(rejection(raylet_pb2.Rejection.NOT_HERE))
    scene.pass_time(0.06)
    assert len(asked(scene)) == 2


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (raylet_pb2.Rejection.RUNTIME_ENV_FAILED, RuntimeEnvSetupError),
        (raylet_pb2.Rejection.INFEASIBLE, TaskUnschedulableError),
        (raylet_pb2.Rejection.JOB_FINISHED, TaskUnschedulableError),
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
    request.answer(rejection(raylet_pb2.Rejection.CANCELLED))
    assert not asked(scene)
    scene.submit()
    (request,) = asked(scene)
    request.answer(rejection(raylet_pb2.Rejection.CANCELLED))
    assert len(asked(scene)) == 1


@pytest.mark.parametrize(("leaves", "told"), [(False, LocalRayletDiedError), (True, GetTimeoutError)])
def test_a_raylet_that_answers_nothing_has_died_unless_this_process_leaves(leaves: bool, told: type) -> None:
    scene = Scene()
    ref = scene.submit()
    if leaves:
        scene.context.leave_cluster()
    asked(scene)[0].fail()
    scene.reactor.fire(scene.reactor.now_s)
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
        answer(scene, ref)
    assert not scene.wire.all("CancelWorkerLease")
    scene.pass_time(0.01)
    cancelled = scene.wire.all("CancelWorkerLease")
    assert [said.request.lease_id for said in cancelled] == lease_ids[1:]
    assert {said.to for said in cancelled} == {"raylet"}


def test_lease_requests_serve_a_caller_that_calls_again_soon() -> None:
    scene = Scene()
    for _ in range(3):
        refs = [scene.submit() for _ in range(3)]
        if not lease_states(scene):
            scene.grant()
        for ref in refs:
            answer(scene, ref)
        scene.pass_time(0.001)
    assert len(scene.wire.all("RequestWorkerLease")) == 3
    assert not scene.wire.all("CancelWorkerLease")


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
    asked(scene)[0].answer(rejection(raylet_pb2.Rejection.CANCELLED))
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


@pytest.mark.parametrize("num_waiting", [0, 2])
def test_whoever_gives_way_on_another_node_waits_there_for_its_next_turn(num_waiting: int) -> None:
    scene = Scene(lease_requests_max=1)
    first = scene.submit()
    spillback = raylet_pb2.Spillback(host="far", port=7, may_wait=True)
    asked(scene)[0].answer(raylet_pb2.RequestWorkerLeaseReply(spillback=spillback))
    lease_of_far = asked(scene)[0].request.lease_id
    asked(scene)[0].answer(grant(scene.worker, lease_id=lease_of_far))
    for _ in range(num_waiting):
        scene.submit()
    of_own = [said.to for said in asked(scene)]
    scene.wire.all("WatchReclaims")[1].part(raylet_pb2.ReclaimedLeases(lease_ids=[lease_of_far]))
    assert [said.to for said in asked(scene)] == of_own + ["far:7"] * bool(num_waiting)
    assert not any(said.request.grant_or_reject for said in asked(scene))
    answer(scene, first)
    assert scene.wire.last("ReturnWorker").to == "far:7"


def test_a_raylet_is_watched_once_and_again_after_it_was_lost() -> None:
    scene = Scene()
    scene.submit()
    scene.submit()
    (watch,) = scene.wire.all("WatchReclaims")
    watch.fail()
    scene.submit()
    assert len(scene.wire.all("WatchReclaims")) == 2
