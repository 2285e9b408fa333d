"""The life of a worker process as its raylet sees it: one table, and nothing happens that is not in it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from ray_mono.common.our_bug import InternalError
from ray_mono.raylet.worker.binding import Binding

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

    # Enum's own is Python code, which each step of each worker would run.
    __hash__ = object.__hash__


class WorkerEvent(enum.Enum):
    REGISTERED = "registered"
    LEASED = "got a lease"
    LEASED_FOR_ACTOR = "became an actor"
    GIVEN_BACK = "given back"
    LEAVES = "leaves"
    TOLD_TO_END = "told to end"
    REFUSED_TO_END = "refused to end"
    DIED = "died"

    __hash__ = object.__hash__


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
    """One worker process. Only the pool moves it on."""

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
    story: tuple[WorkerEvent, ...] = ()

    def register(self, pid: int, now_s: float) -> None:
        self._step(WorkerEvent.REGISTERED, now_s)
        self.pid = pid

    def lease(self, binding: Binding, lease_id: bytes, for_actor: bool, now_s: float) -> None:
        self._step(WorkerEvent.LEASED_FOR_ACTOR if for_actor else WorkerEvent.LEASED, now_s)
        self.binding = binding
        self.lease_id = lease_id

    def give_back(self, now_s: float) -> None:
        self._step(WorkerEvent.GIVEN_BACK, now_s)
        self.lease_id = None

    def leave(self, now_s: float) -> None:
        self._step(WorkerEvent.LEAVES, now_s)
        self.lease_id = None

    def tell_to_end(self, reason: str, now_s: float) -> None:
        """The first reason counts."""
        self._step(WorkerEvent.TOLD_TO_END, now_s)
        self.end_reason = self.end_reason or reason

    def refuse_to_end(self, now_s: float) -> None:
        self._step(WorkerEvent.REFUSED_TO_END, now_s)
        self.end_reason = ""

    def die(self, now_s: float) -> None:
        self._step(WorkerEvent.DIED, now_s)

    def describe(self, now_s: float) -> dict[str, Any]:
        """For people."""
        return {
            "worker_id": self.worker_id.hex(),
            "pid": self.pid,
            "state": self.state.value,
            "for_s": round(now_s - self.since_s, 3),
            "job_id": self.binding.job_id.hex() if self.binding else "",
            "lease_id": self.lease_id.hex() if self.lease_id else "",
            "story": [event.value for event in self.story],
        }

    def _step(self, event: WorkerEvent, now_s: float) -> None:
        """Moves on. Raises InternalError with the worker's story where the table has no such step; nothing
        has changed then."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise InternalError(
                f"worker {self.worker_id.hex()[:8]} (pid {self.pid}) is {self.state.value} and cannot be "
                f"'{event.value}'; so far: {', '.join(event.value for event in self.story) or 'nothing'}"
            )
        self.story = (*self.story[1 - STORY_MAX :], event)
        self.state = following
        self.since_s = now_s
