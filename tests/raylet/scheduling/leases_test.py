"""The life of a lease: what may follow what, and what is told of it."""

from __future__ import annotations

import pytest

from ray_mono.common.our_bug import InternalError
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.raylet.scheduling.leases import (
    TRANSITIONS,
    LeaseRequest,
    Shape,
    WorkerLease,
    WorkerLeaseEvent,
    WorkerLeaseState,
)


def lease(requester: int = 1) -> WorkerLease:
    cpu = ResourceSet.from_units({"CPU": 1})
    request = LeaseRequest(b"l", requester, b"n", b"job", cpu, ResourceSet(), task_name="f")
    return WorkerLease(request, request.shape, queued_at_s=1.0, number=1)


def test_a_lease_is_reserved_before_it_is_granted() -> None:
    early = lease()
    with pytest.raises(InternalError, match="is queued and cannot be 'got its worker'; so far: nothing"):
        early.grant(b"worker", 2.0)
    assert (early.state, early.worker_id, early.has_worker) == (WorkerLeaseState.QUEUED, None, False)
    early.reserve(1.0)
    early.grant(b"worker", 2.0)
    assert (early.worker_id, early.granted_at_s, early.has_worker) == (b"worker", 2.0, True)


def test_a_closed_lease_has_its_worker_until_it_ends_and_what_ended_stays_so() -> None:
    closed = lease()
    closed.reserve(1.0)
    closed.grant(b"worker", 2.0)
    closed.close()
    assert closed.has_worker
    closed.end()
    assert not closed.has_worker
    with pytest.raises(InternalError, match="so far: got its resources, got its worker, closed, ended"):
        closed.end()


def test_every_lease_can_end_and_only_once() -> None:
    for state in WorkerLeaseState:
        assert ((state, WorkerLeaseEvent.ENDED) in TRANSITIONS) == (state is not WorkerLeaseState.ENDED)
    assert all(state is not WorkerLeaseState.ENDED for state, _ in TRANSITIONS)


def test_who_asks_again_has_not_been_asked_for_the_lease_yet() -> None:
    asked = lease(requester=1)
    asked.ask_to_end(3.0)
    asked.requested_by(2)
    assert (asked.request.requester, asked.line, asked.asked_at_s) == (2, (2, 0), None)


def test_a_lease_is_told_with_its_state_and_reason() -> None:
    told = lease().describe("needs {CPU: 1}", now_s=3.5)
    assert (told["state"], told["waited_s"], told["why"]) == ("queued", 2.5, "needs {CPU: 1}")
    assert told["needs"] == {"CPU": 1.0} and told["worker_id"] == ""


def test_leases_that_are_alike_have_one_shape_and_others_have_others() -> None:
    cpu, gpu, nothing = (ResourceSet.from_units(units) for units in ({"CPU": 1}, {"GPU": 1}, {}))
    spread = Strategy(StrategyKind.SPREAD)

    def shape(resources: ResourceSet, placement: ResourceSet, strategy: Strategy) -> Shape:
        return LeaseRequest(b"l", 1, b"n", b"job", resources, placement, strategy).shape

    task = shape(cpu, nothing, Strategy())
    assert shape(ResourceSet.from_units({"CPU": 1}), ResourceSet(), Strategy()) is task
    assert shape(cpu, cpu, Strategy()) is task
    different = [
        task,
        shape(cpu, nothing, spread),
        shape(gpu, nothing, Strategy()),
        shape(nothing, cpu, Strategy()),
        shape(nothing, nothing, Strategy()),
        shape(cpu, gpu, Strategy()),
    ]
    assert len(set(different)) == len(different)
    assert [different[3].required, different[3].resources] == [cpu, nothing]
    assert different[5].required == cpu + gpu
