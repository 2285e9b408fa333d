"""An actor manager whose invariants are recounted after every event, and actors for its scenes."""

from __future__ import annotations

from ray_mono.common.ids import ActorID, JobID, NodeID, WorkerID
from ray_mono.gcs.actor.actor_effects import (
    Effect,
)
from ray_mono.gcs.actor.actor_manager import ActorManager
from ray_mono.gcs.actor.actor_state import (
    Actor,
    ActorRegistration,
    Death,
    DeathKind,
)

JOB = JobID.from_int(1)
OWNER, OTHER_OWNER = WorkerID(b"o" * 28), WorkerID(b"p" * 28)
OWNER_NODE, NODE, OTHER_NODE = NodeID(b"0" * 28), NodeID(b"1" * 28), NodeID(b"2" * 28)
WORKER, NEXT_WORKER = WorkerID(b"w" * 28), WorkerID(b"x" * 28)
CRASH = Death(DeathKind.WORKER_DIED, "it was killed", signal=9)


def actor_id(number: int) -> ActorID:
    return ActorID(number.to_bytes(12, "big") + JOB.binary())


def registration(
    number: int = 1,
    name: str = "",
    max_restarts: int = 0,
    is_detached: bool = False,
    owner: WorkerID = OWNER,
    job_id: JobID = JOB,
) -> ActorRegistration:
    return ActorRegistration(
        actor_id(number), job_id, owner, OWNER_NODE, "Counter", name, "space", is_detached, max_restarts
    )


class Scene:
    """A manager whose invariants hold after every event."""

    def __init__(self, dead_actors_max: int = 100) -> None:
        self.manager = ActorManager(dead_actors_max)
        self.now_s = 0.0

    def do(self, event: str, *args: object, **kwargs: object) -> list[Effect]:
        effects: list[Effect] = getattr(self.manager, event)(*args, **kwargs)
        self.manager.check_invariants()
        return effects

    def actor(self, number: int = 1) -> Actor:
        actor = self.manager.get(actor_id(number))
        assert actor is not None
        return actor

    def pending(self, **kwargs: object) -> Actor:
        self.do("register", registration(**kwargs), now_s=1.0)  # type: ignore[arg-type]
        return self.actor(int(str(kwargs.get("number", 1))))

    def unready(self, **kwargs: object) -> Actor:
        """One that awaits its arguments."""
        self.do("register", registration(**kwargs), now_s=1.0, awaits_arguments=True)  # type: ignore[arg-type]
        return self.actor(int(str(kwargs.get("number", 1))))

    def creating(self, **kwargs: object) -> Actor:
        actor = self.pending(**kwargs)
        self.do("leased", actor.actor_id, 0, NODE, WORKER, now_s=1.0)
        return self.actor(int(str(kwargs.get("number", 1))))

    def alive(self, **kwargs: object) -> Actor:
        actor = self.creating(**kwargs)
        self.do("created", actor.actor_id, WORKER)
        return self.actor(int(str(kwargs.get("number", 1))))


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects]
