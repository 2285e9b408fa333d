"""The life of a worker process as its raylet sees it: one table, and nothing happens that is not in it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ray_mono.raylet.scheduling.leases import Binding

STORY_MAX = 12
"""Steps of its life that a worker remembers, for error messages: a whole life has about six."""


class WorkerState(enum.Enum):
    STARTING = "starting"  # the launcher was asked; it has not registered
    IDLE = "idle"
    LEASED = "leased"
    ACTOR = "actor"  # one lease for the rest of its life
    LEAVING = "leaving"  # without a lease; ends by itself once nobody needs what it owns
    ENDING = "ending"  # told to end; the process may still run and holds what it held
    DEAD = "dead"


class WorkerEvent(enum.Enum):
    REGISTERED = "registered"
    LEASED = "got a lease"
    LEASED_FOR_ACTOR = "became an actor"
    GIVEN_BACK = "given back"
    LEAVES = "leaves"
    TOLD_TO_END = "told to end"
    REFUSED_TO_END = "refused to end"
    DIED = "died"


_S, _E = WorkerState, WorkerEvent
TRANSITIONS: dict[tuple[WorkerState, WorkerEvent], WorkerState] = {
    (_S.STARTING, _E.REGISTERED): _S.IDLE,
    (_S.STARTING, _E.TOLD_TO_END): _S.ENDING,
    (_S.STARTING, _E.DIED): _S.DEAD,
    (_S.IDLE, _E.LEASED): _S.LEASED,
    (_S.IDLE, _E.LEASED_FOR_ACTOR): _S.ACTOR,
    (_S.IDLE, _E.TOLD_TO_END): _S.ENDING,
    (_S.IDLE, _E.DIED): _S.DEAD,
    (_S.LEASED, _E.GIVEN_BACK): _S.IDLE,
    (_S.LEASED, _E.LEAVES): _S.LEAVING,
    (_S.LEASED, _E.TOLD_TO_END): _S.ENDING,
    (_S.LEASED, _E.DIED): _S.DEAD,
    (_S.ACTOR, _E.LEAVES): _S.LEAVING,
    (_S.ACTOR, _E.TOLD_TO_END): _S.ENDING,
    (_S.ACTOR, _E.DIED): _S.DEAD,
    (_S.LEAVING, _E.TOLD_TO_END): _S.ENDING,
    (_S.LEAVING, _E.DIED): _S.DEAD,
    (_S.ENDING, _E.TOLD_TO_END): _S.ENDING,
    # Only one that was asked while idle may refuse: the others were not asked.
    (_S.ENDING, _E.REFUSED_TO_END): _S.IDLE,
    (_S.ENDING, _E.DIED): _S.DEAD,
}


@dataclass
class Worker:
    """One worker process."""

    worker_id: bytes
    startup_token: int
    """0 for a worker that was started by hand: this raylet is not its parent."""
    state: WorkerState = WorkerState.STARTING
    since_s: float = 0.0
    """When it came into `state`."""
    pid: int = 0
    binding: Binding | None = None
    """None until its first lease."""
    lease_id: bytes | None = None
    """Set from the grant until the lease is given back or the process is dead."""
    end_reason: str = ""
    """Why it was told to end; part of the message when it did."""
    story: list[str] = field(default_factory=list)

    def step(self, event: WorkerEvent, now_s: float) -> None:
        """Moves on. Raises RuntimeError with the worker's story for a pair that is not in the table; nothing
        changed then.
        """
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise RuntimeError(
                f"worker {self.worker_id.hex()[:8]} (pid {self.pid}) is {self.state.value} and cannot be "
                f"'{event.value}'; so far: {', '.join(self.story) or 'nothing'}"
            )
        self.story = [*self.story[1 - STORY_MAX :], event.value]
        self.state = following
        self.since_s = now_s
