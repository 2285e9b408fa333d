"""A core worker without sockets: the real tables of references and values, and notes of what would be sent."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from ray_mono.core_worker.reference_counting.reference_counter import Reference, ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore


class FakeCore:
    """What streams, tasks and futures ask of it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.worker_id, self.node_id, self.owner_address = b"w" * 28, b"n" * 28, b"me"
        self.memory_store = MemoryStore()
        self.references = ReferenceCounter(self._out_of_scope)
        self.reactor = SimpleNamespace(is_closed=False, flush=lambda: None)
        self.freed: list[tuple[bytes, list[bytes]]] = []
        self.unseen_errors: list[bytes] = []
        self.unhandled = SimpleNamespace(note=lambda object_id, data: self.unseen_errors.append(object_id))
        self.ownership = SimpleNamespace(ask_owner=lambda object_id: None, adopt_returned=self._adopt)

    def _out_of_scope(self, object_id: bytes, row: Reference) -> None:
        entry = self.memory_store.remove(object_id)
        if entry is not None and entry.locations:
            self.free_in_stores(object_id, entry.locations)

    def _adopt(self, nested: Any) -> tuple[bytes, ...]:
        for reference in nested:
            self.references.borrow(reference.object_id, b"another")
        return tuple(reference.object_id for reference in nested)

    def free_in_stores(self, object_id: bytes, node_ids: list[bytes]) -> None:
        self.freed.append((object_id, list(node_ids)))

    def drain(self) -> None: ...

    def check_connected(self) -> None: ...

    def warn_driver(self, kind: str, message: str) -> None: ...

    def reference_dropped(self, object_id: bytes) -> None:
        self.references.remove_local(object_id)
