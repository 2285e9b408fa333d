"""`cancel`: the owner's side. The task's owner drops it where it still waits, and tells the worker that has
it otherwise (interrupter.py).

    waits for its arguments, or in a queue of this process ──► dropped; every return is a TaskCancelledError
    pushed ──CancelTask──► the worker: dropped there; interrupted; its process ended (force)
    finished ──► nothing

A task that was cancelled is not retried. With `recursive` the worker cancels first what the task submitted
and is not finished, force included where that is possible: calls to actors are never forced. Whoever only
holds a reference asks its owner (`to_owner`).
"""

from __future__ import annotations

from typing import Any

from ray_mono.common import ids
from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef, ReferenceHome, require_home
from ray_mono.core_worker.peers import PeerPool
from ray_mono.core_worker.reference_counting.dropped_references import DroppedReferences
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.protobuf import common_pb2, core_worker_pb2

_TASK_ID_BYTES = ids.TaskID.SIZE
_HEAD_BYTES = 8
"""What of a task's id its parent and its number make; the rest is the actor's."""
_NO_FORCE = "force=True is not supported for calls to actors: kill() ends an actor"


class TaskCanceller:
    """Cancels tasks that this process submitted, or has references to the returns of."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        dropped: DroppedReferences,
        peers: PeerPool,
        tasks: TaskManager,
        normal_tasks: NormalTaskSubmitter,
        actor_tasks: ActorTaskSubmitter,
        home: ReferenceHome,
    ) -> None:
        self._env = env
        self._references = references
        self._dropped = dropped
        self._peers = peers
        self._tasks = tasks
        self._normal_tasks = normal_tasks
        self._actor_tasks = actor_tasks
        self._home = home

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> None:
        """The task that makes this object; nothing for a `put`, and for what is finished.

        Raises ValueError for force and an actor's call, and RaySystemError for a reference of another
        session.
        """
        require_home(ref, self._home)
        object_id = ref._id
        task_id, index = object_id[:_TASK_ID_BYTES], object_id[_TASK_ID_BYTES:]
        if int.from_bytes(index, "little") >= ids.PUT_INDEX_BASE:
            return
        with self._env.lock:
            self._dropped.drain()
            row = self._references.get(object_id)
            if row is None or row.owner is None or row.owner == self._env.owner_address:
                self.cancel_own(task_id, force, recursive)
            elif force and not ids.is_normal_task(task_id):
                raise ValueError(_NO_FORCE)
            else:
                request = core_worker_pb2.CancelTaskRequest(
                    task_id=task_id, force=force, recursive=recursive, to_owner=True
                )
                owner = self._peers.stub_of(row.owner)
                owner.CancelTask.start(request, lambda reply, error: None)
            self._env.reactor.flush()

    def cancel_own(self, task_id: bytes, force: bool, recursive: bool) -> bool:
        """Whether it was pending here. Raises as `cancel` does. Lock held."""
        task = self._tasks.get(task_id)
        if task is None:
            return False
        is_call = task.template.spec.type == common_pb2.ACTOR_TASK
        if force and is_call:
            raise ValueError(_NO_FORCE)
        self._tasks.cancel(task)
        request = core_worker_pb2.CancelTaskRequest(task_id=task_id, force=force, recursive=recursive)
        if is_call:
            self._actor_tasks.cancel(task, request)
        else:
            self._normal_tasks.cancel(task, request)
        return True

    def cancel_children(self, parent: TaskContext, force: bool) -> None:
        """What a task that runs here has submitted. Lock held."""
        heads = {ids.child_task_id(parent.seed, number, b"") for number in range(1, parent.num_submitted + 1)}
        children = [task.task_id for task in self._tasks.values() if task.task_id[:_HEAD_BYTES] in heads]
        for task_id in children:
            self.cancel_own(task_id, force and ids.is_normal_task(task_id), True)
