"""References that are unpickled: where they come from, and so who keeps them alive until their owners know of this process.

Those in the arguments of a task are kept by its caller until the reply, and settled at its end (rule 1). Those that come out of an
object are registered at once, and the object is kept until that is acknowledged (rule 3). What is being unpickled is known per thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker


class _Thread(threading.local):
    # The arguments of a task: object id → owner, settled at its end.
    task: dict[bytes, bytes] | None = None
    # An object that is being read.
    container: bytes | None = None


class UnpickledReferences:
    """The references that arrive in one process."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
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
        """While a task's arguments are unpickled on this thread, references go into its context; None: no longer."""
        self._thread.task = arrived

    def note(self, object_id: bytes, owner: bytes) -> None:
        """A foreign reference was unpickled on this thread. Lock held."""
        row = self._core.references.get(object_id)
        if row is None or row.registered:
            return
        if self._thread.task is not None:
            self._thread.task[object_id] = owner
        else:
            self._core.ownership.register(object_id, self._thread.container)
