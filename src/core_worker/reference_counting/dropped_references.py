"""What finalizers leave: references that are gone, to be counted later.

A finalizer of an ObjectRef may run at any allocation, on any thread, perhaps while that very thread holds the
core worker's lock. So it appends to a deque and wakes the reactor; `drain` counts. Where it matters that what
went before is counted (a name that goes with its last handle, a put that needs the room), whoever enters
drains first; else the end of the reactor's turn does.
"""

from __future__ import annotations

from collections import deque

from ray_mono.core_worker.environment import ReactorInterface
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider


class DroppedReferences:
    """Those of one process."""

    def __init__(
        self, reactor: ReactorInterface, references: ReferenceCounter, plasma: PlasmaStoreProvider
    ) -> None:
        """The reactor drains from now on."""
        self._reactor = reactor
        self._references = references
        self._plasma = plasma
        self._dropped: deque[bytes] = deque()
        reactor.serve_queues((self._dropped, *plasma.queues), self.drain)

    def drop(self, object_id: bytes) -> None:
        """A local reference is gone. No lock; perhaps in a forked child, which has no use for it."""
        self._dropped.append(object_id)
        self._reactor.wake()

    def drain(self) -> None:
        """Counts what was dropped, and sends what follows from it. Lock held."""
        self._references.remove_locals(self._dropped)
        self._plasma.drain()
