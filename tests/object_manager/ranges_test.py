"""Which bytes of an object are asked of which holder."""

from __future__ import annotations

import random

import pytest

from ray_mono.object_manager.ranges import Part, Ranges

CHUNK = 10
SLOW_S = 3.0


def make(size_bytes: int) -> Ranges:
    ranges = Ranges(CHUNK, SLOW_S)
    ranges.described(size_bytes)
    return ranges


def take(ranges: Ranges) -> Part:
    part = ranges.take()
    assert part is not None
    return part


def bring(ranges: Ranges, part: Part) -> None:
    """A chunk of it."""
    ranges.ask(part, by_chunks=True, now_s=0.0)
    part.arrived(part.asked_end - part.at)


def test_one_holder_is_asked_for_all_at_once_before_its_size_is_known() -> None:
    ranges = Ranges(CHUNK, SLOW_S)
    part = take(ranges)
    ranges.ask(part, by_chunks=False, now_s=0.0)
    assert part.ends_with_object
    ranges.described(95)
    assert (part.asked_end, part.ends_with_object, ranges.received_bytes) == (95, False, 0)
    part.arrived(95)
    assert ranges.is_whole and ranges.received_bytes == 95


def test_an_empty_object_is_whole_when_it_is_described() -> None:
    assert make(0).is_whole


def test_another_holder_takes_the_upper_half_of_what_is_not_asked_for() -> None:
    ranges = make(110)
    first = take(ranges)
    bring(ranges, first)
    ranges.ask(first, by_chunks=True, now_s=0.0)
    second = take(ranges)
    assert (first.at, first.asked_end, first.end) == (10, 20, 65) and (second.at, second.end) == (65, 110)
    assert (take(ranges).at, ranges.received_bytes) == (42, 10)


def test_who_breaks_off_leaves_its_part_to_the_next() -> None:
    ranges = make(110)
    first = take(ranges)
    ranges.ask(first, by_chunks=True, now_s=0.0)
    first.arrived(3)
    ranges.leave(first)
    assert (take(ranges).at, first.end) == (3, 110)


def test_less_than_a_chunk_is_not_shared() -> None:
    ranges = make(19)
    ranges.ask(take(ranges), by_chunks=True, now_s=0.0)
    assert ranges.take() is None and not ranges.is_whole


def test_who_has_not_brought_its_chunk_after_a_while_is_slow() -> None:
    ranges = make(15)
    first = take(ranges)
    ranges.ask(first, by_chunks=True, now_s=1.0)
    assert ranges.slow(3.9) is None
    assert ranges.slow(4.0) is first
    ranges.leave(first)
    assert ranges.slow(9.0) is None and take(ranges) is first


@pytest.mark.parametrize("seed", range(50))
def test_every_byte_is_asked_for_once_whoever_brings_how_much(seed: int) -> None:
    rng = random.Random(seed)
    size_bytes = rng.randint(1, 300)
    ranges = make(size_bytes)
    having: list[Part | None] = [take(ranges), None, None]
    asked = bytearray(size_bytes)
    while not ranges.is_whole:
        number = rng.randrange(3)
        part = having[number] = having[number] or ranges.take()
        if part is None:
            continue
        if part.at >= part.asked_end:
            ranges.ask(part, by_chunks=True, now_s=0.0)
            assert not any(asked[part.at : part.asked_end])
            asked[part.at : part.asked_end] = b"x" * (part.asked_end - part.at)
        part.arrived(rng.randint(0, part.asked_end - part.at))
        assert asked[: ranges.received_bytes].count(0) == 0
        if part.at == part.end:
            ranges.leave(part)
            having[number] = None
    assert asked.count(0) == 0 and ranges.received_bytes == size_bytes
