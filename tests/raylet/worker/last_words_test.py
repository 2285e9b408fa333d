"""What a worker had begun and answered when it died, for whoever had leased it."""

from __future__ import annotations

import os

from ray_mono.common.start_board import LEASE_SHIFT, BoardOfAnother, StartBoard
from ray_mono.raylet.worker import last_words
from ray_mono.raylet.worker.last_words import LastWords


def died(words: LastWords, worker_id: bytes, begun: int = 0, kept: int = 0) -> None:
    """On lease 7 so many had begun, of which the last `kept` have answers that did not leave."""
    board = StartBoard(worker_id)
    for place in range(1, begun + 1):
        board.may_begin((7 << LEASE_SHIFT) + place, "f")
        if place > begun - kept:
            board.keep((7 << LEASE_SHIFT) + place, b"%d" % place)
    words.died(worker_id, BoardOfAnother(os.getpid(), board.fd, worker_id))


def test_of_a_worker_that_died_it_says_what_had_begun_and_was_answered() -> None:
    words = LastWords()
    died(words, b"a" * 28, begun=5, kept=2)
    told = words.of(b"a" * 28, 7)
    assert (told.is_known, told.begun, told.first, list(told.plain)) == (True, 5, 4, [b"4", b"5"])
    told = words.of(b"a" * 28, 8)
    assert (told.is_known, told.begun, list(told.plain)) == (True, 0, [])


def test_of_others_and_of_leases_without_a_number_nothing_is_known() -> None:
    words = LastWords()
    died(words, b"a" * 28, begun=1)
    words.died(b"b" * 28, None)
    assert not words.of(b"b" * 28, 7).is_known
    assert not words.of(b"c" * 28, 7).is_known
    assert not words.of(b"a" * 28, 0).is_known


def test_the_boards_of_the_dead_stay_open_for_nobody() -> None:
    words = LastWords()
    died(words, b"first".ljust(28), begun=1)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        died(words, b"%028d" % number, begun=2, kept=1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_was_kept_of_an_earlier_lease_is_said_beside_what_began_on_the_last() -> None:
    words, board = LastWords(), StartBoard(b"a" * 28)
    board.keep((6 << LEASE_SHIFT) + 3, b"three")
    board.may_begin((7 << LEASE_SHIFT) + 1, "f")
    words.died(b"a" * 28, BoardOfAnother(os.getpid(), board.fd, b"a" * 28))
    earlier, last = words.of(b"a" * 28, 6), words.of(b"a" * 28, 7)
    assert (earlier.begun, earlier.first, list(earlier.plain)) == (0, 3, [b"three"])
    assert (last.begun, last.first, list(last.plain)) == (1, 0, [])


def test_items_of_a_generator_that_had_not_left_are_said_beside_what_had_begun() -> None:
    words, board = LastWords(), StartBoard(b"a" * 28)
    board.may_begin((7 << LEASE_SHIFT) + 1, "f")
    board.keep_call(b"t" * 24, b"items")
    words.died(b"a" * 28, BoardOfAnother(os.getpid(), board.fd, b"a" * 28))
    told = words.of(b"a" * 28, 7)
    assert (told.begun, list(told.plain)) == (1, [])
    assert [(each.task_id, each.reply) for each in told.items] == [(b"t" * 24, b"items")]


def test_the_oldest_are_forgotten() -> None:
    words = LastWords()
    for number in range(last_words.KEPT_MAX + 1):
        died(words, b"%028d" % number)
    assert not words.of(b"%028d" % 0, 7).is_known
    assert words.of(b"%028d" % 1, 7).is_known
