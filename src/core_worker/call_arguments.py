"""The arguments of a call, where it runs: unpickled, and fetched if they are references."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_mono.core_worker.context import TaskContext
    from ray_mono.core_worker.core_worker import CoreWorker


def read_arguments(core: CoreWorker, own: Any, task: TaskContext) -> tuple[list[Any], dict[str, Any]]:
    """Positional arguments and keywords of the call whose own part of its message this is. Waits for those that are elsewhere."""
    core.getter.arrivals.collect_into(task.arrived)
    try:
        flat = pickle.loads(own.flat_args)
        references = []
        for arg in own.args:
            if arg.WhichOneof("arg") == "value":
                flat[arg.position] = core.getter.read(b"", arg.value.metadata, arg.value.data)
            else:
                references.append(arg)
        if references:
            values = _fetch(core, references, task)
            for arg, value in zip(references, values, strict=True):
                flat[arg.position] = value
    finally:
        core.getter.arrivals.collect_into(None)
    args = [flat[i + 1] for i in range(0, len(flat), 2) if flat[i] is None]
    if 2 * len(args) == len(flat):
        return args, {}
    return args, {flat[i]: flat[i + 1] for i in range(0, len(flat), 2) if flat[i] is not None}


def _fetch(core: CoreWorker, references: list[Any], task: TaskContext) -> list[Any]:
    """Values of arguments by reference. The caller holds them until our reply, so no owner is told."""
    with core.lock:
        for arg in references:
            object_id = arg.reference.object_id
            if object_id not in core.references:
                core.references.borrow(object_id, arg.reference.owner.SerializeToString(deterministic=True))
            if object_id not in task.held:
                core.references.add_submitted([object_id])
                task.held.append(object_id)
            if arg.location_node_ids and core.memory_store.get(object_id) is None:
                core.memory_store.put_in_store(object_id, list(arg.location_node_ids), 0)
    return core.getter.get_ids([arg.reference.object_id for arg in references], None)
