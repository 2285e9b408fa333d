"""The arguments of a call, before its function is called: unpickled, and those by reference fetched into this node's store.

A normal task, or an actor's constructor, of which an argument finds no room here has not begun and can run on another node, where the
argument lies (NoRoomHere):

    worker ──NO_ROOM──► owner of the task ──soft affinity to the node with most bytes of the arguments──► worker there
    (or GCS)                └── hard affinity to this node, or nobody else has any of them: here again, waits_for_room

It is moved once an attempt. Then it waits for room as long as the store lets it, wherever it is by now, and fails with the store's
ObjectStoreFullError; so does at once what asks for resources that only this node has, and an object that is larger than the store.
Calls of actors, and gets, have no other place to go. A move costs no retry, and a node that is dead or could never run the task is no
place to move to (raylet/scheduling/scheduling_policy.py).
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_mono.core_worker.context import TaskContext
    from ray_mono.core_worker.core_worker import CoreWorker


def read_arguments(
    core: CoreWorker, own: Any, task: TaskContext, may_go_elsewhere: bool
) -> tuple[list[Any], dict[str, Any]]:
    """own: the message that holds flat_args and args. Raises what unpickling raises, errors that arguments are, and NoRoomHere."""
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
            values = _fetch(core, references, task, may_go_elsewhere)
            for arg, value in zip(references, values, strict=True):
                flat[arg.position] = value
    finally:
        core.getter.arrivals.collect_into(None)
    args = [flat[i + 1] for i in range(0, len(flat), 2) if flat[i] is None]
    if 2 * len(args) == len(flat):
        return args, {}
    return args, {flat[i]: flat[i + 1] for i in range(0, len(flat), 2) if flat[i] is not None}


def _fetch(core: CoreWorker, references: list[Any], task: TaskContext, may_go_elsewhere: bool) -> list[Any]:
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
                core.memory_store.put_in_store(object_id, list(arg.location_node_ids), arg.size_bytes)
    return core.getter.get_ids([arg.reference.object_id for arg in references], None, may_go_elsewhere)
