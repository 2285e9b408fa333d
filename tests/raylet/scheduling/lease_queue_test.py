"""The queue: order and turns, under any sequence of additions and removals."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.scheduling.lease_queue import TURN_EVERY, LeaseQueue
from ray_mono.raylet.scheduling.leases import LeaseRequest, WorkerLease

JOB = b"aaaa"


def lease(
    number: int, cpus: int = 1, requester: int = 1, job: bytes = JOB, key: int = 0, depth: int = 0
) -> WorkerLease:
    resources = ResourceSet.from_units({"CPU": cpus})
    request = LeaseRequest(
        number.to_bytes(4, "big"),
        requester,
        b"",
        job,
        resources,
        ResourceSet(),
        scheduling_key=key,
        depth=depth,
    )
    return WorkerLease(request, request.shape, 0.0, number)


def next_of(queue: LeaseQueue) -> WorkerLease:
    """Takes the one whose turn it is."""
    job = queue.jobs()[0]
    return queue.pop(job, queue.shapes_of(job)[0])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.integers(1, 3),
            st.sampled_from([b"aaaa", b"bbbb"]),
            st.booleans(),
            st.integers(0, 2),
        ),
        max_size=60,
    )
)
def test_each_line_is_served_in_its_own_order_and_no_job_waits_while_another_has_two_turns(
    steps: list[tuple[int, int, bytes, bool, int]],
) -> None:
    queue = LeaseQueue()
    waiting: list[WorkerLease] = []
    last_job = b""
    for number, (cpus, requester, job, is_pop, depth) in enumerate(steps):
        if is_pop and waiting:
            popped = next_of(queue)
            line = [
                other
                for other in waiting
                if (other.request.job_id, other.shape, other.request.line, other.request.depth)
                == (popped.request.job_id, popped.shape, popped.request.line, popped.request.depth)
            ]
            assert popped is line[0]
            assert popped.request.job_id != last_job or {w.request.job_id for w in waiting} == {last_job}
            last_job = popped.request.job_id
            waiting.remove(popped)
        else:
            added = lease(number, cpus, requester, job, depth=depth)
            queue.add(added)
            waiting.append(added)
        queue.check_invariants()
        assert sorted(other.number for other in queue) == [other.number for other in waiting]
    for each in waiting:
        queue.remove(each)
    assert len(queue) == 0 and queue.shapes() == [] and queue.jobs() == []


def test_a_requester_with_many_leases_does_not_starve_one_with_few() -> None:
    queue = LeaseQueue()
    for number in range(100):
        queue.add(lease(number, requester=1))
    queue.add(lease(100, requester=2))
    assert [next_of(queue).number for _ in range(3)] == [0, 100, 1]
    assert queue.count(lease(0).shape) == 98


def test_a_job_that_asks_for_one_at_a_time_is_next_each_time_beside_one_that_floods() -> None:
    queue = LeaseQueue()
    for number in range(10):
        queue.add(lease(number, cpus=1 + number % 2))
    order = []
    assert next_of(queue).number == 0
    for number in range(100, 103):
        queue.add(lease(number, job=b"bbbb"))
        order += [next_of(queue).number, next_of(queue).number]
    assert order == [100, 1, 101, 2, 102, 3]


def test_what_one_requester_asks_for_by_two_keys_takes_turns() -> None:
    queue = LeaseQueue()
    for number in range(5):
        queue.add(lease(number, key=1))
    queue.add(lease(5, key=2))
    assert [next_of(queue).number for _ in range(3)] == [0, 5, 1]


def test_what_is_nested_deepest_is_next() -> None:
    queue = LeaseQueue()
    for number, depth in enumerate([1, 3, 2, 3, 1]):
        queue.add(lease(number, requester=number, depth=depth))
    assert [next_of(queue).number for _ in range(5)] == [1, 3, 2, 0, 4]


def test_no_depth_starves_another() -> None:
    queue = LeaseQueue()
    for number, depth in enumerate([1, 2]):
        queue.add(lease(number, requester=number, depth=depth))
    served: list[int] = []
    for number in range(2, 3 * TURN_EVERY):
        queue.add(lease(number, requester=number, depth=3))
        served.append(next_of(queue).number)
    assert [served.index(number) for number in (0, 1)] == [TURN_EVERY - 1, 2 * TURN_EVERY - 1]
    queue.check_invariants()


def test_the_next_is_the_same_however_often_one_looks() -> None:
    queue = LeaseQueue()
    for number in range(2 * TURN_EVERY):
        queue.add(lease(number, requester=number, depth=number % 3))
    while queue:
        seen = [queue.peek(JOB, lease(0).shape) for _ in range(2)]
        assert seen == 2 * [next_of(queue)]
