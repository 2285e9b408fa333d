"""What a worker has begun, read by another: exact whatever the worker does."""

from __future__ import annotations

import os
import threading
import time

import pytest

from ray_mono.common.node_time import NO_END, NS_PER_S
from ray_mono.common.start_board import LEASE_SHIFT, SETTLE_S, BoardOfAnother, StartBoard

WORKER = b"w" * 28


def pair() -> tuple[StartBoard, BoardOfAnother]:
    board = StartBoard(WORKER)
    return board, BoardOfAnother(os.getpid(), board.fd, WORKER)


def number(lease: int, place: int) -> int:
    return (lease << LEASE_SHIFT) + place


def test_what_began_last_is_seen_for_its_lease_only() -> None:
    board, seen = pair()
    assert seen.begun(7) == 0
    assert board.may_begin(number(7, 1), "f") and board.may_begin(number(7, 3), "f")
    assert (seen.begun(7), seen.begun(6), seen.begun(8)) == (3, 0, 0)


def test_nothing_of_a_closed_lease_begins_and_all_of_the_next_does() -> None:
    board, seen = pair()
    assert board.may_begin(number(7, 1), "f")
    seen.close_lease(7)
    assert seen.begun(7) == 1
    assert not board.may_begin(number(7, 2), "f")
    # A lease that was asked for earlier, and granted later.
    assert board.may_begin(number(5, 1), "f")


def test_what_runs_is_read_also_when_its_worker_is_gone_and_at_rest_it_is_nothing() -> None:
    board, seen = pair()
    assert seen.running() == ""
    board.may_begin(number(7, 1), "first")
    board.may_begin(number(7, 2), "größer" * 1000)
    assert seen.running().startswith("größergrößer")
    board.may_begin(number(7, 3), "last")
    seen.close_lease(7)
    assert not board.may_begin(number(7, 4), "taken back")
    assert seen.running() == "last"
    board.rest()
    assert seen.running() == ""


def test_the_time_that_an_actor_has_ends_when_both_clocks_say_so() -> None:
    board, seen = pair()
    now_ns, awake_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    hour_ns = 3600 * NS_PER_S
    assert board.time_left_s() > 3600 and not board.is_time_over()
    for ends_ns, ends_awake_ns in ((now_ns + hour_ns, 0), (0, awake_ns + hour_ns)):
        seen.lease_ends(ends_ns, ends_awake_ns)
        assert 0 < board.time_left_s() <= 3600 and not board.is_time_over()
    seen.lease_ends(NO_END, 0)
    assert not board.is_time_over()
    seen.lease_ends(now_ns, awake_ns)
    assert board.time_left_s() == 0 and board.is_time_over()


def test_answers_that_have_not_left_are_read_when_their_worker_is_gone() -> None:
    board, seen = pair()
    assert seen.kept(7) == (0, [])
    assert (
        board.keep(number(7, 3), b"three")
        and board.keep(number(7, 4), b"")
        and board.keep(number(7, 5), b"5")
    )
    assert seen.kept(7) == (3, [b"three", b"", b"5"])
    assert seen.kept(6) == (0, [])
    board.forget_kept()
    assert seen.kept(7)[1] == []
    assert board.keep(number(8, 1), b"next") and seen.kept(8) == (1, [b"next"]) and seen.kept(7) == (0, [])


def test_an_answer_that_does_not_follow_or_finds_no_room_is_not_kept() -> None:
    board, seen = pair()
    assert board.keep(number(7, 1), b"one")
    assert not board.keep(number(7, 3), b"three")
    assert not board.keep(number(7, 2), b"x" * 100_000)
    assert board.keep(number(7, 2), b"two")
    assert seen.kept(7) == (1, [b"one", b"two"])
    room = 0
    while board.keep(number(7, 3 + room), b"%1000d" % room):
        room += 1
    assert room > 60 and len(seen.kept(7)[1]) == 2 + room


