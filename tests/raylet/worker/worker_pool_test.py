"""The worker pool as a machine: starts, bindings, limits, failures, ends."""

from __future__ import annotations

import itertools

import pytest

from ray_mono.common.our_bug import InternalError
from ray_mono.raylet.effects import Effect, EndMode, EndWorker, StartWorker
from ray_mono.raylet.worker.binding import Binding
from ray_mono.raylet.worker.worker_pool import PoolLimits, WorkerPool
from ray_mono.raylet.worker.worker_states import TRANSITIONS, Worker, WorkerEvent, WorkerState

JOB_A, JOB_B = Binding(b"aaaa", ""), Binding(b"bbbb", "")


def pool_of(
    startup_concurrency: int = 4, prestart: int = 0, soft_limit: int = 2, idle_timeout_s: float = 5
) -> WorkerPool:
    numbers = itertools.count(1)
    limits = PoolLimits(startup_concurrency, prestart, soft_limit, idle_timeout_s, register_timeout_s=60)
    return WorkerPool(limits, lambda: next(numbers).to_bytes(28, "big"))


def started(effects: list[Effect]) -> list[StartWorker]:
    return [effect for effect in effects if isinstance(effect, StartWorker)]


def ended(effects: list[Effect]) -> list[tuple[bytes, EndMode]]:
    return [(effect.worker_id, effect.mode) for effect in effects if isinstance(effect, EndWorker)]


def idle_workers(pool: WorkerPool, number: int, now_s: float = 0) -> list[bytes]:
    """Starts and registers so many."""
    starts = started(pool.replenish(number, now_s))
    assert len(starts) == number
    for start in starts:
        assert pool.registered(start.startup_token, start.worker_id, 100 + start.startup_token, now_s) == ""
    pool.check_invariants()
    return [start.worker_id for start in starts]


def test_one_start_per_waiting_lease_and_no_more_than_the_limit_at_once() -> None:
    pool = pool_of(startup_concurrency=3)
    first = started(pool.replenish(2, 0))
    assert len(first) == 2
    assert pool.replenish(2, 0) == []
    assert len(started(pool.replenish(10, 0))) == 1
    pool.registered(first[0].startup_token, first[0].worker_id, 7, 0)
    assert len(started(pool.replenish(10, 0))) == 1
    pool.check_invariants()


def test_prestarted_workers_are_kept_beside_actors() -> None:
    pool = pool_of(prestart=2)
    starts = started(pool.replenish(0, 0))
    assert len(starts) == 2
    for start in starts:
        pool.registered(start.startup_token, start.worker_id, 7, 0)
    assert pool.replenish(0, 0) == []
    pool.take(JOB_A, b"lease 1", False, 0)
    assert pool.replenish(0, 0) == []
    pool.take(JOB_A, b"lease 2", True, 0)
    assert len(started(pool.replenish(0, 0))) == 1


def test_a_worker_that_served_one_job_is_not_given_to_another() -> None:
    pool = pool_of()
    [worker_id] = idle_workers(pool, 1)
    worker = pool.take(JOB_A, b"lease", False, 0)
    pool.give_back(worker, 1)
    assert not pool.can_serve(JOB_B)
    assert not pool.can_serve(Binding(b"aaaa", '{"env_vars": {"X": "1"}}'))
    assert pool.take(JOB_A, b"next", False, 2).worker_id == worker_id


def test_the_worker_that_was_used_last_is_taken_first() -> None:
    pool = pool_of()
    idle_workers(pool, 3)
    workers = [pool.take(JOB_A, bytes([number]), False, 0) for number in range(2)]
    for worker in workers:
        pool.give_back(worker, 1)
    assert pool.take(JOB_A, b"next", False, 2) is workers[1]
    assert pool.take(JOB_A, b"and next", False, 2) is workers[0]
    assert pool.take(JOB_A, b"the unbound one", False, 2) not in workers


def test_an_actor_gets_a_worker_that_was_never_used_since_it_ends_with_the_actor() -> None:
    pool = pool_of()
    idle_workers(pool, 1)
    used = pool.take(JOB_A, b"task", False, 0)
    pool.give_back(used, 1)
    assert pool.can_serve(JOB_A) and not pool.can_serve(JOB_A, True)
    with pytest.raises(InternalError, match="no idle worker"):
        pool.take(JOB_A, b"actor", True, 2)
    idle_workers(pool, 1)
    assert pool.take(JOB_A, b"actor", True, 2) is not used
    assert pool.take(JOB_A, b"task", False, 2) is used


