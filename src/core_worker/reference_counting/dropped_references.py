"""References that are gone, as finalizers leave them, to be counted later.

A finalizer of an ObjectRef may run at any allocation, on any thread, perhaps while that very thread holds the
core worker's lock. So it only appends to a deque and wakes the reactor; `drain` counts. The reactor drains at
the end of its turn. Some calls have to count first what was dropped before them, and drain themselves: a name
goes with the last handle of its actor, and a put may need the room.
"""

from __future__ import annotations

from collections import deque
from functools import partial

from ray_mono.core_worker.environment import ReactorInterface
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider


class DroppedReferences:
    """The dropped references of one process."""

    def __init__(
        self, reactor: ReactorInterface, references: ReferenceCounter, plasma: PlasmaStoreProvider
    ) -> None:
        """The reactor drains from now on."""
        self._reactor = reactor
        self._references = references
        self._plasma = plasma
        self._dropped: deque[bytes] = deque()
        self.queues = (self._dropped, *plasma.queues)
        """If one of them has something, `drain` has something to do."""
        reactor.serve_queues((self._dropped,), partial(references.remove_locals, self._dropped))
        reactor.serve_queues(plasma.queues, plasma.drain)

    def drop(self, object_id: bytes) -> None:
        """A local reference is gone. Takes no lock. It may run in a forked child, where nobody counts."""
        dropped = self._dropped
        dropped.append(object_id)
        try:
            # Of threads that append at the same time, one is first. Whoever drains goes on until it is empty.
            is_first = dropped[0] is object_id
        except IndexError:
            return  # it is counted
        if is_first:
            self._reactor.wake()

    def drain(self) -> None:
        """Counts what was dropped, and sends what follows from that. Lock held."""
        if any(self.queues):
            self._references.remove_locals(self._dropped)
            self._plasma.drain()
