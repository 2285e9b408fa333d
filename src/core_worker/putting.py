"""`put`: a serialized value becomes an object of this process's own, in its memory or in the node's store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.core_worker.serialization import Serialized

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker


def put(core: CoreWorker, value: Serialized) -> ObjectRef[Any]:
    """Waits while the store is full. Raises ObjectStoreFullError."""
    made: list[ObjectRef[Any]] = []
    with core.lock:
        object_id = core.context.get().next_put_id()

    def count() -> None:
        """In one step with the reference, whose end undoes it. Lock held."""
        core.drain()
        core.references.add_owned(object_id, tuple(dict.fromkeys(ref._id for ref in value.nested)))
        made.append(ObjectRef(object_id, core))
        if in_store:
            core.memory_store.put_in_store(object_id, [core.node_id], value.size_bytes)
        else:
            core.memory_store.put_inline(object_id, value.metadata, value.to_bytes())

    in_store = value.size_bytes > INLINE_BYTES_MAX
    if in_store:
        core.store.put(object_id, value, core.worker_id, count)
    else:
        with core.lock:
            count()
    core.reactor.raise_if_interrupted()
    return made[0]