def test_a_start_that_does_not_register_in_time_is_killed_and_made_again_after_a_pause() -> None:
    pool = pool_of()
    [start] = started(pool.replenish(1, 0))
    assert pool.tick(59) == []
    assert ended(pool.tick(60)) == [(start.worker_id, EndMode.KILL)]
    assert "did not register within 60 s" in pool.start_trouble
    assert "cannot be used" not in pool.registered(start.startup_token, start.worker_id, 7, 60)
    assert "is ending here" in pool.registered(start.startup_token, start.worker_id, 7, 60)
    assert pool.replenish(1, 60) == []
    assert len(started(pool.replenish(1, 60.2))) == 1
    pool.check_invariants()


def test_starts_that_keep_failing_are_spaced_out_and_tried_one_at_a_time() -> None:
    pool = pool_of()
    now_s, gaps = 0.0, []
    for _ in range(8):
        began_s = now_s
        while not (starts := started(pool.replenish(5, now_s))):
            now_s += 0.1
        gaps.append(now_s - began_s)
        for start in starts:
            pool.died(start.worker_id, "exit code 1", now_s)
    assert gaps[0] == 0
    assert gaps[1] < gaps[3] < gaps[6] <= 5.2
    assert len(starts) == 1
    [start] = started(pool.replenish(5, now_s + 6))
    pool.registered(start.startup_token, start.worker_id, 7, now_s + 6)
    assert pool.start_trouble == ""
    assert len(started(pool.replenish(5, now_s + 6))) == 4


def test_after_one_start_that_succeeds_the_next_failure_is_a_first_one() -> None:
    pool = pool_of()
    for now_s in (0.0, 10.0, 20.0):
        for start in started(pool.replenish(1, now_s)):
            pool.died(start.worker_id, "exit code 1", now_s)
    assert started(pool.replenish(1, 20.2)) == []
    [start] = started(pool.replenish(1, 30))
    pool.registered(start.startup_token, start.worker_id, 7, 30)
    [start] = started(pool.replenish(1, 40))
    pool.died(start.worker_id, "exit code 1", 40)
    assert len(started(pool.replenish(1, 40.2))) == 1


def test_idle_workers_above_the_soft_limit_are_asked_to_end_longest_idle_first() -> None:
    pool = pool_of(soft_limit=2)
    ids = idle_workers(pool, 4)
    pool.give_back(pool.take(JOB_A, b"lease", False, 1), 3)  # the last of them, idle since 3
    assert pool.tick(4.9) == []
    assert ended(pool.tick(5)) == [(ids[0], EndMode.ASK), (ids[1], EndMode.ASK)]
    assert pool.tick(100) == []
    pool.check_invariants()


def test_a_worker_that_refuses_to_end_is_idle_again() -> None:
    pool = pool_of(soft_limit=0)
    [worker_id] = idle_workers(pool, 1)
    assert ended(pool.tick(5)) == [(worker_id, EndMode.ASK)]
    assert not pool.can_serve(JOB_A)
    pool.refused_to_end(worker_id, 6)
    assert pool.can_serve(JOB_A)
    assert pool.tick(10) == []
    assert ended(pool.tick(11)) == [(worker_id, EndMode.ASK)]
    pool.check_invariants()


def test_the_idle_workers_of_a_finished_job_end_and_only_they() -> None:
    pool = pool_of()
    idle_workers(pool, 3)
    of_a, of_b = pool.take(JOB_A, b"1", False, 0), pool.take(JOB_B, b"2", False, 0)
    pool.give_back(of_a, 0)
    pool.give_back(of_b, 0)
    assert ended(pool.job_finished(b"aaaa", 1)) == [(of_a.worker_id, EndMode.KILL)]
    assert pool.can_serve(JOB_B)
    pool.check_invariants()


def test_a_worker_started_by_hand_is_adopted() -> None:
    pool = pool_of()
    assert pool.registered(0, b"w" * 28, 7, 0) == ""
    assert pool.can_serve(JOB_A)
    assert "registered before" in pool.registered(0, b"w" * 28, 7, 0)


def test_a_stranger_with_a_token_is_refused() -> None:
    pool = pool_of()
    [start] = started(pool.replenish(1, 0))
    assert "no worker" in pool.registered(99, start.worker_id, 7, 0)
    assert "no worker" in pool.registered(1, b"x" * 28, 7, 0)


def test_an_event_that_is_not_in_the_table_raises_the_story_and_changes_nothing() -> None:
    worker = Worker(b"w" * 28, 1)
    worker.register(100, 1)
    with pytest.raises(InternalError, match="is idle and cannot be 'given back'; so far: registered"):
        worker.give_back(2)
    assert (worker.state, worker.since_s) == (WorkerState.IDLE, 1)


def test_every_state_but_dead_can_die_and_dead_is_final() -> None:
    for state in WorkerState:
        assert ((state, WorkerEvent.DIED) in TRANSITIONS) == (state is not WorkerState.DEAD)
    assert not any(state is WorkerState.DEAD for state, _ in TRANSITIONS)
