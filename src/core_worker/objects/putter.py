"""`put`: a serialized value becomes an object of this process's own, in its memory or in the node's store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.core_worker.values.serialization import Serialized

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker


def put(core: CoreWorker, value: Serialized) -> ObjectRef[Any]:
    """Waits while the store is full. Raises ObjectStoreFullError."""
    is_inline = value.size_bytes <= INLINE_BYTES_MAX
    with core.lock:
        object_id = core.context.get().next_put_id()
        if is_inline:
            ref = _own(core, object_id, value)
            core.memory_store.put_inline(object_id, value.metadata, value.to_bytes())
    if not is_inline:
        ref = _put_in_store(core, object_id, value)
    if core.reactor.interrupted:
        core.reactor.raise_if_interrupted()
    return ref


def _put_in_store(core: CoreWorker, object_id: bytes, value: Serialized) -> ObjectRef[Any]:
    made: list[ObjectRef[Any]] = []

    def stored() -> None:
        made.append(_own(core, object_id, value))
        core.memory_store.put_in_store(object_id, [core.node_id], value.size_bytes)

    core.store.put(object_id, value, core.worker_id, stored)
    return made[0]


def _own(core: CoreWorker, object_id: bytes, value: Serialized) -> ObjectRef[Any]:
    """Counted in one step with the reference, whose end undoes it. Lock held."""
    core.drain()
    nested = value.nested
    core.references.add_owned(object_id, tuple(dict.fromkeys(ref._id for ref in nested)) if nested else ())
    return ObjectRef(object_id, core)
