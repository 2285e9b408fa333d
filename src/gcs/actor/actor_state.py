"""The life of an actor: its states, what can happen in each, and the row that the actor manager keeps.

The row holds what decisions are made from. What is only kept and handed on (the creation task, addresses, the
pickled handle) stays in the ActorInfo message that `actor_table.py` holds beside it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ray_mono.common.ids import ActorID, JobID, NodeID, PlacementGroupID, WorkerID
from ray_mono.common.our_bug import InternalError


class ActorLife(enum.IntEnum):
    """The numbers of the wire's ActorState."""

    DEPENDENCIES_UNREADY = 0
    PENDING_CREATION = 1
    ALIVE = 2
    RESTARTING = 3
    DEAD = 4


class ActorEvent(enum.Enum):
    DEPENDENCIES_READY = enum.auto()
    """The arguments of its constructor are there, as its owner says."""
    CREATED = enum.auto()
    """The constructor returned."""
    WORKER_LOST = enum.auto()
    """The worker is gone, and the actor may be started again."""
    ENDED = enum.auto()
    """For good."""


TRANSITIONS: dict[tuple[ActorLife, ActorEvent], ActorLife] = {
    (ActorLife.DEPENDENCIES_UNREADY, ActorEvent.DEPENDENCIES_READY): ActorLife.PENDING_CREATION,
    (ActorLife.DEPENDENCIES_UNREADY, ActorEvent.ENDED): ActorLife.DEAD,
    (ActorLife.PENDING_CREATION, ActorEvent.CREATED): ActorLife.ALIVE,
    (ActorLife.PENDING_CREATION, ActorEvent.WORKER_LOST): ActorLife.RESTARTING,
    (ActorLife.PENDING_CREATION, ActorEvent.ENDED): ActorLife.DEAD,
    (ActorLife.ALIVE, ActorEvent.WORKER_LOST): ActorLife.RESTARTING,
    (ActorLife.ALIVE, ActorEvent.ENDED): ActorLife.DEAD,
    (ActorLife.RESTARTING, ActorEvent.CREATED): ActorLife.ALIVE,
    (ActorLife.RESTARTING, ActorEvent.WORKER_LOST): ActorLife.RESTARTING,
    (ActorLife.RESTARTING, ActorEvent.ENDED): ActorLife.DEAD,
}


class DeathKind(enum.IntEnum):
    """The numbers of the wire's DeathCause.Kind."""

    UNKNOWN = 0
    WORKER_DIED = 1
    NODE_DIED = 2
    OWNER_DIED = 3
    OUT_OF_SCOPE = 4
    KILLED = 5
    EXITED = 6
    CREATION_FAILED = 7
    JOB_FINISHED = 8
    UNSCHEDULABLE = 9
    OUT_OF_MEMORY = 10
    PLACEMENT_GROUP_REMOVED = 11


# A worker that ended for one of these did so on purpose: its actor is not started again.
FINAL_KINDS = frozenset(
    {
        DeathKind.OWNER_DIED,
        DeathKind.OUT_OF_SCOPE,
        DeathKind.EXITED,
        DeathKind.CREATION_FAILED,
        DeathKind.JOB_FINISHED,
        DeathKind.PLACEMENT_GROUP_REMOVED,
    }
)


@dataclass(frozen=True)
class Death:
    """Why something died."""

    kind: DeathKind
    message: str
    exit_code: int = 0
    signal: int = 0
    error: bytes = b""
    """For CREATION_FAILED: the serialized SerializedObject of the exception."""
    is_preempted: bool = False
    """Its node was drained, since its provider takes it away."""
    pause_s: float = 0.0
    """For OUT_OF_MEMORY: what it ran does not run again sooner."""


