"""The queue: order and turns, under any sequence of additions and removals."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mono.common.resources import ResourceSet
from ray_mono.raylet.lease_queue import LeaseQueue
from ray_mono.raylet.leases import Lease, LeaseRequest


def lease(number: int, cpus: int, requester: int) -> Lease:
    resources = ResourceSet.from_units({"CPU": cpus})
    request = LeaseRequest(number.to_bytes(4, "big"), requester, b"", b"", b"aaaa", resources, ResourceSet())
    return Lease(request, request.shape, 0.0, number)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.booleans()), max_size=60))
def test_each_requester_is_served_in_its_own_order_and_nobody_waits_for_more_than_one_round(
    steps: list[tuple[int, int, bool]],
) -> None:
    queue = LeaseQueue()
    waiting: list[Lease] = []
    for number, (cpus, requester, is_pop) in enumerate(steps):
        if is_pop and waiting:
            shape = queue.shapes()[0]
            mates = [other for other in waiting if other.shape == shape]
            popped = queue.pop(shape)
            own = [other for other in mates if other.request.requester == popped.request.requester]
            assert popped is own[0]
            waiting.remove(popped)
            queue.rotate(shape)
        else:
            added = lease(number, cpus, requester)
            queue.add(added)
            waiting.append(added)
        queue.check_invariants()
        assert sorted(other.number for other in queue) == [other.number for other in waiting]
    for each in waiting:
        queue.remove(each)
    assert len(queue) == 0 and queue.shapes() == []


def test_a_requester_with_many_leases_does_not_starve_one_with_few() -> None:
    queue = LeaseQueue()
    for number in range(100):
        queue.add(lease(number, 1, requester=1))
    queue.add(lease(100, 1, requester=2))
    shape = queue.shapes()[0]
    assert [queue.pop(shape).number for _ in range(3)] == [0, 100, 1]
    assert queue.count(shape) == 98
