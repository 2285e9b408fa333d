"""What the actor manager answers an event with: effects for others to carry out in order, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass

from ray_mono.common.ids import ActorID, NodeID, WorkerID
from ray_mono.gcs.actor.actor_state import Actor, Death


@dataclass(frozen=True)
class RowChanged:
    """Store the row. Where `announced`, publish it and answer its watchers once it is durable."""

    actor: Actor
    announced: bool = True


@dataclass(frozen=True)
class RowForgotten:
    """Delete the row of an actor that died long ago."""

    actor_id: ActorID


@dataclass(frozen=True)
class Place:
    """Find a worker for this incarnation and create the actor there, when the row is durable."""

    actor_id: ActorID
    incarnation: int
    """num_restarts at the time of this effect."""
    previous_deaths: int
    """Workers in a row that died during creation: what to back off by."""
    pause_s: float = 0.0
    """Not sooner than after this."""


@dataclass(frozen=True)
class GoOnCreating:
    """An earlier GCS has leased a worker for this incarnation: create the actor there, once, as it did."""

    actor_id: ActorID
    incarnation: int


@dataclass(frozen=True)
class StopPlacing:
    """Whatever is under way for this actor is not wanted any more."""

    actor_id: ActorID


@dataclass(frozen=True)
class EndActorWorker:
    """End this worker, when the row is durable: by force, or after the calls it has queued; where the actor
    moves, after those that run."""

    actor_id: ActorID
    node_id: NodeID
    worker_id: WorkerID
    force: bool
    death: Death
    moves: bool = False


Effect = RowChanged | RowForgotten | Place | GoOnCreating | StopPlacing | EndActorWorker


class ActorNameTaken(Exception):
    """A living actor has the name."""

    def __init__(self, existing: Actor) -> None:
        registration = existing.registration
        super().__init__(
            f"an actor named {registration.name!r} exists in namespace {registration.namespace!r}: "
            f"actor {existing.actor_id.hex()} of class {registration.class_name}; "
            "choose another name, or pass get_if_exists=True"
        )
        self.existing = existing
