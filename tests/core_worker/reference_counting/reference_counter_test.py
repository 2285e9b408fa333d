"""The reference counter: nothing referenced is let go, nothing unreferenced stays."""

from __future__ import annotations

from ray_mono.core_worker.reference_counting.reference_counter import Reference, ReferenceCounter


class Scene:
    """A counter and what it let go."""

    def __init__(self) -> None:
        self.gone: list[bytes] = []
        self.counter = ReferenceCounter(lambda object_id, row: self.gone.append(object_id))

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
