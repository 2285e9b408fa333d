"""Whom a holder sends an object to, and whom it sends on."""

from __future__ import annotations

from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.senders import Senders

A, B = ObjectKey(b"a"), ObjectKey(b"b")
FIRST, SECOND, THIRD, FOURTH = (NodeKey(name) for name in (b"1", b"2", b"3", b"4"))
LARGE = 100


def make_senders() -> Senders:
    senders = Senders(per_object_max=2, min_bytes=LARGE)
    for asker in (FIRST, SECOND):
        assert senders.begin(A, LARGE, asker, ()) is None
    return senders


def test_who_asks_while_two_are_sent_it_is_sent_on_to_them_in_turn() -> None:
    senders = make_senders()
    assert senders.begin(A, LARGE, THIRD, ()) == FIRST
    assert senders.begin(A, LARGE, FOURTH, ()) == SECOND
    assert senders.begin(B, LARGE, THIRD, ()) is None
    senders.check_invariants()


def test_who_has_it_makes_place_for_the_next() -> None:
    senders = make_senders()
    senders.end(A, FIRST)
    assert senders.begin(A, LARGE, THIRD, ()) is None
    assert senders.begin(A, LARGE, FOURTH, ()) == SECOND


def test_nobody_is_sent_where_it_was_in_vain_and_at_last_it_is_sent_the_object() -> None:
    senders = make_senders()
    assert senders.begin(A, LARGE, THIRD, (FIRST,)) == SECOND
    assert senders.begin(A, LARGE, THIRD, (FIRST, SECOND)) is None
    senders.check_invariants()


def test_who_comes_again_over_another_stream_is_sent_it_and_counts_once() -> None:
    senders = make_senders()
    assert senders.begin(A, LARGE, FIRST, ()) is None
    senders.end(A, FIRST)
    assert senders.begin(A, LARGE, THIRD, ()) == FIRST


def test_a_small_object_is_sent_to_all_who_ask() -> None:
    senders = make_senders()
    assert senders.begin(A, LARGE - 1, THIRD, ()) is None
