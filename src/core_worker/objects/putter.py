"""`put`: a serialized value becomes an object of this process, in its memory or in the node's store."""

from __future__ import annotations

from typing import Any

from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef, ReferenceHome
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.core_worker.reference_counting.dropped_references import DroppedReferences
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.values.serialization import Serialized


class Putter:
    """Puts of one process."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        plasma: PlasmaStoreProvider,
        dropped: DroppedReferences,
        home: ReferenceHome,
    ) -> None:
        self._env = env
        self._context = context
        self._references = references
        self._memory_store = memory_store
        self._plasma = plasma
        self._dropped = dropped
        self._home = home

    def put(self, value: Serialized) -> ObjectRef[Any]:
        """Waits while the store is full, and raises ObjectStoreFullError after some time."""
        is_inline = value.size_bytes <= INLINE_BYTES_MAX
        with self._env.lock:
            object_id = self._context.get().next_put_id()
            if is_inline:
                ref = self._own(object_id, value)
                if value.metadata or value.nested:
                    self._memory_store.put_inline(object_id, value.metadata, value.to_bytes())
                else:
                    self._memory_store.put_plain(object_id, value.to_bytes())
        if not is_inline:
            ref = self._put_in_store(object_id, value)
        if self._env.reactor.interrupted:
            self._env.reactor.raise_if_interrupted()
        return ref

    def _put_in_store(self, object_id: bytes, value: Serialized) -> ObjectRef[Any]:
        made: list[ObjectRef[Any]] = []

        def stored() -> None:
            made.append(self._own(object_id, value))
            self._memory_store.put_in_store(object_id, [self._env.node_id], value.size_bytes)

        self._plasma.put(object_id, value, self._env.worker_id, stored)
        return made[0]

    def _own(self, object_id: bytes, value: Serialized) -> ObjectRef[Any]:
        """Counts the object and makes its reference, whose end undoes that, in one step. Lock held."""
        self._dropped.drain()
        nested = value.nested
        self._references.add_owned(object_id, [ref._id for ref in nested] if nested else ())
        return ObjectRef(object_id, self._home)
