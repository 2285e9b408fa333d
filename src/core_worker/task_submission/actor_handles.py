"""The actors that this process has handles of. An object stands for each actor; while that is referenced
somewhere, the actor lives."""

from __future__ import annotations

from typing import Any

from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import CallRules
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.called_actor import CalledActor
from ray_mono.protobuf import gcs_pb2


class HeldActor:
    """What one handle holds: the actor as this process sees it, and the reference that keeps it alive. A weak
    handle has no reference."""

    __slots__ = ("actor", "actor_id", "creation_ids", "creation_ref")

    def __init__(self, actor: CalledActor, creation_ref: ObjectRef[Any] | None) -> None:
        self.actor = actor
        self.actor_id = actor.actor_id
        self.creation_ref = creation_ref
        # What each call holds, so that the actor does not end before it.
        self.creation_ids = () if creation_ref is None else (creation_ref._id,)


class ActorHandles:
    """The actor handles of one process. Lock held."""

    def __init__(self, env: Environment, actor_tasks: ActorTaskSubmitter) -> None:
        self._env = env
        self._actor_tasks = actor_tasks
        # Id of the object that stands for an actor → actor id: of all actors with a handle here that is not
        # weak, and of those that this process created and that end with their last handle.
        self._actors: dict[bytes, bytes] = {}
        self._owned: dict[bytes, bytes] = {}

    def __contains__(self, object_id: bytes) -> bool:
        """Whether the object stands for an actor."""
        return object_id in self._actors

    def owned(self) -> list[bytes]:
        """The actors whose end the GCS has yet to be told."""
        return list(self._owned.values())

    def hold(self, actor_id: bytes, creation_ref: ObjectRef[Any] | None, rules: CallRules) -> HeldActor:
        """A handle arrived, or an actor was looked up by name."""
        actor = self._actor_tasks.actor(actor_id)
        actor.follow(rules)
        if creation_ref is not None:
            actor.stands_for(creation_ref.binary())
            self._actors[actor.creation_id] = actor_id
        return HeldActor(actor, creation_ref)

    def begin(
        self, actor_id: bytes, creation_id: bytes, rules: CallRules, is_owned: bool, made_by: bytes
    ) -> CalledActor:
        """This process is about to create an actor. is_owned: it ends with its last handle. made_by: the task
        that creates it."""
        actor = self._actor_tasks.actor(actor_id)
        actor.begins(made_by)
        actor.stands_for(creation_id)
        actor.follow(rules)
        self._actors[creation_id] = actor_id
        if is_owned:
            self._owned[creation_id] = actor_id
        return actor

    def disown(self, actor: CalledActor) -> None:
        """The actor was not created, so nobody has to be told of its end."""
        self._owned.pop(actor.creation_id, None)

    def reference_ended(self, object_id: bytes) -> None:
        """An object went out of scope. If it stood for an actor, no handle is left here. If this process owns
        the actor, the GCS is told, and ends it."""
        actor_id = self._actors.pop(object_id, None)
        if actor_id is not None and self._owned.pop(object_id, None) is not None:
            request = gcs_pb2.ActorOutOfScopeRequest(actor_id=actor_id)
            self._env.gcs.ActorOutOfScope.start(request, lambda reply, error: None)
