"""The machine that decides over actors: events in, effects out.

It owns the table of actors, who has which name, and which worker is which actor's. It does not know how a
worker is found (`actor_scheduler.py`), what is kept beside the row (`actor_table.py`), or what RPC ends a
worker (`actor_ender.py`).

How it works: every event finds its actor and checks that it is about the present incarnation. (A death is
reported from several sides, late and twice; a stale report has no effect.) Then `_move` moves the row along
`actor_state.TRANSITIONS`: it is the only place where a state changes. Effects come in the order in which they
are to happen: RowChanged first, and what others can see of the rest only when that row is durable.

- A worker's death starts the actor again while num_restarts is below max_restarts (-1: always). It does not
  where the actor was asked to end (`ending`) or ended on purpose. A death before the constructor returned
  counts the same. Where its node ran short of memory it pauses first: until then the raylet can see whether
  that was enough, and kill another. Else it would kill the same one, the newest, while its restarts last.
- A named actor whose arguments are not there has its name, and is not placed before its owner says that they
  are (`arguments_came`). Only its owner knows them: it dies with that, also where it is detached.
- A waiting actor that is ended is DEAD at once: no worker has to agree. A living one that is ended by force
  is DEAD as soon, and its worker is killed afterwards.
- A living one that is ended without force (no handle is left) first finishes the calls that it has queued.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import fields, replace

from ray_mono.common.ids import ActorID, JobID, NodeID, PlacementGroupID, WorkerID
from ray_mono.common.our_bug import InternalError
from ray_mono.gcs.actor.actor_effects import (
    ActorNameTaken,
    Effect,
    EndActorWorker,
    GoOnCreating,
    Place,
    RowChanged,
    RowForgotten,
    StopPlacing,
)
from ray_mono.gcs.actor.actor_state import (
    FINAL_KINDS,
    Actor,
    ActorEvent,
    ActorLife,
    ActorRegistration,
    Death,
    DeathKind,
    next_state,
)
from ray_mono.gcs.forgetting import oldest

logger = logging.getLogger(__name__)

# Transitions remembered per actor.
STORY_MAX = 12


class ActorManager:
    """All actors of the cluster. Times are seconds since the epoch, given by the caller."""

    def __init__(self, dead_actors_max: int) -> None:
        self._dead_actors_max = dead_actors_max
        # In the order of registration.
        self._actors: dict[ActorID, Actor] = {}
        # Invariant: exactly the named actors that are neither dead nor asked to end. A name never leads to
        # one that goes.
        self._by_name: dict[tuple[str, str], ActorID] = {}
        # Invariant: exactly the actors that have a worker_id, and each worker serves one actor.
        self._by_worker: dict[WorkerID, ActorID] = {}
        # Invariant: by owner, exactly the actors that die with it.
        self._owned: dict[WorkerID, dict[ActorID, None]] = {}
        # Invariant: exactly the dead actors with the times of their deaths, in their order.
        self._dead: dict[ActorID, float] = {}

    # ---- questions

    def get(self, actor_id: ActorID) -> Actor | None:
        return self._actors.get(actor_id)

    def named(self, namespace: str, name: str) -> Actor | None:
        """The actor that has the name: not dead, and not on its way out."""
        actor_id = self._by_name.get((namespace, name))
        return None if actor_id is None else self._actors[actor_id]

    def names(self) -> list[tuple[str, str]]:
        """(namespace, name) of all actors that have one, sorted."""
        return sorted(self._by_name)

    def of_worker(self, worker_id: WorkerID) -> Actor | None:
        """The actor, alive or in the making, whose worker this is."""
        return self._actors[self._by_worker[worker_id]] if worker_id in self._by_worker else None

    def all(self) -> list[Actor]:
        return list(self._actors.values())

    # ---- registration and placement

    def register(
        self, registration: ActorRegistration, now_s: float, awaits_arguments: bool = False
    ) -> list[Effect]:
        """A new actor.

        Registering an id again (an owner that missed the answer) has no effect. Raises ActorNameTaken.
        """
        if registration.actor_id in self._actors:
            return []
        actor = Actor(
            registration,
            ActorLife.DEPENDENCIES_UNREADY,
            version=int(awaits_arguments),  # what others can see
            start_time_s=now_s,
            story=("registered",),
        )
        if actor.held_name is not None:
            holder = self._by_name.get(actor.held_name)
            if holder is not None:
                raise ActorNameTaken(self._actors[holder])
            self._by_name[actor.held_name] = actor.actor_id
        self._actors[actor.actor_id] = actor
        self._own(actor)
        return [RowChanged(actor)] if awaits_arguments else self.arguments_came(registration.actor_id)

    def arguments_came(self, actor_id: ActorID) -> list[Effect]:
        """Its owner knows where all of them are, and the executor fetches them: it can be placed. No effects:
        that was known, or it is dead."""
        actor = self._actors[actor_id]
        if actor.state is not ActorLife.DEPENDENCIES_UNREADY:
            return []
        actor = self._move(actor, ActorEvent.DEPENDENCIES_READY)
        return [RowChanged(actor), self._place(actor)]

    def argument_failed(self, actor_id: ActorID, death: Death, now_s: float) -> list[Effect]:
        """One that it awaits is an error. No effects: it awaits none."""
        actor = self._actors[actor_id]
        return self._bury(actor, death, now_s) if actor.state is ActorLife.DEPENDENCIES_UNREADY else []

    def restore(self, actors: Iterable[Actor], waits: Callable[[Actor], bool]) -> list[Effect]:
        """Takes over the rows of an earlier GCS. Those that wait are not placed yet.

        A worker that was leased for a creation goes on with it. A worker that was asked to end is asked
        again: it may not have heard.
        """
        effects: list[Effect] = []
        for actor in sorted(actors, key=lambda actor: (actor.start_time_s, actor.actor_id)):
            self._actors[actor.actor_id] = actor
            self._own(actor)
            if actor.held_name is not None:
                self._by_name[actor.held_name] = actor.actor_id
            if actor.worker_id is not None:
                self._by_worker[actor.worker_id] = actor.actor_id
            if actor.ending is not None:
                effects += self._end_worker(actor, actor.ending, force=False)
            if actor.killing is not None:
                effects += self._end_worker(actor, actor.killing, force=not actor.leaves)
            if not waits(actor):
                effects += self.go_on_placing(actor.actor_id)
        dead = [actor for actor in self._actors.values() if actor.state is ActorLife.DEAD]
        self._dead = {
            actor.actor_id: actor.end_time_s for actor in sorted(dead, key=lambda actor: actor.end_time_s)
        }
        return effects

    def go_on_placing(self, actor_id: ActorID) -> list[Effect]:
        """What an earlier GCS had begun for an actor that waits for a place."""
        actor = self._actors[actor_id]
        if not actor.is_waiting_for_place:
            return []
        is_leased = actor.worker_id is not None
        return [GoOnCreating(actor_id, actor.num_restarts) if is_leased else self._place(actor)]

    def adopt(self, actor: Actor, now_s: float) -> list[Effect]:
        """An actor that lived under an earlier GCS, as its worker or its owner tells it. No effects: that is
        known, or something later is."""
        known = self._actors.get(actor.actor_id)
        if known is not None:
            return self._replace(known, actor, now_s) if _progress(actor) > _progress(known) else []
        if actor.held_name in self._by_name:
            # It came too late for its name.
            actor = replace(actor, registration=replace(actor.registration, name=""))
        self._actors[actor.actor_id] = actor
        self._own(actor)
        if actor.held_name is not None:
            self._by_name[actor.held_name] = actor.actor_id
        if actor.worker_id is not None:
            self._by_worker[actor.worker_id] = actor.actor_id
        return [RowChanged(actor)]

    def _replace(self, known: Actor, told: Actor, now_s: float) -> list[Effect]:
        """What is known of an actor, by something later. The worker that was known is of an earlier
        incarnation, or a second one of the same: it ends, and what was sought is a place for that one."""
        if known.state is ActorLife.DEAD:
            return []
        version = max(told.version, known.version + 1)
        told = replace(told, version=version, registration=known.registration, ending=known.ending)
        self._save(known, **{field.name: getattr(told, field.name) for field in fields(told)})
        effects: list[Effect] = [RowChanged(told)]
        if known.is_waiting_for_place:
            effects.append(StopPlacing(told.actor_id))
        if known.worker_id != told.worker_id:
            effects += self._end_worker(known, Death(DeathKind.WORKER_DIED, "its actor has a later process"))
        if told.ending is None:
            return effects
        if told.state is ActorLife.ALIVE:
            return effects + self._end_worker(told, told.ending, force=False)
        return effects + self._bury(told, told.ending, now_s)

    def leased(
        self, actor_id: ActorID, incarnation: int, node_id: NodeID, worker_id: WorkerID, now_s: float
    ) -> list[Effect]:
        """A worker was granted for this incarnation. Its creation may be pushed once the row is durable.

        No effects: it is not wanted any more. now_s: by the loop.
        """
        actor = self._actors.get(actor_id)
        if (
            actor is None
            or not actor.is_waiting_for_place
            or actor.num_restarts != incarnation
            or actor.worker_id is not None
        ):
            return []
        had_reason = bool(actor.pending_reason)
        actor = self._save(
            actor,
            node_id=node_id,
            worker_id=worker_id,
            placed_at_s=now_s,
            pending_reason="",
            version=actor.version + had_reason,
        )
        return [RowChanged(actor, announced=had_reason)]

    def given_back(self, actor_id: ActorID, worker_id: WorkerID) -> list[Effect]:
        """The worker did not begin the creation: the actor waits for another, and no restart is spent."""
        actor = self._of_worker(actor_id, worker_id)
        if actor is None or not actor.is_waiting_for_place:
            return []
        return [RowChanged(self._save(actor, node_id=None, worker_id=None), announced=False)]

    def created(self, actor_id: ActorID, worker_id: WorkerID) -> list[Effect]:
        """The constructor returned."""
        actor = self._of_worker(actor_id, worker_id)
        if actor is None:
            return []
        actor = self._move(actor, ActorEvent.CREATED, pending_reason="", creations_failed=0, is_moving=False)
        return [RowChanged(actor)]

    def creation_failed(self, actor_id: ActorID, death: Death, now_s: float) -> list[Effect]:
        """The constructor raised, or no worker can ever run it: the actor is dead, and its worker ends."""
        actor = self._actors.get(actor_id)
        if actor is None or not actor.is_waiting_for_place:
            return []
        return self._bury(actor, death, now_s)

    def waits_because(self, actor_id: ActorID, reason: str) -> list[Effect]:
        """Why the actor still has no place, one sentence."""
        actor = self._actors.get(actor_id)
        if actor is None or not actor.is_waiting_for_place or actor.pending_reason == reason:
            return []
        return [RowChanged(self._save(actor, pending_reason=reason, version=actor.version + 1))]

    # ---- deaths

    def worker_died(self, worker_id: WorkerID, death: Death, now_s: float) -> list[Effect]:
        """A worker or driver ended: its actor is started again or dies.

        Actors that it owned die too, but for the detached ones.
        """
        effects: list[Effect] = []
        actor_id = self._by_worker.get(worker_id)
        if actor_id is not None:
            effects += self._lose_worker(self._actors[actor_id], death, now_s)
        return effects + self._end_owned(
            worker_id, f"its owner, worker {worker_id.hex()}, died: {death.message}", now_s
        )

    def node_died(self, node_id: NodeID, death: Death, now_s: float) -> list[Effect]:
        """All workers of a node are gone. Owners first: what they owned is not worth a restart elsewhere."""
        owners = dict.fromkeys(
            actor.registration.owner_worker_id
            for actor in self._living()
            if actor.registration.owner_node_id == node_id
        )
        effects: list[Effect] = []
        for owner in owners:
            effects += self._end_owned(owner, f"its owner died with node {node_id.hex()}", now_s)
        for actor in self._living():
            if actor.node_id == node_id and actor.worker_id is not None:
                effects += self._lose_worker(actor, death, now_s)
        return effects

    def job_finished(self, job_id: JobID, now_s: float, why_lost: str = "") -> list[Effect]:
        """Ends the job's actors, but for the detached ones and those below them. why_lost: where the driver
        did not end, as far as is known."""
        end = f"is lost ({why_lost})" if why_lost else "has ended"
        message = f"the driver of its job {job_id.hex()} {end}, and it was not detached"
        death = Death(DeathKind.JOB_FINISHED, message)
        effects: list[Effect] = []
        for actor in self._living():
            if actor.registration.job_id == job_id and actor.registration.ends_with_job:
                effects += self._bury(actor, death, now_s)
        return effects

    def group_removed(self, group_id: PlacementGroupID, because: str, now_s: float) -> list[Effect]:
        """Ends the actors that live in this placement group, or wait for it."""
        death = Death(
            DeathKind.PLACEMENT_GROUP_REMOVED, f"its placement group {group_id.hex()} was removed: {because}"
        )
        effects: list[Effect] = []
        for actor in self._living():
            if actor.registration.group_id == group_id:
                effects += self._bury(actor, death, now_s)
        return effects

    def kill(self, actor_id: ActorID, force: bool, no_restart: bool, now_s: float) -> list[Effect]:
        """What kill() asks for. Raises KeyError for an unknown actor.

        Without no_restart the worker is killed, and the actor started again while its restarts last.
        """
        actor = self._actors[actor_id]
        if actor.state is ActorLife.DEAD:
            return []
        death = Death(DeathKind.KILLED, "killed by kill()")
        if not no_restart:
            return self._kill_worker(actor, death)
        if force or actor.state is not ActorLife.ALIVE:
            return self._bury(actor, death, now_s)
        return self._end_gracefully(actor, death)

    def movable(self, node_id: NodeID) -> list[Actor]:
        """The living actors of a node that may start elsewhere if it is drained, or are about to."""
        return [
            actor
            for actor in self._living()
            if actor.node_id == node_id
            and actor.state is ActorLife.ALIVE
            and actor.ending is None
            and (actor.killing is None or actor.leaves)
            and actor.has_restarts(is_preempted=True)
        ]

    def move(self, actor_id: ActorID, death: Death) -> list[Effect]:
        """Its node is drained, and there is a place elsewhere: its worker ends the calls that run, and it
        starts there."""
        return self._kill_worker(self._actors[actor_id], death, force=False)

    def left(self, worker_id: WorkerID, now_s: float) -> list[Effect]:
        """Nothing of the actor that moves runs in this worker any more. The worker may stay for what it
        owns."""
        actor = self.of_worker(worker_id)
        if actor is None or actor.killing is None or not actor.leaves:
            return []
        return self._lose_worker(actor, actor.killing, now_s, has_left=True)

    def out_of_scope(self, actor_id: ActorID, now_s: float) -> list[Effect]:
        """No handle is left. A detached actor does not mind. Raises KeyError for an unknown actor."""
        actor = self._actors[actor_id]
        if actor.state is ActorLife.DEAD or actor.registration.is_detached:
            return []
        death = Death(DeathKind.OUT_OF_SCOPE, "no handle to the actor is left")
        if actor.state is ActorLife.ALIVE:
            return self._end_gracefully(actor, death)
        return self._bury(actor, death, now_s)

    # ---- steps

    def _living(self) -> list[Actor]:
        return [actor for actor in self._actors.values() if actor.state is not ActorLife.DEAD]

    def _of_worker(self, actor_id: ActorID, worker_id: WorkerID) -> Actor | None:
        """The actor, if that is still its worker."""
        return self._actors[actor_id] if self._by_worker.get(worker_id) == actor_id else None

    def _own(self, actor: Actor) -> None:
        if actor.dies_with_owner:
            self._owned.setdefault(actor.registration.owner_worker_id, {})[actor.actor_id] = None

    def _disown(self, actor: Actor) -> None:
        owned = self._owned[actor.registration.owner_worker_id]
        del owned[actor.actor_id]
        if not owned:
            del self._owned[actor.registration.owner_worker_id]

    def _end_owned(self, owner: WorkerID, message: str, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for actor_id in list(self._owned.get(owner, ())):
            effects += self._bury(self._actors[actor_id], Death(DeathKind.OWNER_DIED, message), now_s)
        return effects

    def _end_gracefully(self, actor: Actor, death: Death) -> list[Effect]:
        if actor.ending is not None:
            return []
        actor = self._save(actor, ending=death)
        return [RowChanged(actor, announced=False), *self._end_worker(actor, death, force=False)]

    def _kill_worker(self, actor: Actor, death: Death, force: bool = True) -> list[Effect]:
        is_asked = actor.killing is not None and not (force and actor.leaves)
        if actor.state is not ActorLife.ALIVE or is_asked:
            return []
        actor = self._save(actor, killing=death)
        return [RowChanged(actor, announced=False), *self._end_worker(actor, death, force)]

    def _lose_worker(self, actor: Actor, death: Death, now_s: float, has_left: bool = False) -> list[Effect]:
        is_preempted = death.is_preempted or (actor.killing is not None and actor.killing.is_preempted)
        has_restarts = actor.has_restarts(is_preempted)
        if actor.ending is not None or death.kind in FINAL_KINDS or not has_restarts:
            # The worker is gone already: forgetting it keeps _bury from ending it.
            actor = self._save(actor, node_id=None, worker_id=None)
            return self._bury(actor, actor.ending or death, now_s)
        actor = self._move(
            actor,
            ActorEvent.WORKER_LOST,
            num_restarts=actor.num_restarts + 1,
            num_restarts_preempted=actor.num_restarts_preempted + is_preempted,
            node_id=None,
            worker_id=None,
            killing=None,
            is_moving=has_left,
            lost_on=actor.node_id,
            lost_because=(actor.killing or death).message,
            pending_reason="",
            creations_failed=actor.creations_failed + (actor.state is not ActorLife.ALIVE),
        )
        return [RowChanged(actor), StopPlacing(actor.actor_id), self._place(actor, death.pause_s)]

    def _bury(self, actor: Actor, death: Death, now_s: float) -> list[Effect]:
        ended = [] if death.kind is DeathKind.CREATION_FAILED else self._end_worker(actor, death)
        was_waiting = actor.is_waiting_for_place
        actor = self._move(
            actor,
            ActorEvent.ENDED,
            end_time_s=now_s,
            death=death,
            ending=None,
            killing=None,
            is_moving=False,
            pending_reason="",
            node_id=None,
            worker_id=None,
        )
        self._dead[actor.actor_id] = now_s
        stop: list[Effect] = [StopPlacing(actor.actor_id)] if was_waiting else []
        return [RowChanged(actor), *stop, *ended, *self.forget_oldest()]

    def forget_oldest(self, ended_before_s: float = 0.0) -> list[Effect]:
        """Drops the dead beyond the limit, and those that died before a time."""
        effects: list[Effect] = []
        for actor_id in oldest(self._dead, self._dead_actors_max, lambda time_s: time_s < ended_before_s):
            del self._dead[actor_id], self._actors[actor_id]
            effects.append(RowForgotten(actor_id))
        return effects

    def _end_worker(self, actor: Actor, death: Death, force: bool = True) -> list[Effect]:
        if actor.node_id is None or actor.worker_id is None:
            return []
        moves = not force and actor.leaves and actor.ending is None
        return [EndActorWorker(actor.actor_id, actor.node_id, actor.worker_id, force, death, moves)]

    def _place(self, actor: Actor, pause_s: float = 0.0) -> Place:
        return Place(actor.actor_id, actor.num_restarts, actor.creations_failed, pause_s)

    def _move(self, actor: Actor, event: ActorEvent, **changes: object) -> Actor:
        """The one place where a state changes. Raises IllegalActorTransition and changes nothing."""
        state = next_state(actor, event)
        moved = self._save(actor, state=state, version=actor.version + 1, **changes)
        cause = "" if moved.death is None else f": {moved.death.kind.name}, {moved.death.message}"
        logger.info(
            "actor %s (%s) %s → %s%s",
            moved.actor_id.hex(),
            moved.registration.class_name,
            actor.state.name,
            state.name,
            cause,
        )
        return moved

    def _save(self, actor: Actor, **changes: object) -> Actor:
        """Replaces the row, and keeps the indices of names, owners and workers with it."""
        saved: Actor = replace(actor, **changes)  # type: ignore[arg-type]
        if saved.state is not actor.state:
            saved = replace(
                saved, story=(*actor.story, f"{saved.state.name}#{saved.num_restarts}")[-STORY_MAX:]
            )
        if actor.held_name is not None and saved.held_name is None:
            del self._by_name[actor.held_name]
        if actor.dies_with_owner and not saved.dies_with_owner:
            self._disown(actor)
        if actor.worker_id is not None and saved.worker_id != actor.worker_id:
            del self._by_worker[actor.worker_id]
        if saved.worker_id is not None:
            self._by_worker[saved.worker_id] = saved.actor_id
        self._actors[saved.actor_id] = saved
        return saved

    # ---- invariants

    def check_invariants(self) -> None:
        """Recounts what is kept twice. Raises InternalError."""
        living = self._living()
        names = {actor.held_name: actor.actor_id for actor in living if actor.held_name is not None}
        rows = self.all()
        workers = {actor.worker_id: actor.actor_id for actor in rows if actor.worker_id is not None}
        dead = {actor.actor_id for actor in rows if actor.state is ActorLife.DEAD}
        owned = {
            (actor.registration.owner_worker_id, actor.actor_id) for actor in living if actor.dies_with_owner
        }
        stored_owned = {(owner, actor_id) for owner, ids in self._owned.items() for actor_id in ids}
        indices: tuple[tuple[str, object, object], ...] = (
            ("names", self._by_name, names),
            ("workers", self._by_worker, workers),
            ("owners", stored_owned, owned),
            ("dead", set(self._dead), dead),
        )
        for what, stored, counted in indices:
            if stored != counted:
                raise InternalError(
                    f"the index of {what} of the actors holds {stored}, the rows say {counted}"
                )
        for actor in rows:
            if (actor.state is ActorLife.DEAD) != (actor.death is not None) or (actor.node_id is None) != (
                actor.worker_id is None
            ):
                raise InternalError(f"the row of an actor contradicts itself: {actor}")
            asked = actor.ending or actor.killing
            if asked is not None and actor.state is not ActorLife.ALIVE:
                raise InternalError(f"an actor that does not live is asked to end: {actor}")
            if actor.state is ActorLife.ALIVE and actor.worker_id is None:
                raise InternalError(f"an actor is alive without a worker: {actor}")


def _progress(actor: Actor) -> tuple[int, bool, bool]:
    """Of two rows of one actor the one with more is the later one."""
    return actor.num_restarts, actor.worker_id is not None, actor.state is ActorLife.ALIVE
