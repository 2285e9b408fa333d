"""A worker tells its raylet while its task waits: once for all threads, and never for threads that earlier
tasks left behind."""

from __future__ import annotations

import pytest

from ray_mono.common.our_bug import InternalError
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.rpc.reactor import Waiter
from tests.core_worker.scene import Scene, WouldHang


class Worker:
    def __init__(self) -> None:
        self.scene = Scene(is_driver=False)
        self.blocked: BlockedNotice = self.scene.parts.blocked

    @property
    def told(self) -> list[str]:
        """ "blocked" and "unblocked", with the lease for which that was said."""
        said = [each for each in self.scene.wire.said if each.method.startswith("Notify")]
        assert all(
            each.to == "raylet" and each.request.worker_id == self.scene.core.worker_id for each in said
        )
        return [f"{each.method[6:].lower()} {each.request.lease_id.decode()}".strip() for each in said]


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_the_first_wait_says_it_and_the_last_takes_it_back(worker: Worker) -> None:
    first, second = worker.blocked.block(), worker.blocked.block()
    assert worker.told == ["blocked"]
    worker.blocked.unblock(first)
    assert worker.told == ["blocked"]
    worker.blocked.unblock(second)
    assert worker.told == ["blocked", "unblocked"]
    worker.blocked.unblock(worker.blocked.block())
    assert worker.told == ["blocked", "unblocked"] * 2


def test_what_is_said_is_said_of_the_present_lease(worker: Worker) -> None:
    worker.blocked.under_lease(b"lease")
    worker.blocked.unblock(worker.blocked.block())
    assert worker.told == ["blocked lease", "unblocked lease"]
    assert worker.blocked.lease_id == worker.scene.core.lease_id == b"lease"


def test_a_task_that_begins_is_not_blocked_by_a_thread_of_an_earlier_one(worker: Worker) -> None:
    left_behind = worker.blocked.block()
    worker.blocked.task_begins()
    assert worker.told == ["blocked", "unblocked"]
    its_own = worker.blocked.block()
    assert worker.told[2:] == ["blocked"]
    worker.blocked.unblock(left_behind)
    assert worker.told[2:] == ["blocked"]
    worker.blocked.unblock(its_own)
    assert worker.told[2:] == ["blocked", "unblocked"]


def test_a_task_that_begins_where_nobody_waits_says_nothing(worker: Worker) -> None:
    worker.blocked.task_begins()
    assert worker.told == []


def test_a_wait_runs_what_was_given_to_run_before_each(worker: Worker) -> None:
    before: list[bool] = []
    worker.blocked.before_each(lambda: before.append(worker.scene.env.lock._is_owned()))
    waiter = Waiter(worker.scene.reactor)
    worker.scene.meanwhile(waiter.set)
    assert worker.blocked.wait(waiter, None)
    assert before == [False] and worker.told == ["blocked", "unblocked"]
    assert worker.blocked.wait(waiter, None)
    assert len(before) == 1 and len(worker.told) == 2


def test_a_wait_whose_time_is_up_says_so(worker: Worker) -> None:
    assert not worker.blocked.wait(Waiter(worker.scene.reactor), 1)
    assert worker.told == ["blocked", "unblocked"]


def test_a_wait_that_fails_is_taken_back(worker: Worker) -> None:
    with pytest.raises(WouldHang):
        worker.blocked.wait(Waiter(worker.scene.reactor), None)
    assert worker.told == ["blocked", "unblocked"]


def test_nobody_waits_under_the_lock(worker: Worker) -> None:
    with worker.scene.env.lock, pytest.raises(InternalError):
        worker.blocked.wait(Waiter(worker.scene.reactor), 1)


def test_owners_are_given_a_moment_where_all_that_is_missing_is_theirs(worker: Worker) -> None:
    scene = worker.scene
    theirs = scene.borrow(b"t" * 28)
    scene.core.wait([theirs], 1, 0, False)
    mine, here = scene.submit(), scene.core.put(1)
    moment_s = scene.config.owners_answer_s
    for refs, begins_s in (([theirs], moment_s), ([here, theirs], moment_s), ([theirs, mine], 0.0)):
        before = len(worker.told)
        start_s = scene.reactor.now_s
        said_s: list[float] = []
        worker.blocked.before_each(
            lambda said_s=said_s: said_s.append(scene.reactor.now_s)  # type: ignore[misc]
        )
        assert not worker.blocked.wait_for([ref.binary() for ref in refs], Waiter(scene.reactor), 1)
        assert worker.told[before:] == ["blocked", "unblocked"]
        assert said_s == [pytest.approx(start_s + begins_s)]
        assert scene.reactor.now_s == pytest.approx(start_s + 1)


def test_a_driver_waits_without_a_moment_and_without_a_word() -> None:
    scene = Scene()
    ref = scene.borrow(b"t" * 28)
    before_s = scene.reactor.now_s
    assert scene.core.wait([ref], 1, 1, False) == ([], [ref])
    assert scene.reactor.now_s == before_s + 1
    assert not scene.wire.all("NotifyBlocked")


def test_who_gives_no_more_than_the_moment_says_nothing(worker: Worker) -> None:
    ref = worker.scene.borrow(b"t" * 28)
    moment_s = worker.scene.config.owners_answer_s
    assert not worker.blocked.wait_for([ref.binary()], Waiter(worker.scene.reactor), moment_s)
    assert worker.told == []
