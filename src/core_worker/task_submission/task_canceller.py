"""The owner's side of `cancel`. The owner of a task drops it while it waits here; otherwise it tells the
worker that has the task (interrupter.py).

    waits for its arguments, or in a queue of this process ──► dropped; every return is a TaskCancelledError
    pushed ──CancelTask──► the worker drops or interrupts it or, by force, ends its own process
    finished ──► nothing

An actor without a name that is killed before its arguments are there is a task of its creator's, which is to
be cancelled: the GCS does not know it yet.

A task that was cancelled is not retried. With `recursive` the worker also cancels what the task submitted and
is not finished, by force if the task is; but calls to actors are never forced. A process that only holds a
reference asks the owner (`to_owner`).
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
from ray_mono.core_worker.task_submission.actor_creator import ActorCreator
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.protobuf import common_pb2, core_worker_pb2

_TASK_ID_BYTES = ids.TaskID.SIZE
_HEAD_BYTES = 8
"""The part of a task's id that derives from its parent and its number. The rest is the actor's id."""
_NO_FORCE = "force=True is not supported for calls to actors: kill() ends an actor"


class TaskCanceller:
    """Cancels tasks that this process submitted, or to whose returns it has references."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        dropped: DroppedReferences,
        peers: PeerPool,
        tasks: TaskManager,
        normal_tasks: NormalTaskSubmitter,
        actor_tasks: ActorTaskSubmitter,
        creator: ActorCreator,
        home: ReferenceHome,
    ) -> None:
        self._env = env
        self._references = references
        self._dropped = dropped
        self._peers = peers
        self._tasks = tasks
        self._normal_tasks = normal_tasks
        self._actor_tasks = actor_tasks
        self._creator = creator
        self._home = home

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> None:
        """Cancels the task that makes this object. Does nothing for an object of a `put`, and for a task that
        is finished.

        Raises ValueError for an actor's call with force, and RaySystemError for a reference of another
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
        """Cancels a task of this process. Returns whether it was pending. Raises as `cancel`. Lock held."""
        task = self._tasks.get(task_id)
        if task is None:
            return False
        type_ = task.template.spec.type
        if type_ == common_pb2.ACTOR_CREATION_TASK:
            self._creator.killed_elsewhere(task)
            return True
        is_call = type_ == common_pb2.ACTOR_TASK
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
        """Cancels what a task that runs here has submitted. Lock held."""
        heads = {ids.child_task_id(parent.seed, number, b"") for number in range(1, parent.num_submitted + 1)}
        children = [task.task_id for task in self._tasks.values() if task.task_id[:_HEAD_BYTES] in heads]
        for task_id in children:
            self.cancel_own(task_id, force and ids.is_normal_task(task_id), True)
