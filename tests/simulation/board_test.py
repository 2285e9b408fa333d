"""SimBoard keeps to what StartBoard and BoardOfAnother do: one suite runs over both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from ray_mono.common.start_board import LEASE_SHIFT, BoardOfAnother, StartBoard, cell_of
from tests.simulation.machine import SimBoard

WORKER_ID = b"w" * 28
LEASE, OTHER_LEASE = 7, 8

Sides = tuple[Any, Any]
"""The worker's and the raylet's."""


def real() -> Sides:
    board = StartBoard(WORKER_ID)
    return board, BoardOfAnother(os.getpid(), board.fd, WORKER_ID)


def simulated() -> Sides:
    board = SimBoard()
    return board, board


@pytest.fixture(params=[real, simulated], ids=lambda make: make.__name__)
def sides(request: pytest.FixtureRequest) -> Sides:
    make: Callable[[], Sides] = request.param
    return make()


def number(place: int, lease: int = LEASE) -> int:
    return lease << LEASE_SHIFT | place


def test_the_raylet_reads_which_task_of_a_lease_began_last(sides: Sides) -> None:
    worker, raylet = sides
    assert worker.may_begin(number(1), "f")
    assert worker.may_begin(number(2), "f")
    assert raylet.begun(LEASE) == 2
    assert raylet.begun(OTHER_LEASE) == 0
    assert LEASE in raylet.leases()


def test_no_task_of_a_closed_lease_begins_and_it_counts_as_begun(sides: Sides) -> None:
    worker, raylet = sides
    raylet.close_lease(LEASE)
    assert not worker.may_begin(number(1), "f")
    assert raylet.begun(LEASE) == 1
    assert worker.may_begin(number(1, OTHER_LEASE), "f")


def test_the_name_of_what_runs_is_read_until_it_is_over(sides: Sides) -> None:
    worker, raylet = sides
    assert raylet.running() == ""
    worker.may_begin(number(1), "f")
    assert raylet.running() == "f"
    worker.rest()
    assert raylet.running() == ""
    worker.may_begin(number(2), "f")
    assert raylet.running() == "f"


def test_a_task_runs_from_its_beginning_until_the_next_begins_or_the_worker_rests(sides: Sides) -> None:
    worker, raylet = sides
    assert not raylet.runs(LEASE, 1)
    worker.may_begin(number(1), "f")
    assert (raylet.runs(LEASE, 1), raylet.runs(LEASE, 2), raylet.runs(OTHER_LEASE, 1)) == (True, False, False)
    worker.may_begin(number(2), "f")
    assert (raylet.runs(LEASE, 1), raylet.runs(LEASE, 2)) == (False, True)
    worker.rest()
    assert not raylet.runs(LEASE, 2)


def test_what_may_not_begin_does_not_run(sides: Sides) -> None:
    worker, raylet = sides
    raylet.close_lease(LEASE)
    worker.may_begin(number(1), "f")
    assert raylet.running() == ""


def test_answers_are_kept_in_order_with_the_place_of_the_first(sides: Sides) -> None:
    worker, raylet = sides
    assert worker.keep(number(3), b"three")
    assert worker.keep(number(4), b"")
    assert raylet.kept(LEASE) == (3, [b"three", b""])
    assert raylet.kept(OTHER_LEASE) == (0, [])
    assert LEASE in raylet.leases()


def test_an_answer_that_does_not_follow_the_last_is_not_kept(sides: Sides) -> None:
    worker, raylet = sides
    worker.keep(number(3), b"three")
    assert not worker.keep(number(5), b"five")
    assert raylet.kept(LEASE) == (3, [b"three"])


def test_what_has_left_is_kept_no_more_and_any_answer_may_follow(sides: Sides) -> None:
    worker, raylet = sides
    worker.keep(number(3), b"three")
    worker.forget_kept()
    assert raylet.kept(LEASE)[1] == []
    assert worker.keep(number(9), b"nine")
    assert raylet.kept(LEASE) == (9, [b"nine"])


def test_an_answer_for_which_there_is_no_room_is_not_kept(sides: Sides) -> None:
    worker, raylet = sides
    assert worker.keep(number(1), bytes(60_000))
    assert not worker.keep(number(2), bytes(10_000))
    assert len(raylet.kept(LEASE)[1]) == 1


ONE, TWO = b"1" * 24, b"2" * 24


def test_answers_of_an_actors_calls_are_kept_with_their_ids_until_they_have_left(sides: Sides) -> None:
    worker, raylet = sides
    assert worker.keep_call(ONE, b"one") and worker.keep_call(TWO, b"")
    assert raylet.kept_calls() == [(ONE, b"one"), (TWO, b"")]
    assert raylet.kept_of_frame()[1:] == (0, [])
    worker.forget_kept()
    assert raylet.kept_calls() == []


def test_those_that_came_together_are_kept_with_the_id_of_the_first(sides: Sides) -> None:
    worker, raylet = sides
    assert worker.keep_of_frame(ONE, 3, b"three") and worker.keep_of_frame(ONE, 4, b"four")
    assert not worker.keep_of_frame(ONE, 6, b"six")
    assert not worker.keep_of_frame(TWO, 5, b"four"), "of another frame"
    assert raylet.kept_of_frame() == (ONE, 3, [b"three", b"four"])
    assert raylet.kept_calls() == [] and raylet.kept(LEASE) == (0, [])


def test_both_kinds_are_not_kept_beside_each_other(sides: Sides) -> None:
    worker, raylet = sides
    assert worker.keep_call(ONE, b"one") and not worker.keep_of_frame(TWO, 1, b"two")
    worker.forget_kept()
    assert worker.keep_of_frame(TWO, 1, b"two") and not worker.keep_call(ONE, b"one")
    assert raylet.kept_of_frame() == (TWO, 1, [b"two"])


def test_calls_for_whose_answers_there_is_no_room_are_not_kept(sides: Sides) -> None:
    worker, raylet = sides
    assert worker.keep_call(ONE, bytes(60_000)) and not worker.keep_call(TWO, bytes(10_000))
    assert [task_id for task_id, _ in raylet.kept_calls()] == [ONE]


def test_an_actor_that_has_gone_on_elsewhere_is_told_apart_from_one_that_died_there(sides: Sides) -> None:
    worker, raylet = sides
    worker.caller_lost(b"a" * 28)
    assert not raylet.has_moved
    worker.moved()
    assert raylet.has_moved and raylet.lost_callers() == [cell_of(b"a" * 28)]


def test_callers_whose_connections_have_ended_are_named_until_they_come_again(sides: Sides) -> None:
    worker, raylet = sides
    assert raylet.lost_callers() == []
    worker.caller_lost(b"a" * 28)
    worker.caller_lost(b"b" * 28)
    assert sorted(raylet.lost_callers()) == [cell_of(b"a" * 28), cell_of(b"b" * 28)]
    worker.caller_came(b"a" * 28)
    worker.caller_came(b"c" * 28)
    assert raylet.lost_callers() == [cell_of(b"b" * 28)]


def test_what_began_last_is_told_whatever_its_lease(sides: Sides) -> None:
    worker, raylet = sides
    assert raylet.last_begun == 0
    worker.may_begin(number(3), "f")
    assert raylet.last_begun == number(3)
    worker.may_begin(number(1, OTHER_LEASE), "f")
    assert raylet.last_begun == number(1, OTHER_LEASE)


def test_an_actor_may_run_until_the_raylet_says_and_for_ever_where_it_says_nothing(sides: Sides) -> None:
    worker, raylet = sides
    assert not worker.is_time_over()
    later_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 1_000_000_000_000
    for end in (later_ns, 0), (1, later_ns):
        raylet.lease_ends(*end)
        assert not worker.is_time_over()
    raylet.lease_ends(1, 1)
    assert worker.is_time_over()
