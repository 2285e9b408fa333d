"""The reference counter: nothing referenced is let go, nothing unreferenced stays."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pytest

from ray_mono.common.our_bug import InternalError
from ray_mono.core_worker.reference_counting.reference_counter import Reference, ReferenceCounter


class Scene:
    """A counter and what it let go."""

    def __init__(self) -> None:
        self.gone: list[bytes] = []
        self.plain: set[bytes] = set()
        """Small values; they are forgotten, and nobody is told."""
        self.forgotten: set[bytes] = set()
        self.counter = ReferenceCounter(
            {},
            lambda object_id, row: self.gone.append(object_id),
            lambda object_id: self.forget([object_id]),
            self.forget,
        )

    def forget(self, object_ids: Sequence[bytes]) -> bool:
        """All of them, or none."""
        are_plain = self.plain.issuperset(object_ids)
        self.forgotten.update(object_ids if are_plain else ())
        return are_plain

    def own(self, object_id: bytes, *nested: bytes) -> None:
        self.counter.add_owned(object_id, nested)


def test_an_object_goes_with_its_last_local_reference() -> None:
    scene = Scene()
    scene.own(b"a")
    scene.counter.add_local(b"a")
    scene.counter.remove_local(b"a")
    assert scene.gone == []
    scene.counter.remove_local(b"a")
    assert scene.gone == [b"a"] and len(scene.counter) == 0


def test_an_argument_stays_until_the_task_ends() -> None:
    scene = Scene()
    scene.own(b"a")
    scene.counter.add_submitted([b"a"])
    scene.counter.remove_local(b"a")
    assert scene.gone == []
    scene.counter.remove_submitted([b"a"])
    assert scene.gone == [b"a"]


def test_what_an_object_contains_lives_as_long_as_it_and_goes_in_a_chain() -> None:
    scene = Scene()
    scene.own(b"inner")
    scene.own(b"middle", b"inner")
    scene.own(b"outer", b"middle")
    scene.counter.remove_local(b"inner")
    scene.counter.remove_local(b"middle")
    assert scene.gone == []
    scene.counter.remove_local(b"outer")
    assert scene.gone == [b"outer", b"middle", b"inner"]


def test_what_another_copy_of_an_object_contains_lives_with_what_the_first_one_does() -> None:
    scene = Scene()
    for inner in (b"first", b"both", b"second"):
        scene.own(inner)
    scene.own(b"outer", b"first", b"both", b"both")
    scene.counter.add_nested(b"outer", [b"both", b"second"])
    for inner in (b"first", b"both", b"second"):
        scene.counter.remove_local(inner)
    scene.counter.check_invariants()
    assert scene.gone == []
    scene.counter.remove_local(b"outer")
    assert sorted(scene.gone) == [b"both", b"first", b"outer", b"second"]


def test_a_borrower_keeps_an_object_until_it_says_so() -> None:
    scene = Scene()
    scene.own(b"a")
    assert scene.counter.add_borrower(b"a", b"worker")
    scene.counter.remove_local(b"a")
    assert scene.gone == []
    assert not scene.counter.remove_borrower(b"a", b"worker", connection_lost=False)
    assert scene.gone == [b"a"]


def test_a_borrower_that_borrowed_again_meanwhile_is_asked_again() -> None:
    scene = Scene()
    scene.own(b"a")
    assert scene.counter.add_borrower(b"a", b"worker")
    assert not scene.counter.add_borrower(b"a", b"worker")
    scene.counter.remove_local(b"a")
    assert scene.counter.remove_borrower(b"a", b"worker", connection_lost=False) == b""
    assert scene.gone == []
    assert scene.counter.remove_borrower(b"a", b"worker", connection_lost=False) is None
    assert scene.gone == [b"a"]


def test_a_borrower_is_asked_for_every_return_that_brings_it_the_reference_again() -> None:
    scene = Scene()
    scene.own(b"a")
    assert scene.counter.add_borrower(b"a", b"worker", b"return 1")
    assert not scene.counter.add_borrower(b"a", b"worker", b"return 2")
    assert not scene.counter.add_borrower(b"a", b"worker", b"return 3")
    scene.counter.remove_local(b"a")
    assert scene.counter.remove_borrower(b"a", b"worker", connection_lost=False) == b"return 2"
    assert scene.counter.remove_borrower(b"a", b"worker", connection_lost=False) == b"return 3"
    assert scene.gone == []
    assert scene.counter.remove_borrower(b"a", b"worker", connection_lost=False) is None
    assert scene.gone == [b"a"]


def test_a_borrower_whose_connection_broke_is_gone_at_once() -> None:
    scene = Scene()
    scene.own(b"a")
    scene.counter.add_borrower(b"a", b"worker")
    scene.counter.add_borrower(b"a", b"worker")
    scene.counter.remove_local(b"a")
    assert not scene.counter.remove_borrower(b"a", b"worker", connection_lost=True)
    assert scene.gone == [b"a"]


def test_dropping_what_is_not_there_changes_nothing() -> None:
    scene = Scene()
    scene.counter.remove_local(b"a")
    scene.counter.remove_submitted([b"a"])
    assert not scene.counter.remove_borrower(b"a", b"w", connection_lost=True)
    assert scene.gone == []


def test_borrowed_rows_start_unregistered_and_owned_ones_do_not() -> None:
    assert not Reference(b"owner").registered
    assert Reference(None).registered


def test_an_object_is_made_once() -> None:
    scene = Scene()
    scene.own(b"a")
    with pytest.raises(InternalError, match="is made twice"):
        scene.own(b"a")
    with pytest.raises(InternalError, match="is not referenced here"):
        scene.counter.add_local(b"other")


def test_what_nobody_looks_inside_of_lets_go_of_what_is_inside() -> None:
    scene = Scene()
    scene.own(b"inner")
    scene.own(b"outer", b"inner")
    scene.counter.remove_local(b"inner")
    scene.counter.drop_nested(b"outer")
    assert scene.gone == [b"inner"]
    scene.counter.remove_local(b"outer")
    assert scene.gone == [b"inner", b"outer"]


def test_a_reference_that_arrived_and_got_no_reason_to_live_ends_when_it_is_looked_at() -> None:
    scene = Scene()
    scene.counter.borrow(b"a", b"owner")
    scene.counter.borrow(b"b", b"owner")
    scene.counter.add_local(b"b")
    for object_id in (b"a", b"b", b"c"):
        scene.counter.check(object_id)
    assert scene.gone == [b"a"]


def test_who_waits_for_the_end_of_a_reference_is_kept_with_it() -> None:
    scene = Scene()
    scene.own(b"a")
    assert not scene.counter.when_removed(b"other", lambda: None)
    heard: list[int] = []
    assert scene.counter.when_removed(b"a", lambda: heard.append(1))
    assert scene.counter.when_removed(b"a", lambda: heard.append(2))
    row = scene.counter.get(b"a")
    assert row is not None and row.removal_waiters is not None
    for answer in row.removal_waiters:
        answer()
    assert heard == [1, 2]


def test_whether_anything_is_lent_is_known() -> None:
    scene = Scene()
    scene.own(b"a")
    scene.own(b"b")
    assert not scene.counter.is_borrowed
    scene.counter.add_borrower(b"a", b"worker")
    assert scene.counter.is_borrowed
    scene.counter.remove_borrower(b"a", b"worker", connection_lost=False)
    assert not scene.counter.is_borrowed


def test_a_reference_tells_its_story() -> None:
    scene = Scene()
    scene.own(b"a")
    scene.counter.borrow(b"b", b"owner")
    scene.counter.add_submitted([b"b", b"b"])
    assert (
        scene.counter.story(b"a")
        == "object 61 (owned): 1 local references, 0 tasks or holds, in 0 objects, 0 borrowers"
    )
    scene.counter.add_borrower(b"a", b"worker")
    scene.counter.add_local(b"a")
    assert (
        scene.counter.story(b"a")
        == "object 61 (owned): 2 local references, 0 tasks or holds, in 0 objects, 1 borrowers"
    )
    assert (
        scene.counter.story(b"b")
        == "object 62 (borrowed): 0 local references, 2 tasks or holds, in 0 objects, 0 borrowers"
    )
    assert scene.counter.story(b"c") == "object 63 is not referenced here"


def test_counts_that_went_wrong_are_found() -> None:
    scene = Scene()
    scene.counter.borrow(b"a", b"owner")
    with pytest.raises(InternalError, match="outlived its reasons"):
        scene.counter.check_invariants()
    scene.counter.add_local(b"a")
    scene.counter.check_invariants()
    row = scene.counter.row(b"a")
    assert row is not None
    row.contained = 1
    with pytest.raises(InternalError, match="wrong number of containers, 0 found"):
        scene.counter.check_invariants()


@pytest.mark.parametrize("num_plain", [0, 20, 40])
def test_of_many_that_are_dropped_at_once_all_go_and_those_that_are_gone_stay_gone(num_plain: int) -> None:
    scene = Scene()
    names = [b"%d" % number for number in range(40)]
    scene.counter.add_all_owned(names)
    scene.plain.update(names[:num_plain])
    scene.counter.remove_locals(deque(names))
    assert sorted(scene.gone) == sorted(names[num_plain:]) and len(scene.counter) == 0
    scene.counter.remove_locals(deque(names))
    assert len(scene.gone) == 40 - num_plain and len(scene.counter) == 0


def test_one_of_many_that_are_dropped_at_once_may_have_other_references() -> None:
    scene = Scene()
    names = [b"%d" % number for number in range(40)]
    scene.counter.add_all_owned(names)
    scene.counter.add_local(names[7])
    scene.counter.remove_locals(deque(names))
    assert names[7] not in scene.gone and len(scene.gone) == 39
    scene.counter.remove_local(names[7])
    assert names[7] in scene.gone and len(scene.counter) == 0
    scene.counter.check_invariants()


def test_one_of_many_small_values_that_are_dropped_at_once_may_be_needed_by_a_task() -> None:
    scene = Scene()
    names = [b"%d" % number for number in range(40)]
    scene.counter.add_all_owned(names)
    scene.plain.update(names)
    scene.counter.add_submitted([names[7]])
    scene.counter.remove_locals(deque(names))
    assert scene.gone == [] and names[7] in scene.counter and len(scene.counter) == 1
    assert scene.forgotten == {*names} - {names[7]}
    scene.counter.remove_submitted([names[7]])
    assert scene.gone == [names[7]] and len(scene.counter) == 0


def test_a_small_value_that_nobody_else_had_is_forgotten_and_nobody_is_told() -> None:
    scene = Scene()
    scene.plain.update((b"a", b"b", b"c"))
    for name in (b"a", b"b", b"c"):
        scene.own(name)
    scene.counter.add_submitted([b"c"])
    scene.counter.remove_local(b"a")
    scene.counter.remove_locals(deque([b"b", b"c"]))
    assert scene.gone == [] and len(scene.counter) == 1
    scene.counter.remove_submitted([b"c"])
    assert scene.gone == [b"c"]
