"""One actor as this process sees it: what is known of it, and the calls that this process has made and that are not over.

Plain bookkeeping, under the core worker's lock. What is done with the calls, and when, is actor_task_submitter.py's.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ray_mono.common.exceptions import ActorDiedError, ActorUnschedulableError
from ray_mono.common.task_error import load_packed
from ray_mono.core_worker.options import CallRules
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2

if TYPE_CHECKING:
    from ray_mono.core_worker.call_template import CallTemplate, Peer
    from ray_mono.core_worker.task_submission.task_manager import PendingTask

IN_FLIGHT_MAX = 1000
"""Calls sent to one actor and not answered. Bounds what its process must hold; the rest waits here. An actor that runs several at once
gets more, since they may wait for each other, and how many run is its own decision: there EXCESS_BYTES_MAX is the bound, and as much
again each time that nothing was answered for NO_ANSWER_S."""
WAITING_WARNED = 5000
"""When so many calls have no answer the driver is told, and again each time that they have doubled."""
EXCESS_BYTES_MAX = 256 << 20
NO_ANSWER_S = 1.0
EXCESS_BYTES_EACH = 2 << 10
"""What a waiting call takes there besides its message."""


class Actor:
    """One actor, and this process's calls to it."""

    __slots__ = (
        "__weakref__",
        "actor_id",
        "creation_id",
        "death",
        "excess",
        "excess_bytes",
        "excess_bytes_max",
        "in_flight",
        "is_looked_at",
        "num_answered",
        "num_restarts",
        "peer",
        "pending_reason",
        "queue",
        "rules",
        "sequence_number",
        "state",
        "story",
        "templates",
        "unresolved",
        "version",
        "warn_at",
        "watching",
        "worker",
    )

    def __init__(self, actor_id: bytes) -> None:
        self.actor_id = actor_id
        # Of the object that stands for the actor; empty where only the name is known.
        self.creation_id = b""
        # Not known yet.
        self.state: int = common_pb2.DEPENDENCIES_UNREADY
        self.version = 0
        self.num_restarts = 0
        self.death: common_pb2.DeathCause | None = None
        # Which actor is dead: lines for people.
        self.story = ""
        self.pending_reason = ""
        self.worker: common_pb2.Address | None = None
        self.peer: Peer | None = None
        # Of its methods, by name and options.
        self.templates: WeakValueDictionary[bytes, CallTemplate] = WeakValueDictionary()
        self.queue: deque[PendingTask] = deque()
        self.in_flight: OrderedDict[bytes, PendingTask] = OrderedDict()
        self.sequence_number = 0
        self.watching = False
        self.rules = CallRules()
        self.warn_at = WAITING_WARNED
        # Bytes of what was sent beyond IN_FLIGHT_MAX, by task id, and their sum.
        self.excess: dict[bytes, int] = {}
        self.excess_bytes = 0
        self.excess_bytes_max = EXCESS_BYTES_MAX
        # Answers that came meanwhile, and whether somebody looks after NO_ANSWER_S whether one did.
        self.num_answered = 0
        self.is_looked_at = False
        # Where calls may overtake each other, one that waits for its arguments stays here, by task id, and joins the queue then.
        self.unresolved: dict[bytes, PendingTask] = {}

    # ---- its calls

    @property
    def num_waiting(self) -> int:
        """How many have no answer."""
        return len(self.queue) + len(self.in_flight) + len(self.unresolved)

    @property
    def has_room(self) -> bool:
        """Whether one more may be sent."""
        return len(self.in_flight) < IN_FLIGHT_MAX or (
            self.rules.is_concurrent and self.excess_bytes < self.excess_bytes_max
        )

    @property
    def holds_back(self) -> bool:
        """Whether calls wait here that those which were sent may wait for."""
        return bool(self.queue and self.peer is not None and self.rules.is_concurrent and not self.has_room)

    def sent(self, task: PendingTask) -> None:
        if len(self.in_flight) >= IN_FLIGHT_MAX:
            self.excess[task.task_id] = task.request.ByteSize() + EXCESS_BYTES_EACH
            self.excess_bytes += self.excess[task.task_id]
        self.in_flight[task.task_id] = task

    def answered(self, task: PendingTask) -> bool:
        """Whether it was sent and still waited for."""
        if self.excess:
            self.num_answered += 1
            self.excess_bytes -= self.excess.pop(task.task_id, 0)
            if not self.excess:
                self.excess_bytes_max = EXCESS_BYTES_MAX
        return self.in_flight.pop(task.task_id, None) is not None

    def nothing_in_flight(self) -> None:
        self.in_flight.clear()
        self.excess.clear()
        self.excess_bytes, self.excess_bytes_max = 0, EXCESS_BYTES_MAX

    def take_all(self) -> list[PendingTask]:
        """Every call that has no answer."""
        waiting = [*self.in_flight.values(), *self.queue, *self.unresolved.values()]
        self.nothing_in_flight()
        self.queue.clear()
        self.unresolved.clear()
        return waiting

    def waits_for_restart(self, task: PendingTask) -> bool:
        """Whether a call in the queue may stay there while the actor restarts: it has retries or was sent before, or could not be sent."""
        may_run_again = self.rules.waits_for_restart or task.retries_left or task.request.attempt
        return bool(may_run_again or task.num_unresolved)

    def unqueue(self, task: PendingTask) -> None:
        if self.queue[-1] is task:
            self.queue.pop()  # the usual case
        else:
            self.queue.remove(task)

    # ---- its end

    def death_value(self) -> tuple[bytes, bytes]:
        """The error value of calls to a dead actor."""
        assert self.death is not None
        if self.death.kind == common_pb2.DeathCause.UNSCHEDULABLE:
            serialized = serialization.serialize_error(ActorUnschedulableError(self.death.message))
            return serialized.metadata, serialized.to_bytes()
        cause: Any = f"{self.story}\tcause: {self.death.message or 'unknown'}"
        if self.death.HasField("error"):
            data = self.death.error.data
            try:
                cause = load_packed(data) or serialization.deserialize(serialization.ERROR, data)
            except BaseException:  # whatever unpickling raises, or a module that is not here
                cause = self.death.message or "its constructor raised an error that cannot be read here"
            if isinstance(cause, ActorDiedError):
                return serialization.ERROR, data
        serialized = serialization.serialize_error(ActorDiedError(cause, self.actor_id.hex()))
        return serialized.metadata, serialized.to_bytes()


def story_of(info: common_pb2.ActorInfo) -> str:
    """Which actor it is, a line for each thing that is known."""
    lines = {
        "class_name": info.class_name,
        "actor_id": info.actor_id.hex(),
        "pid": info.pid,
        "name": info.name,
        "namespace": info.namespace,
        "ip": info.host,
    }
    return "".join(f"\t{name}: {value}\n" for name, value in lines.items() if value)
