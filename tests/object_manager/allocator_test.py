"""The allocator: what it hands out, in which order, and (by a state machine against a bitmap) that nothing
overlaps or is lost."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from ray_mono.common.our_bug import InternalError
from ray_mono.object_manager.allocator import ALIGNMENT, Allocator, aligned
from ray_mono.object_manager.keys import ClientKey

ANNA, BERT = ClientKey(1), ClientKey(2)


def open_allocator(capacity_bytes: int) -> Allocator:
    allocator = Allocator(capacity_bytes)
    allocator.raise_limit(capacity_bytes)
    return allocator


def take(allocator: Allocator, size_bytes: int, writer: ClientKey = ANNA) -> int:
    offset = allocator.allocate(size_bytes, writer)
    assert offset is not None
    allocator.check_invariants()
    return offset


def give(allocator: Allocator, offset: int) -> None:
    allocator.free(offset)
    allocator.check_invariants()


def test_ranges_are_aligned_and_an_empty_object_has_a_place_of_its_own() -> None:
    allocator = open_allocator(1024)
    offsets = [take(allocator, size_bytes) for size_bytes in (0, 1, 64, 65)]
    assert offsets == [0, 64, 128, 192]
    assert allocator.used_bytes == 64 + 64 + 64 + 128


def test_a_full_store_hands_out_nothing_until_something_is_freed() -> None:
    allocator = open_allocator(256)
    first = take(allocator, 128)
    take(allocator, 128)
    assert allocator.allocate(1, ANNA) is None
    give(allocator, first)
    assert take(allocator, 128) == first


def test_freed_neighbours_become_one_range() -> None:
    allocator = open_allocator(256)
    offsets = [take(allocator, 64) for _ in range(4)]
    for index in (0, 2, 1, 3):
        give(allocator, offsets[index])
    assert take(allocator, 256) == 0


def test_a_writer_gets_back_what_it_freed_last() -> None:
    allocator = open_allocator(64 * 100)
    of_anna = [take(allocator, 640, ANNA) for _ in range(3)]
    of_bert = [take(allocator, 640, BERT) for _ in range(3)]
    for offset in (of_anna[0], of_bert[0], of_anna[2], of_bert[2]):
        give(allocator, offset)
    assert take(allocator, 640, ANNA) == of_anna[2]
    assert take(allocator, 640, BERT) == of_bert[2]
    assert take(allocator, 640, BERT) == of_bert[0]


def test_a_stranger_gets_what_was_freed_last_rather_than_cold_memory() -> None:
    allocator = open_allocator(64 * 100)
    offsets = [take(allocator, 640, ANNA) for _ in range(4)]
    give(allocator, offsets[2])
    give(allocator, offsets[0])
    assert take(allocator, 640, BERT) == offsets[0]


def test_the_last_free_range_and_cold_memory_serve_a_large_request_together() -> None:
    allocator = open_allocator(1024)
    take(allocator, 512)
    give(allocator, take(allocator, 256))
    assert take(allocator, 512) == 512


def test_nothing_is_handed_out_beyond_the_limit_until_it_is_raised() -> None:
    allocator = Allocator(1024)
    assert allocator.allocate(64, ANNA) is None
    allocator.raise_limit(allocator.limit_for(100))
    assert take(allocator, 100) == 0
    assert allocator.allocate(1, ANNA) is None
    assert allocator.limit_for(1) == 192


def test_freeing_what_is_not_a_range_is_a_bug_and_said_so() -> None:
    allocator = open_allocator(1024)
    take(allocator, 512)
    with pytest.raises(InternalError, match="free of 64"):
        allocator.free(64)


class AllocatorAgainstABitmap(RuleBasedStateMachine):
    """The model: a list that says for each unit of 64 bytes whose it is."""

    UNITS = 48
    ranges = Bundle("ranges")

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(self.UNITS * ALIGNMENT + 7)
        self.limit_units = 0
        self.owners: list[int | None] = [None] * self.UNITS
        self.next_range = 1

    @rule(units=st.integers(0, UNITS))
    def raise_limit(self, units: int) -> None:
        self.allocator.raise_limit(units * ALIGNMENT + 3)
        self.limit_units = max(self.limit_units, units)

    @rule(target=ranges, size_bytes=st.integers(0, 12 * ALIGNMENT), writer=st.sampled_from([ANNA, BERT]))
    def allocate(self, size_bytes: int, writer: ClientKey) -> tuple[int, int]:
        offset = self.allocator.allocate(size_bytes, writer)
        units = aligned(size_bytes) // ALIGNMENT
        room = "." * units in "".join(
            "." if owner is None else "x" for owner in self.owners[: self.limit_units]
        )
        assert (offset is not None) == room
        if offset is None:
            return 0, 0
        first = offset // ALIGNMENT
        assert offset % ALIGNMENT == 0 and first + units <= self.limit_units
        assert all(owner is None for owner in self.owners[first : first + units])
        self.owners[first : first + units] = [self.next_range] * units
        self.next_range += 1
        return first, units

    @rule(range_=consumes(ranges))
    def free(self, range_: tuple[int, int]) -> None:
        first, units = range_
        if units:
            self.allocator.free(first * ALIGNMENT)
            self.owners[first : first + units] = [None] * units

    @rule(writer=st.sampled_from([ANNA, BERT]))
    def writer_leaves(self, writer: ClientKey) -> None:
        self.allocator.forget_writer(writer)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.allocator.check_invariants()
        used_units = sum(owner is not None for owner in self.owners)
        assert self.allocator.used_bytes == used_units * ALIGNMENT
        assert self.allocator.free_bytes == (self.UNITS - used_units) * ALIGNMENT


AllocatorAgainstABitmap.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAllocatorAgainstABitmap = AllocatorAgainstABitmap.TestCase
