"""Who still needs which object: the reference counts of one process, for objects it owns and objects it
borrows.

A machine without I/O, called under the core worker's lock. It owns the table of references, and knows nothing
of values, sockets or tasks. A reference has four reasons to live:

    local      ObjectRef instances in this process
    submitted  unfinished tasks of this process that have it as an argument, and other holds for a while
    contained  objects in scope here that have it inside (puts, returns, actor handles)
    borrowers  (owned only) other workers that hold it, see ARCHITECTURE "Ownership and references"

When the last reason goes, the reference goes out of scope. It is taken from the table, `on_out_of_scope` is
told, and what it contained is let go, which may end further references. There is no other way out of the
table, but for the shortest: a small value of ours that nobody else had is forgotten, and nobody is told.

Most references are alike: owned, one ObjectRef, nothing else. They have no row of their own: the table has
None, and who asks gets ALONE. That makes a queued task 100 bytes smaller, and the garbage collector's rounds
a third shorter. `row` gives such a reference a row.

    owned      its value lives here, or in stores that this process names
    borrowed   another process owns it. unregistered ──► registered: the owner knows that we hold it
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat

from ray_mono.common.our_bug import InternalError


class Reference:
    """One row. `owner` is a serialized Address, None where this process owns the object."""

    __slots__ = (
        "borrowers",
        "contained",
        "local",
        "nested",
        "owner",
        "registered",
        "removal_waiters",
        "submitted",
    )

    def __init__(self, owner: bytes | None) -> None:
        self.owner = owner
        self.local = 0
        self.submitted = 0
        self.contained = 0
        # By worker: the returns in which it was given the reference again since its watch was opened (b"":
        # in another way). The watch is opened anew for each, one after another.
        self.borrowers: dict[bytes, list[bytes]] | None = None
        # Owner: the references inside the value, an ordered set. Each has one `contained` for it.
        self.nested: dict[bytes, None] | None = None
        # Borrower: the owner counts this process. Always true for owned references.
        self.registered = owner is None
        # Borrower: answers to open WaitForRefRemoved calls.
        self.removal_waiters: list[Callable[[], None]] | None = None

    @property
    def in_scope(self) -> bool:
        return self.local > 0 or self.submitted > 0 or self.contained > 0 or bool(self.borrowers)


ALONE = Reference(None)
"""Stands for every owned reference that has one ObjectRef and nothing else. Nobody changes it."""
ALONE.local = 1
_ABSENT = Reference(None)

_TOGETHER_MIN, _TOGETHER_MAX = 16, 512
"""So many dropped references are counted in one step."""


Table = dict[bytes, Reference | None]
OnOutOfScope = Callable[[bytes, Reference], None]
ForgetPlain = Callable[[bytes], bool]
ForgetAllPlain = Callable[[Sequence[bytes]], bool]


class ReferenceCounter:
    """The table."""

    def __init__(
        self,
        references: Table,
        on_out_of_scope: OnOutOfScope,
        forget_plain: ForgetPlain,
        forget_all_plain: ForgetAllPlain,
    ) -> None:
        """references: the empty table. Others may look into it, and only this changes it.

        on_out_of_scope(object_id, reference) runs once for each reference that ends. Not so where it was
        ALONE, and forget_plain(object_id) says that this was all: MemoryStore.forget_plain; as
        forget_all_plain(object_ids) says of many.
        """
        self._references = references
        self._on_out_of_scope = on_out_of_scope
        self._forget_plain = forget_plain
        self._forget_all_plain = forget_all_plain
        # Whether an object is in the table. It is the dictionary's own method, since every answer asks.
        self.is_referenced: Callable[[bytes], bool] = self._references.__contains__

    def __len__(self) -> int:
        return len(self._references)

    def __contains__(self, object_id: bytes) -> bool:
        return object_id in self._references

    def get(self, object_id: bytes) -> Reference | None:
        """The row, to read from, since it may be ALONE. None if it is not referenced here."""
        reference = self._references.get(object_id, _ABSENT)
        if reference is None:
            return ALONE
        return reference if reference is not _ABSENT else None

    def row(self, object_id: bytes) -> Reference | None:
        """As get, but a row that may be changed."""
        reference = self._references.get(object_id, _ABSENT)
        if reference is None:
            reference = self._references[object_id] = Reference(None)
            reference.local = 1
        return reference if reference is not _ABSENT else None

    def borrowed_of(self, object_ids: Sequence[bytes]) -> list[bytes]:
        """Those of them that other processes own."""
        rows = self._references
        if set(map(rows.get, object_ids)) <= {None}:
            return []  # as most are, of many: all are ours
        return [each for each in object_ids if (row := rows.get(each)) is not None and row.owner is not None]

    def items(self) -> Iterable[tuple[bytes, Reference]]:
        return ((object_id, row or ALONE) for object_id, row in self._references.items())

    def _row(self, object_id: bytes) -> Reference:
        """As row, where there must be one."""
        reference = self.row(object_id)
        if reference is None:
            raise InternalError(self.story(object_id))
        return reference

    # ---- coming in

    def add_owned(self, object_id: bytes, nested: Iterable[bytes] = ()) -> None:
        """A new object of ours with one local reference. What is `nested` in it must be in the table."""
        if object_id in self._references:
            raise InternalError(f"object {object_id.hex()} is made twice: {self.story(object_id)}")
        self._references[object_id] = None
        if nested:
            self.add_nested(object_id, nested)

    def add_all_owned(self, object_ids: Sequence[bytes]) -> None:
        """As add_owned, of values that are known later."""
        references = self._references
        for object_id in object_ids:
            if object_id in references:
                raise InternalError(f"object {object_id.hex()} is made twice: {self.story(object_id)}")
            references[object_id] = None

    def add_nested(self, object_id: bytes, nested: Iterable[bytes]) -> None:
        """References inside an owned object. They are known when its value is, and when another copy of it
        is, which may have others. Those that are known already are not counted again."""
        row = self._row(object_id)
        if row.nested is None:
            row.nested = {}
        for inner in nested:
            if inner not in row.nested:
                row.nested[inner] = None
                self._row(inner).contained += 1

    def add_local(self, object_id: bytes) -> None:
        self._row(object_id).local += 1

    def borrow(self, object_id: bytes, owner: bytes) -> Reference:
        """The row of a reference that arrived from elsewhere; a new one if it has none. The caller then adds
        its reason to live."""
        reference = self.row(object_id)
        if reference is None:
            reference = self._references[object_id] = Reference(owner)
        return reference

    def revive(self, object_id: bytes) -> None:
        """An object of ours that went out of scope is made again. The caller then adds its reason to live."""
        if object_id not in self._references:
            self._references[object_id] = Reference(None)

    def mark_registered(self, object_id: bytes) -> None:
        """The owner counts this process, or is told to."""
        reference = self.get(object_id)
        if reference is not None and not reference.registered:
            reference.registered = True

    def when_removed(self, object_id: bytes, answer: Callable[[], None]) -> bool:
        """Returns False if it is not referenced here. Otherwise answer() runs once when it is not any more,
        if the reference is a borrowed one."""
        reference = self.row(object_id)
        if reference is None:
            return False
        if reference.removal_waiters is None:
            reference.removal_waiters = []
        reference.removal_waiters.append(answer)
        return True

    def add_submitted(self, object_ids: Iterable[bytes], times: int = 1) -> None:
        """times: by so many tasks."""
        rows = self._references
        for object_id in object_ids:
            (rows.get(object_id) or self._row(object_id)).submitted += times

    def add_borrower(self, object_id: bytes, worker_id: bytes, contained_in: bytes = b"") -> bool:
        """Returns True if a watch of this worker has to be opened (WaitForRefRemoved), and False if one is
        open, which is opened anew when it ends.

        contained_in: the return in which the worker gets the reference, which may still be on its way.
        """
        reference = self._row(object_id)
        if reference.borrowers is None:
            reference.borrowers = {}
        later = reference.borrowers.get(worker_id)
        if later is None:
            reference.borrowers[worker_id] = []
            return True
        if contained_in not in later:
            later.append(contained_in)
        return False

    # ---- going out

    def remove_local(self, object_id: bytes) -> None:
        reference = self._references.get(object_id, _ABSENT)
        if reference is None:
            del self._references[object_id]
            if not self._forget_plain(object_id):
                self._on_out_of_scope(object_id, ALONE)
        elif reference is not _ABSENT:
            reference.local -= 1
            if reference.local <= 0:
                self._check(object_id, reference)

    def remove_locals(self, dropped: deque[bytes]) -> None:
        """One local reference less of each of these. They are taken out of the deque, also those that are
        appended meanwhile."""
        references = self._references
        while dropped:
            if len(dropped) >= _TOGETHER_MIN:
                self._remove_together([dropped.popleft() for _ in range(min(len(dropped), _TOGETHER_MAX))])
                continue
            object_id = dropped.popleft()
            if references.get(object_id, _ABSENT) is None:
                # The usual case, kept short.
                del references[object_id]
                if not self._forget_plain(object_id):
                    self._on_out_of_scope(object_id, ALONE)
            else:
                self.remove_local(object_id)

    def _remove_together(self, object_ids: list[bytes]) -> None:
        """One local reference less of each of these. Many are dropped at once, and most of them are ALONE."""
        references = self._references
        rows = list(map(references.pop, object_ids, repeat(_ABSENT)))
        if set(rows) == {None} and self._forget_all_plain(object_ids):
            return
        taken = zip(object_ids, rows, strict=True)
        references.update((object_id, row) for object_id, row in taken if row is not _ABSENT)
        for object_id in object_ids:
            self.remove_local(object_id)

    def remove_submitted(self, object_ids: Iterable[bytes], times: int = 1) -> None:
        for object_id in object_ids:
            reference = self._references.get(object_id)
            if reference is not None:
                reference.submitted -= times
                if reference.local <= 0:
                    self._check(object_id, reference)

    def remove_borrower(self, object_id: bytes, worker_id: bytes, connection_lost: bool) -> bytes | None:
        """The watch of a borrower ended. Returns None, or, if the worker borrowed again meanwhile, the
        `contained_in` of the next watch."""
        reference = self._references.get(object_id)
        if reference is None or reference.borrowers is None or worker_id not in reference.borrowers:
            return None
        later = reference.borrowers[worker_id]
        if later and not connection_lost:
            return later.pop(0)
        del reference.borrowers[worker_id]
        self._check(object_id, reference)
        return None

    def drop_nested(self, object_id: bytes) -> None:
        """Nobody will look inside this object of ours any more."""
        row = self._row(object_id)
        nested, row.nested = row.nested, None
        for inner in nested or ():
            self._row(inner).contained -= 1
            self._check(inner, self._row(inner))

    def check(self, object_id: bytes) -> None:
        """Ends a row that was made by `borrow` and got no reason to live."""
        reference = self._references.get(object_id)
        if reference is not None:
            self._check(object_id, reference)

    def _check(self, object_id: bytes, reference: Reference) -> None:
        if reference.in_scope:
            return
        del self._references[object_id]
        ended = [(object_id, reference)]
        while ended:
            object_id, reference = ended.pop()
            self._on_out_of_scope(object_id, reference)
            for inner in reference.nested or ():
                row = self.row(inner)
                if row is not None:
                    row.contained -= 1
                    if not row.in_scope:
                        del self._references[inner]
                        ended.append((inner, row))

    @property
    def is_borrowed(self) -> bool:
        """Whether another worker holds anything of ours."""
        return any(row is not None and row.borrowers for row in self._references.values())

    # ---- for people

    def story(self, object_id: bytes) -> str:
        if object_id not in self._references:
            return f"object {object_id.hex()} is not referenced here"
        row = self._references[object_id] or ALONE
        kind = "owned" if row.owner is None else "borrowed"
        return (
            f"object {object_id.hex()} ({kind}): {row.local} local references, {row.submitted} tasks or"
            f" holds, in {row.contained} objects, {len(row.borrowers or ())} borrowers"
        )

    def check_invariants(self) -> None:
        """Recounts what can be recounted. Raises InternalError."""
        contained: dict[bytes, int] = {}
        for _, row in self.items():
            for inner in row.nested or ():
                contained[inner] = contained.get(inner, 0) + 1
        for object_id, row in self.items():
            if not row.in_scope or min(row.local, row.submitted, row.contained) < 0:
                raise InternalError(f"a reference outlived its reasons: {self.story(object_id)}")
            if row.contained != contained.get(object_id, 0):
                found = contained.get(object_id, 0)
                raise InternalError(f"wrong number of containers, {found} found: {self.story(object_id)}")
