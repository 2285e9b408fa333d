"""When a store that is full has garbage collected, and when it says so."""

from __future__ import annotations

from ray_mono.object_manager.pressure import COLLECT_PERIOD_S, TELL_PERIOD_S, Due, Pressure


def test_garbage_is_collected_first_and_people_are_told_if_that_did_not_help() -> None:
    pressure = Pressure()
    assert pressure.next_deadline_s(100.0, 100.0) == 100.3
    assert pressure.expire(100.0, 100.0, 100.2) == Due(collect=False, tell=False)
    assert pressure.expire(100.0, 100.0, 100.3) == Due(collect=True, tell=False)
    assert pressure.next_deadline_s(100.0, 100.0) == 102.0
    assert pressure.expire(100.0, 100.0, 102.0) == Due(collect=False, tell=True)


def test_both_are_done_again_only_after_a_while_whoever_waits_then() -> None:
    pressure = Pressure()
    assert pressure.expire(100.0, 100.0, 103.0) == Due(collect=True, tell=True)
    assert pressure.expire(103.0, 103.0, 103.0 + COLLECT_PERIOD_S - 1) == Due(collect=False, tell=False)
    assert pressure.expire(103.0, 103.0, 103.0 + COLLECT_PERIOD_S) == Due(collect=True, tell=False)
    assert pressure.expire(103.0, 103.0, 103.0 + TELL_PERIOD_S) == Due(collect=True, tell=True)


def test_garbage_that_others_had_collected_is_not_collected_again_at_once() -> None:
    pressure = Pressure()
    assert pressure.may_collect(100.0) and not pressure.may_collect(101.0)
    assert pressure.expire(100.0, 100.0, 102.0) == Due(collect=False, tell=True)
    assert pressure.expire(100.0, 100.0, 100.0 + COLLECT_PERIOD_S) == Due(collect=True, tell=False)
    assert not pressure.may_collect(101.0 + COLLECT_PERIOD_S)


def test_while_nobody_waits_there_is_nothing_to_do() -> None:
    pressure = Pressure()
    assert pressure.next_deadline_s(None, None) is None
    assert pressure.expire(None, None, 1000.0) == Due(collect=False, tell=False)


def test_while_room_is_made_garbage_is_collected_and_nothing_is_said() -> None:
    pressure = Pressure()
    assert pressure.next_deadline_s(100.0, None) == 100.3
    assert pressure.expire(100.0, None, 110.0) == Due(collect=True, tell=False)
    assert pressure.expire(100.0, 109.0, 111.0) == Due(collect=False, tell=True)
