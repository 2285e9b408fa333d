"""References that are unpickled here. What they come out of tells who keeps them alive until their owner
knows of this process.

A reference among the arguments of a task is kept by the task's caller until the reply. It is settled at the
end of the task (rule 1). A reference that comes out of an object is registered at once, and the object is
kept until its owner has acknowledged (rule 3). One that comes from elsewhere is registered at once, too. Each
thread knows what it is unpickling.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter

Arriving = Callable[[], dict[bytes, bytes]]
"""Gives what the references of a task's arguments go into: object id → owner."""


class _Thread(threading.local):
    # While it reads the arguments of a task: where the references in them go.
    arriving: Arriving | None = None
    # The object that it is reading.
    container: bytes | None = None


class UnpickledReferences:
    """The references that arrive in one process."""

    def __init__(self, references: ReferenceCounter, borrowing: Borrowing) -> None:
        self._references = references
        self._borrowing = borrowing
        self._thread = _Thread()
        # References unpickled so far. Who compares it before and after knows whether a value had any inside.
        self.count = 0

    def begin(self, object_id: bytes) -> bytes | None:
        """This thread reads an object. Returns what `end` takes."""
        outer = self._thread.container
        self._thread.container = object_id
        return outer

    def end(self, outer: bytes | None) -> None:
        self._thread.container = outer

    def collect_into(self, arriving: Arriving | None) -> None:
        """References that this thread unpickles from now on are arguments of a task, and go into arriving().
        None: they no longer are."""
        self._thread.arriving = arriving

    def arrived(self, object_id: bytes, owner: bytes) -> None:
        """A reference was unpickled on this thread. It is counted, and its owner is told if it has to know.
        Lock held."""
        self.count += 1
        row = self._borrowing.arrived(object_id, owner)
        self._references.add_local(object_id)
        if row.owner is None or row.registered:
            return
        if self._thread.arriving is not None:
            self._thread.arriving()[object_id] = owner
        else:
            self._borrowing.register(object_id, self._thread.container)
