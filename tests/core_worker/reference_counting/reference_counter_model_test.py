"""The reference counter against a model that keeps every reason to live by itself: owned and borrowed
references, values that become known later, rows that are made for who asks, and nothing counted twice or lost
on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from ray_mono.core_worker.reference_counting.reference_counter import ALONE, Reference, ReferenceCounter

WORKERS = [b"w1", b"w2"]


class ModelRow:
    """Why one object lives, as the model knows it."""

    def __init__(self, owner: bytes | None) -> None:
        self.owner = owner
        self.local = 0
        self.submitted = 0
        self.nested: tuple[bytes, ...] = ()
        # Worker → what it was given the reference in since its watch was opened.
        self.borrowers: dict[bytes, list[bytes]] = {}

    @property
    def has_reason(self) -> bool:
        return bool(self.local or self.submitted or self.borrowers)


class ReferenceCounterAgainstAModel(RuleBasedStateMachine):
    """Objects are never made again under an id that ended."""

    objects = Bundle("objects")
    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[bytes] = []
        self.counter = ReferenceCounter({}, self.on_end, self.forget, self.forget_all)
        self.rows: dict[bytes, ModelRow] = {}
        self.made = 0

    def on_end(self, object_id: bytes, reference: Reference) -> None:
        assert object_id not in self.counter
        assert reference.owner == self.rows[object_id].owner
        self.ended.append(object_id)

    def forget(self, object_id: bytes) -> bool:
        """Every third is a small value."""
        is_plain = int(object_id) % 3 == 0
        if is_plain:
            self.on_end(object_id, ALONE)
        return is_plain

    def forget_all(self, object_ids: Sequence[bytes]) -> bool:
        are_plain = all(int(object_id) % 3 == 0 for object_id in object_ids)
        for object_id in object_ids if are_plain else ():
            self.on_end(object_id, ALONE)
        return are_plain

    # ---- the model

    def contained(self) -> dict[bytes, int]:
        """How many times each object is inside others that live."""
        counts: dict[bytes, int] = {}
        todo = [object_id for object_id, row in self.rows.items() if row.has_reason]
        seen = set(todo)
        while todo:
            for inner in self.rows[todo.pop()].nested:
                counts[inner] = counts.get(inner, 0) + 1
                if inner not in seen:
                    seen.add(inner)
                    todo.append(inner)
        return counts

    def alive(self) -> list[bytes]:
        contained = self.contained()
        return [object_id for object_id, row in self.rows.items() if row.has_reason or object_id in contained]

    def is_inside(self, object_id: bytes, outer: bytes) -> bool:
        return object_id == outer or any(
            self.is_inside(object_id, inner) for inner in self.rows[outer].nested
        )

    def draw_alive(self, data: st.DataObject, max_size: int) -> list[bytes]:
        alive = self.alive()
        return data.draw(st.lists(st.sampled_from(alive), max_size=max_size)) if alive else []

    def new_id(self, owner: bytes | None) -> bytes:
        object_id = b"%d" % self.made
        self.made += 1
        self.rows[object_id] = ModelRow(owner)
        return object_id

    # ---- coming in

    @rule(target=objects, data=st.data())
    def own(self, data: st.DataObject) -> bytes:
        nested = tuple(dict.fromkeys(drawn := self.draw_alive(data, 3)))
        object_id = self.new_id(None)
        self.counter.add_owned(object_id, drawn)
        self.rows[object_id].local, self.rows[object_id].nested = 1, nested
        return object_id

    @rule(target=objects, holds=st.integers(0, 1), references=st.integers(0, 1))
    def borrow(self, holds: int, references: int) -> bytes:
        """A reference arrives from elsewhere, with some reason to live or none."""
        object_id = self.new_id(b"an owner")
        self.arrive(object_id, holds, references)
        return object_id

    @rule(object_id=objects, holds=st.integers(0, 1), references=st.integers(0, 1))
    def borrow_again(self, object_id: bytes, holds: int, references: int) -> None:
        if self.rows[object_id].owner is not None and object_id in self.alive():
            self.arrive(object_id, holds, references)

    def arrive(self, object_id: bytes, holds: int, references: int) -> None:
        row = self.counter.borrow(object_id, b"an owner")
        assert row.owner == b"an owner"
        self.counter.add_submitted([object_id] * holds)
        for _ in range(references):
            self.counter.add_local(object_id)
        self.rows[object_id].submitted += holds
        self.rows[object_id].local += references
        if not self.rows[object_id].has_reason and object_id not in self.contained():
            self.counter.check(object_id)

    @rule(object_id=objects, data=st.data())
    def value_becomes_known(self, object_id: bytes, data: st.DataObject) -> None:
        """A return that has references inside, or one more copy of it, which may have others."""
        row = self.rows[object_id]
        if row.owner is None and object_id in self.alive():
            drawn = [each for each in self.draw_alive(data, 3) if not self.is_inside(object_id, each)]
            row.nested = tuple(dict.fromkeys([*row.nested, *drawn]))
            self.counter.add_nested(object_id, drawn)

    @rule(object_id=objects)
    def nobody_looks_inside_any_more(self, object_id: bytes) -> None:
        if self.rows[object_id].owner is None and object_id in self.alive():
            self.rows[object_id].nested = ()
            self.counter.drop_nested(object_id)

    @rule(object_id=objects)
    def copy_reference(self, object_id: bytes) -> None:
        if object_id in self.alive():
            self.counter.add_local(object_id)
            self.rows[object_id].local += 1

    @rule(target=holds, data=st.data())
    def submit(self, data: st.DataObject) -> object:
        arguments = self.draw_alive(data, 4)
        self.counter.add_submitted(arguments)
        for object_id in arguments:
            self.rows[object_id].submitted += 1
        return tuple(arguments) if arguments else multiple()

    @rule(
        object_id=objects, worker=st.sampled_from(WORKERS), contained_in=st.sampled_from([b"", b"r1", b"r2"])
    )
    def lend(self, object_id: bytes, worker: bytes, contained_in: bytes) -> None:
        row = self.rows[object_id]
        if row.owner is not None or object_id not in self.alive():
            return
        is_new = worker not in row.borrowers
        assert self.counter.add_borrower(object_id, worker, contained_in) == is_new
        later = row.borrowers.setdefault(worker, [])
        if not is_new and contained_in not in later:
            later.append(contained_in)

    @rule(object_id=objects)
    def look(self, object_id: bytes) -> None:
        """Who asks for a row to change gets the one that counts."""
        assert (self.counter.get(object_id) is not None) == (object_id in self.alive())
        reference = self.counter.row(object_id)
        assert reference is not ALONE
        assert self.counter.get(object_id) is reference

    # ---- going out

    @rule(object_id=objects)
    def drop_reference(self, object_id: bytes) -> None:
        row = self.rows[object_id]
        if row.local or object_id not in self.alive():
            row.local -= row.local > 0
            self.counter.remove_local(object_id)

    @rule(drops_old=st.booleans(), num_new=st.sampled_from([1, 15, 16, 600]))
    def drop_many(self, drops_old: bool, num_new: int) -> None:
        """Many that are like most, and perhaps one reference of each object that has one."""
        new = [self.new_id(None) for _ in range(num_new)]
        self.counter.add_all_owned(new)
        old = [object_id for object_id, row in self.rows.items() if row.local] if drops_old else []
        for object_id in old:
            self.rows[object_id].local -= 1
        self.counter.remove_locals(deque([*old, *new]))

    @rule(arguments=consumes(holds))
    def finish(self, arguments: tuple[bytes, ...]) -> None:
        for object_id in arguments:
            self.rows[object_id].submitted -= 1
        self.counter.remove_submitted(arguments)

    @precondition(lambda self: any(row.borrowers for row in self.rows.values()))
    @rule(data=st.data(), is_lost=st.booleans())
    def watch_ends(self, data: st.DataObject, is_lost: bool) -> None:
        lent = [(object_id, worker) for object_id, row in self.rows.items() for worker in row.borrowers]
        object_id, worker = data.draw(st.sampled_from(lent))
        later = self.rows[object_id].borrowers[worker]
        expected = later.pop(0) if later and not is_lost else None
        if expected is None:
            del self.rows[object_id].borrowers[worker]
        assert self.counter.remove_borrower(object_id, worker, is_lost) == expected

    # ---- what must hold

    @invariant()
    def the_table_is_what_is_alive(self) -> None:
        contained = self.contained()
        alive = self.alive()
        found = dict(self.counter.items())
        assert sorted(found) == sorted(alive) and len(self.counter) == len(alive)
        for object_id, reference in found.items():
            row = self.rows[object_id]
            assert (reference.owner, reference.local, reference.submitted) == (
                row.owner,
                row.local,
                row.submitted,
            )
            assert reference.contained == contained.get(object_id, 0)
            assert tuple(reference.nested or ()) == row.nested
            assert (reference.borrowers or {}) == row.borrowers
        self.counter.check_invariants()

    @invariant()
    def each_ends_once(self) -> None:
        alive = self.alive()
        assert sorted(self.ended) == sorted(object_id for object_id in self.rows if object_id not in alive)

    @invariant()
    def the_row_that_stands_for_many_is_never_changed(self) -> None:
        assert (ALONE.owner, ALONE.local, ALONE.submitted, ALONE.contained) == (None, 1, 0, 0)
        assert (ALONE.borrowers, ALONE.nested, ALONE.registered, ALONE.removal_waiters) == (
            None,
            None,
            True,
            None,
        )


ReferenceCounterAgainstAModel.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, print_blob=True
)
TestReferenceCounterAgainstAModel = ReferenceCounterAgainstAModel.TestCase
