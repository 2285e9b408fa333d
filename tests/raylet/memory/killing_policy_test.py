"""Who is killed where memory runs short."""

from __future__ import annotations

import random

import pytest

from ray_mono.raylet.memory.killing_policy import RunningWorker, choose

ALICE, BOB = b"alice", b"bob"


def worker(
    name: str,
    began_at_s: float,
    owner: bytes = ALICE,
    is_retriable: bool = True,
    is_busy: bool = True,
    leased_at_s: float = 0.0,
) -> RunningWorker:
    return RunningWorker(
        worker_id=name.encode(),
        pid=1,
        job_id=b"job",
        runs=f"task {name}" if is_busy else "",
        is_actor=False,
        owner_id=owner,
        is_retriable=is_retriable,
        began_at_s=began_at_s,
        leased_at_s=leased_at_s,
        used_bytes=1,
    )


def victims(workers: list[RunningWorker]) -> list[tuple[str, bool]]:
    """In which order they are killed, if nothing else happens; and whether each is the last of its group."""
    left, killed = list(workers), []
    while victim := choose(left):
        left.remove(victim.worker)
        killed.append((victim.worker.worker_id.decode(), victim.is_last))
    return killed


def test_where_nothing_runs_nobody_is_killed() -> None:
    assert choose([]) is None
    assert choose([worker("a", 1, is_busy=False), worker("b", 1, is_retriable=False, is_busy=False)]) is None


def test_one_between_two_tasks_counts_and_is_not_killed() -> None:
    workers = [worker("a", 1), worker("rests", 9, is_busy=False), worker("b", 5, BOB), worker("c", 6, BOB)]
    assert victims(workers) == [("c", False), ("a", False), ("b", True)]


def test_the_newest_goes_first_and_the_last_one_is_not_run_again() -> None:
    workers = [worker("old", 1), worker("new", 3), worker("middle", 2)]
    assert victims(workers) == [("new", False), ("middle", False), ("old", True)]


def test_what_may_be_run_again_goes_before_what_may_not() -> None:
    workers = [
        worker("a", 1),
        worker("precious", 9, is_retriable=False),
        worker("gem", 2, is_retriable=False),
        worker("b", 3),
    ]
    assert victims(workers) == [("b", False), ("a", True), ("precious", True), ("gem", True)]


def test_who_runs_most_loses_first_so_that_every_owner_keeps_something() -> None:
    workers = [worker(f"a{number}", number) for number in range(4)]
    workers += [worker("b0", 100, BOB), worker("b1", 101, BOB)]
    killed = victims(workers)
    assert killed[:2] == [("a3", False), ("a2", False)]
    # Of two alike the one that began to run something last.
    assert killed[2] == ("b1", False)
    assert killed[3:] == [("a1", False), ("b0", True), ("a0", True)]


def test_owners_of_what_may_not_be_run_again_do_not_matter() -> None:
    workers = [worker(f"a{number}", number, is_retriable=False) for number in range(3)]
    workers += [worker("b", 9, BOB, is_retriable=False)]
    assert victims(workers) == [("b", True), ("a2", True), ("a1", True), ("a0", True)]


@pytest.mark.parametrize("seed", range(20))
def test_the_order_in_which_workers_are_listed_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    workers = [
        worker(f"w{number}", rng.randrange(3), rng.choice([ALICE, BOB]), rng.random() < 0.7)
        for number in range(8)
    ]
    expected = victims(workers)
    rng.shuffle(workers)
    assert victims(workers) == expected and len(expected) == 8


def test_of_those_that_one_look_found_begun_the_one_goes_whose_worker_was_leased_last() -> None:
    workers = [worker("z", 5.0, leased_at_s=1.0), worker("a", 5.0, leased_at_s=2.0), worker("m", 4.0)]
    assert [name for name, _ in victims(workers)] == ["a", "z", "m"]
