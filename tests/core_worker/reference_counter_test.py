"""The reference counter: nothing referenced is let go, nothing unreferenced stays, against a small model."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from ray_mono.core_worker.reference_counter import Reference, ReferenceCounter


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


class AgainstModel(RuleBasedStateMachine):
    """Random lives; the model keeps every reason to live as a list."""

    objects = Bundle("objects")
    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene()
        self.local: dict[bytes, int] = {}
        self.submitted: dict[bytes, int] = {}
        self.borrowers: dict[bytes, set[bytes]] = {}
        self.nested: dict[bytes, tuple[bytes, ...]] = {}
        self.made = 0

    def alive(self) -> set[bytes]:
        """Every object with a reason of its own, and all that is inside of those."""
        found = {o for o in self.nested if self.local[o] or self.submitted[o] or self.borrowers[o]}
        todo = list(found)
        while todo:
            for inner in self.nested[todo.pop()]:
                if inner not in found:
                    found.add(inner)
                    todo.append(inner)
        return found

    @rule(target=objects, data=st.data())
    def own(self, data: st.DataObject) -> bytes:
        alive = sorted(self.alive())
        nested = tuple(data.draw(st.lists(st.sampled_from(alive), unique=True, max_size=3))) if alive else ()
        object_id = b"%d" % self.made
        self.made += 1
        self.scene.own(object_id, *nested)
        self.local[object_id], self.submitted[object_id], self.borrowers[object_id] = 1, 0, set()
        self.nested[object_id] = nested
        return object_id

    @rule(object_id=objects)
    def copy_reference(self, object_id: bytes) -> None:
        if object_id in self.alive():
            self.scene.counter.add_local(object_id)
            self.local[object_id] += 1

    @rule(object_id=objects)
    def drop_reference(self, object_id: bytes) -> None:
        if self.local[object_id]:
            self.local[object_id] -= 1
            self.scene.counter.remove_local(object_id)

    @rule(target=holds, object_id=objects)
    def submit(self, object_id: bytes) -> bytes:
        if object_id not in self.alive():
            return b""
        self.scene.counter.add_submitted([object_id])
        self.submitted[object_id] += 1
        return object_id

    @rule(object_id=consumes(holds))
    def finish(self, object_id: bytes) -> None:
        if object_id:
            self.submitted[object_id] -= 1
            self.scene.counter.remove_submitted([object_id])

    @rule(object_id=objects, worker=st.sampled_from([b"w1", b"w2"]))
    def borrow(self, object_id: bytes, worker: bytes) -> None:
        if object_id in self.alive() and worker not in self.borrowers[object_id]:
            assert self.scene.counter.add_borrower(object_id, worker)
            self.borrowers[object_id].add(worker)

    @precondition(lambda self: any(self.borrowers.values()))
    @rule(object_id=objects, worker=st.sampled_from([b"w1", b"w2"]), lost=st.booleans())
    def give_back(self, object_id: bytes, worker: bytes, lost: bool) -> None:
        self.borrowers[object_id].discard(worker)
        assert not self.scene.counter.remove_borrower(object_id, worker, lost)

    @invariant()
    def table_is_what_is_alive(self) -> None:
        assert {object_id for object_id, _ in self.scene.counter.items()} == self.alive()
        assert len(self.scene.gone) == len(set(self.scene.gone))
        self.scene.counter.check_invariants()


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_borrowed_rows_start_unregistered_and_owned_ones_do_not() -> None:
    assert not Reference(b"owner").registered
    assert Reference(None).registered
