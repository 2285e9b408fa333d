"""References that are unpickled: where they come from, and so who keeps them alive until their owners know of
this process.

Those in the arguments of a task are kept by its caller until the reply, and settled at its end (rule 1).
Those that come out of an object are registered at once, and the object is kept until that is acknowledged
(rule 3). What is being unpickled is known per thread.
"""

from __future__ import annotations

import threading

from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter


class _Thread(threading.local):
    # The arguments of a task: object id → owner, settled at its end.
    task: dict[bytes, bytes] | None = None
    # An object that is being read.
    container: bytes | None = None


class UnpickledReferences:
    """The references that arrive in one process."""

    def __init__(self, env: Environment, references: ReferenceCounter, borrowing: Borrowing) -> None:
        self._owner_address = env.owner_address
        self._references = references
        self._borrowing = borrowing
        self._thread = _Thread()
        # References unpickled so far: tells whether something had any inside.
        self.count = 0

    def begin(self, object_id: bytes) -> bytes | None:
        """This thread reads an object. Returns what `end` takes."""
        outer = self._thread.container
        self._thread.container = object_id
        return outer

    def end(self, outer: bytes | None) -> None:
        self._thread.container = outer

    def collect_into(self, arrived: dict[bytes, bytes] | None) -> None:
        """While a task's arguments are unpickled on this thread, references go into its context; None: no
        longer."""
        self._thread.task = arrived

    def arrived(self, object_id: bytes, owner: bytes) -> None:
        """A reference was unpickled on this thread: it is counted, and its owner hears of it if it has to.
        Lock held."""
        self.count += 1
        # Ours, if it went out of scope before it came back: reading it says so.
        row = self._references.borrow(object_id, owner, registered=owner == self._owner_address)
        self._references.add_local(object_id)
        if row.owner is None or row.registered:
            return
        if self._thread.task is not None:
            self._thread.task[object_id] = owner
        else:
            self._borrowing.register(object_id, self._thread.container)