@dataclass(frozen=True)
class ActorRegistration:
    """What an owner says of an actor when it registers it."""

    actor_id: ActorID
    job_id: JobID
    owner_worker_id: WorkerID
    owner_node_id: NodeID
    class_name: str
    name: str
    """Empty: not named."""
    namespace: str
    is_detached: bool
    max_restarts: int
    """-1: without end."""
    outlives_job: bool = False
    """It is below a detached actor."""
    group_id: PlacementGroupID | None = None
    """The placement group that it lives in, and ends with."""

    @property
    def ends_with_job(self) -> bool:
        return not (self.is_detached or self.outlives_job)


@dataclass(frozen=True)
class Actor:
    """One actor. Replaced, never changed."""

    registration: ActorRegistration
    state: ActorLife
    version: int
    """Grows with every change that others can see."""
    start_time_s: float
    end_time_s: float = 0.0
    num_restarts: int = 0
    num_restarts_preempted: int = 0
    """Of these: they do not count against max_restarts."""
    node_id: NodeID | None = None
    worker_id: WorkerID | None = None
    """Of the incarnation that is alive or being created; both None while it is not placed, and when dead."""
    placed_at_s: float = 0.0
    """By this head's loop; 0 where an earlier head did it."""
    lost_on: NodeID | None = None
    """Where the last worker was when it was lost: it may still run there, if the node is only silent."""
    lost_because: str = ""
    """Why it was lost, for people; empty where none was."""
    creations_failed: int = 0
    """Workers in a row that died before the constructor returned."""
    ending: Death | None = None
    """Set only while it is alive: its worker was asked to end, for this cause. It is not started again."""
    killing: Death | None = None
    """Set only while it is alive: its worker is being killed, or ends since the actor moves, for this cause.
    It may start again."""
    is_moving: bool = False
    """Set only while it restarts: its last worker has ended its calls, and gave the others back."""
    death: Death | None = None
    """Set when, and only when, the state is DEAD."""
    pending_reason: str = ""
    story: tuple[str, ...] = ()
    """The latest transitions, for error messages."""

    @property
    def actor_id(self) -> ActorID:
        return self.registration.actor_id

    @property
    def restarts_left(self) -> int | None:
        """None: as many as it takes."""
        counted = self.num_restarts - self.num_restarts_preempted
        most = self.registration.max_restarts
        return None if most < 0 else max(0, most - counted)

    def has_restarts(self, is_preempted: bool) -> bool:
        """Whether it may start once more. As in Ray, an actor that restarts at all always does where its node
        is taken away."""
        return self.restarts_left != 0 or (is_preempted and self.registration.max_restarts > 0)

    @property
    def leaves(self) -> bool:
        """Whether its worker was asked to let it go, since its node is drained."""
        return self.killing is not None and self.killing.kind is DeathKind.NODE_DIED

    @property
    def held_name(self) -> tuple[str, str] | None:
        """(namespace, name) that leads to it; None where it has no name, is dead, or was asked to end."""
        if not self.registration.name or self.state is ActorLife.DEAD or self.ending is not None:
            return None
        return self.registration.namespace, self.registration.name

    @property
    def dies_with_owner(self) -> bool:
        """Also a detached one, as long as nobody else knows its arguments."""
        if self.state is ActorLife.DEAD:
            return False
        return not self.registration.is_detached or self.state is ActorLife.DEPENDENCIES_UNREADY

    @property
    def is_waiting_for_place(self) -> bool:
        return self.state in (ActorLife.PENDING_CREATION, ActorLife.RESTARTING)


class IllegalActorTransition(InternalError):
    """An event that cannot happen in the actor's state."""

    def __init__(self, actor: Actor, event: ActorEvent) -> None:
        story = " → ".join(actor.story) or "none"
        super().__init__(
            f"actor {actor.actor_id.hex()} ({actor.registration.class_name}) is {actor.state.name}, "
            f"where {event.name} cannot happen; its story: {story}"
        )


def next_state(actor: Actor, event: ActorEvent) -> ActorLife:
    """The state after `event`. Raises IllegalActorTransition, with the actor's story."""
    state = TRANSITIONS.get((actor.state, event))
    if state is None:
        raise IllegalActorTransition(actor, event)
    return state
