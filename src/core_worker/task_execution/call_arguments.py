"""The arguments of a call are read before its function is called: they are unpickled, and those by reference
are fetched into this node's store.

The store takes the arguments of a call as one: it copies all that are missing, or none (admission.py there).
Gets and waits have room first.

An argument may find no room here (NoRoomHere). If that happens to a normal task or an actor's constructor, it
has not begun, and can run on another node, where the argument lies:

    worker ──NO_ROOM──► the task's owner; the GCS for a constructor
                          ├── runs it on the node with most bytes of its arguments (soft affinity)
                          └── runs it here again: it is bound to this node, or no other has an argument

It is moved once in an attempt. After that it waits for room (waits_for_room) wherever it is, as long as the
store lets it, and then fails with the store's ObjectStoreFullError. An object that is larger than the store
fails it at once. A move costs no retry. It does not lead to a node that is dead or could never run the task
(raylet/scheduling/scheduling_policy.py). Calls of actors, and gets, have no other place to go.
"""

from __future__ import annotations

import pickle
from typing import Any

from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.objects.getter import Getter
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.reference_counting.unpickled_references import UnpickledReferences
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import TASK_ARGUMENTS
from ray_mono.core_worker.task_execution.call import Call
from ray_mono.protobuf.common_pb2 import ACTOR_TASK


class ArgumentReader:
    """Reads the arguments of calls for one worker."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        borrowing: Borrowing,
        unpickled: UnpickledReferences,
        blocked: BlockedNotice,
        getter: Getter,
    ) -> None:
        self._env = env
        self._references = references
        self._memory_store = memory_store
        self._borrowing = borrowing
        self._unpickled = unpickled
        self._blocked = blocked
        self._getter = getter

    def read(self, call: Call, task: TaskContext, may_go_elsewhere: bool) -> tuple[list[Any], dict[str, Any]]:
        """(positional arguments, keyword arguments). Raises what unpickling raises, an argument that is an
        error, and NoRoomHere if may_go_elsewhere."""
        self._unpickled.collect_into(task.arriving)
        try:
            flat = pickle.loads(call.flat_args)
            references = []
            for arg in call.extras.args:
                if arg.WhichOneof("arg") == "value":
                    flat[arg.position] = self._getter.read(b"", arg.value.metadata, arg.value.data)
                else:
                    references.append(arg)
            if references:
                values = self._fetch(call, references, task, may_go_elsewhere)
                for arg, value in zip(references, values, strict=True):
                    flat[arg.position] = value
        finally:
            self._unpickled.collect_into(None)
        if call.spec.type == ACTOR_TASK and (task.arrived or task.held):
            with self._env.lock:
                self._runs_on(call, task)
        names, values = flat[::2], flat[1::2]
        if names.count(None) == len(names):
            return values, {}
        args = [value for name, value in zip(names, values, strict=True) if name is None]
        return args, {name: value for name, value in zip(names, values, strict=True) if name is not None}

    def _runs_on(self, call: Call, task: TaskContext) -> None:
        """When the connection of a normal task's caller ends, its worker is killed. An actor's call runs on,
        and its caller may not wait for the answer any more. Lock held."""
        held = [*(task.arrived or ()), *(task.held or ())]
        self._borrowing.told_by_reply(held, call.answer_to.connection)

    def _fetch(
        self, call: Call, references: list[Any], task: TaskContext, may_go_elsewhere: bool
    ) -> list[Any]:
        """The values of arguments by reference. The caller holds them until our reply, so no owner has to
        be told."""
        with self._env.lock:
            for arg in references:
                object_id = arg.reference.object_id
                if object_id not in self._references:
                    owner = arg.reference.owner.SerializeToString(deterministic=True)
                    self._borrowing.arrived(object_id, owner)
                if task.hold(object_id):
                    self._references.add_submitted([object_id])
                # Of an object of ours we know it better.
                is_ours = not self._references.borrowed_of([object_id])
                if arg.location_node_ids and not is_ours and self._memory_store.get(object_id) is None:
                    self._memory_store.put_in_store(object_id, list(arg.location_node_ids), arg.size_bytes)
            if call.spec.type == ACTOR_TASK:
                # What came with it until now: the connection may end while this waits.
                self._runs_on(call, task)
        object_ids = [arg.reference.object_id for arg in references]
        with self._blocked.fetches(object_ids, task.task_id):
            return self._getter.get_ids(object_ids, None, TASK_ARGUMENTS, may_go_elsewhere)
