"""Where the values of references are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray_mono.core_worker import current

if TYPE_CHECKING:
    from ray_mono.core_worker.object_ref import ObjectRef


def get_object_locations(
    obj_refs: Sequence[ObjectRef[Any]], timeout_ms: int = -1
) -> dict[ObjectRef[Any], dict[str, Any]]:
    """Of each reference: "node_ids" (hex; empty for small values, which are with their owner), "object_size" (bytes; None while there is no
    value) and "did_spill". What this process knows: all of what it owns, and of others' values what it has asked for. Does not wait.

    Raises RaySystemError where this process is not connected.
    """
    core = current.require()
    found = {}
    with core.lock:
        for ref in obj_refs:
            entry = core.memory_store.get(ref.binary())
            ready = entry is not None and entry.ready
            size = (entry.size_bytes or len(entry.data or b"")) if entry is not None and ready else None
            nodes = (
                [node_id.hex() for node_id in entry.locations or ()] if entry is not None and ready else []
            )
            found[ref] = {"node_ids": nodes, "object_size": size, "did_spill": False}
    return found


def get_local_object_locations(obj_refs: Sequence[ObjectRef[Any]]) -> dict[ObjectRef[Any], dict[str, Any]]:
    """As get_object_locations."""
    return get_object_locations(obj_refs)