def test_an_answer_that_is_half_written_when_the_worker_dies_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for num_whole in (0, 1):
        board, seen = pair()
        for place in range(1, num_whole + 1):
            board.keep(number(7, place), b"%d" % place)

        class Dies:
            def __setitem__(self, where: slice, what: bytes) -> None:
                raise MemoryError

        monkeypatch.setattr(board, "_memory", Dies())
        with pytest.raises(MemoryError):
            board.keep(number(7, num_whole + 1), b"another")
        assert seen.kept(7)[1] == [b"1"][:num_whole]


def test_a_count_that_cannot_be_is_no_answer() -> None:
    """The worker's code may write over its memory."""
    board, seen = pair()
    board.keep(number(7, 1), b"one")
    board._cells[board._num_last_cell] = 1 << 40
    assert seen.kept(7) == (0, [])


def test_answers_that_are_one_object_take_the_room_of_one() -> None:
    board, seen = pair()
    same, like_it = b"value", bytes(bytearray(b"value"))
    answers = [same] * 10_000 + [like_it, b"", b"", same, same]
    for place, answer in enumerate(answers, 1):
        assert board.keep(number(7, place), answer)
    assert seen.kept(7) == (1, answers)
    assert not board.keep(number(7, 1), same) and not board.keep(number(7, len(answers) + 2), same)
    board.forget_kept()
    assert seen.kept(7)[1] == []
    assert board.keep(number(7, 5), same) and board.keep(number(7, 6), same)
    assert seen.kept(7) == (5, [same, same])


def test_an_answer_that_grows_is_read_as_far_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    board, seen = pair()
    first, second = b"a" * 24, b"b" * 24
    assert board.keep_call(first, b"one") and board.keep_more(b", two") and board.keep_more(b"")
    assert board.keep_call(second, b"1") and board.keep_more(b"23456789")
    assert seen.kept_calls() == [(first, b"one, two"), (second, b"123456789")]
    whole = len(seen.kept_calls()[1][1])
    while board.keep_more(b"x" * 1000):
        whole += 1000
    assert len(seen.kept_calls()[1][1]) == whole > 60_000
    board.forget_kept()
    assert seen.kept_calls() == []

    class Dies:
        def __setitem__(self, where: slice, what: bytes) -> None:
            raise MemoryError

    board.keep_call(first, b"one")
    monkeypatch.setattr(board, "_memory", Dies())
    with pytest.raises(MemoryError):
        board.keep_more(b", two")
    assert seen.kept_calls() == [(first, b"one")]


def test_a_board_is_opened_for_its_own_worker_only() -> None:
    board = StartBoard(WORKER)
    with pytest.raises(ValueError, match="is not worker"):
        BoardOfAnother(os.getpid(), board.fd, b"x" * 28)
    with pytest.raises(OSError):
        BoardOfAnother(os.getpid(), 10_000, WORKER)
    reading, writing = os.pipe()
    with pytest.raises(OSError):
        BoardOfAnother(os.getpid(), reading, WORKER)
    os.close(reading)
    os.close(writing)


def test_no_task_both_begins_and_is_taken_back() -> None:
    board, seen = pair()
    for lease in range(1, 21):
        begun: list[int] = []

        def work(lease: int = lease, begun: list[int] = begun) -> None:
            place = 1
            while board.may_begin(number(lease, place), "f"):
                begun.append(place)
                place += 1

        worker = threading.Thread(target=work)
        worker.start()
        while not begun:
            pass
        seen.close_lease(lease)
        worker.join(SETTLE_S)
        answer = seen.begun(lease)
        worker.join()
        # The last may have been written down and not begun: it is given back by the worker itself.
        assert begun[-1] <= answer


def test_answers_that_leave_while_they_are_read_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    board, seen = pair()
    board.keep(number(7, 3), b"three")
    memory = seen._memory

    class Slow:
        """Meanwhile the worker goes on."""

        def __getitem__(self, where: slice) -> bytes:
            board.forget_kept()
            board.keep(number(7, 4), b"4")
            return memory[where]

    monkeypatch.setattr(seen, "_memory", Slow())
    assert seen.kept(7) == (0, [])
    monkeypatch.setattr(seen, "_memory", memory)
    assert seen.kept(7) == (4, [b"4"])
