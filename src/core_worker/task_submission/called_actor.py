"""One actor as this process sees it: what is known of it, and the calls that this process has made and that
are not over.

    UNKNOWN ──asked──► PENDING_CREATION ──► CONNECTED ◄──alive again, or reached again──► DISCONNECTED
                             (from any: as the GCS says)      │                                │
                                      RESTARTING ◄────────────┴────────────────────────────────┤
                                                                                               ▼
                                                                                             DEAD

    UNKNOWN           a handle arrived, or a name was looked up; nothing was heard of the actor yet
    PENDING_CREATION  it has not lived
    CONNECTED         calls go to its process
    DISCONNECTED      the GCS says that it lives, but its process cannot be reached: calls wait for more news
    RESTARTING        a new process is made for it
    DEAD              every call fails with the cause

Plain bookkeeping, under the core worker's lock. What is done with the calls, and when, is
actor_task_submitter.py's, which tells the actor what happened.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import dropwhile, islice
from typing import Any
from weakref import WeakValueDictionary

from ray_mono.common.exceptions import (
    ActorDiedError,
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    OutOfMemoryError,
)
from ray_mono.common.our_bug import InternalError, known
from ray_mono.common.task_error import load_packed
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.core_worker.options import CallRules
from ray_mono.core_worker.peers import Peer
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_submission.shared_push import SharedPush
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, gcs_pb2


class CalledActorState(enum.Enum):
    UNKNOWN = "is not known yet"
    PENDING_CREATION = "is being created"
    CONNECTED = "is connected"
    DISCONNECTED = "cannot be reached"
    RESTARTING = "is restarting"
    DEAD = "is dead"

    # Enum's own is Python code, which every step of every life would pay.
    __hash__ = object.__hash__


UNKNOWN, PENDING_CREATION = CalledActorState.UNKNOWN, CalledActorState.PENDING_CREATION
CONNECTED, DISCONNECTED = CalledActorState.CONNECTED, CalledActorState.DISCONNECTED
RESTARTING, DEAD = CalledActorState.RESTARTING, CalledActorState.DEAD

MOVES = {
    UNKNOWN: {PENDING_CREATION, CONNECTED, DISCONNECTED, RESTARTING, DEAD},
    PENDING_CREATION: {CONNECTED, DISCONNECTED, RESTARTING, DEAD},
    CONNECTED: {CONNECTED, DISCONNECTED, RESTARTING, DEAD},
    DISCONNECTED: {CONNECTED, RESTARTING, DEAD},
    RESTARTING: {CONNECTED, DISCONNECTED, DEAD},
    DEAD: set(),
}


class CalledActor:
    """One actor, and this process's calls to it."""

    __slots__ = (
        "__weakref__",
        "_calls_in_flight_max",
        "_config",
        "_excess",
        "_excess_bytes",
        "_excess_bytes_max",
        "_has_lived",
        "_latest",
        "_leaving",
        "_may_have_lived",
        "_num_answered",
        "_registration",
        "_story",
        "_warn_at",
        "actor_id",
        "creation_id",
        "death",
        "in_flight",
        "is_looked_at",
        "is_moving",
        "is_watched",
        "last_reached",
        "lost_frames",
        "made_by",
        "peer",
        "pending_reason",
        "queue",
        "rules",
        "state",
        "templates",
        "unresolved",
        "version",
        "worker",
    )

    def __init__(self, actor_id: bytes, config: CoreWorkerConfig) -> None:
        self._config = config
        self._calls_in_flight_max = config.calls_in_flight_max
        self.state = UNKNOWN
        self._may_have_lived = False
        # Some process of it was there, as the GCS says.
        self._has_lived = False
        self.actor_id = actor_id
        # Of the object that stands for the actor; empty where only the name is known.
        self.creation_id = b""
        # The task of this process that creates it; empty where another process does.
        self.made_by = b""
        self.version = 0
        # Where this process registered it, how; and what the GCS has said of it since.
        self._registration: gcs_pb2.RegisterActorRequest | None = None
        self._latest: common_pb2.ActorInfo | None = None
        self.death: common_pb2.DeathCause | None = None
        # Which actor is dead: lines for people.
        self._story = ""
        self.pending_reason = ""
        self.worker: common_pb2.Address | None = None
        self.peer: Peer | None = None
        # The process that had calls last, also when it is gone.
        self.last_reached: tuple[common_pb2.Address, Peer] | None = None
        # What travelled together and is without its last answer since the connection ended, by the first
        # call's task id.
        self.lost_frames: dict[bytes, SharedPush] = {}
        # Of its methods, by name and options.
        self.templates: WeakValueDictionary[bytes, CallTemplate] = WeakValueDictionary()
        self.queue: deque[PendingTask] = deque()
        self.in_flight: dict[bytes, PendingTask] = {}
        # The GCS is asked, or to be asked by somebody else, what becomes of it.
        self.is_watched = False
        # It restarts since it was moved to another node.
        self.is_moving = False
        # The process that gave calls back.
        self._leaving = b""
        self.rules = CallRules()
        self._warn_at = config.calls_waiting_warned
        # Bytes of what was sent beyond calls_in_flight_max, by task id, and their sum.
        self._excess: dict[bytes, int] = {}
        self._excess_bytes = 0
        self._excess_bytes_max = config.excess_bytes_max
        # Answers that came meanwhile, and whether somebody looks after no_answer_s whether one did.
        self._num_answered = 0
        self.is_looked_at = False
        # Where calls may overtake each other, one that waits for its arguments stays here, by task id, and
        # joins the queue then.
        self.unresolved: dict[bytes, PendingTask] = {}

    # ---- its life

    def _move(self, state: CalledActorState) -> None:
        if state not in MOVES[self.state]:
            raise InternalError(f"{self.story} and cannot be one that {state.value}")
        self.state = state

    @property
    def story(self) -> str:
        """For people."""
        return (
            f"actor {self.actor_id.hex()} {self.state.value}, {len(self.in_flight)} calls sent, "
            f"{len(self.queue)} queued, {len(self.unresolved)} without their arguments"
        )

    def describe(self) -> dict[str, Any]:
        """For DumpState."""
        return {
            "state": self.state.name,
            "queued": len(self.queue),
            "in_flight": len(self.in_flight),
            "why": self.pending_reason,
        }

    @property
    def is_connected(self) -> bool:
        return self.peer is not None

    @property
    def is_dead(self) -> bool:
        return self.state is DEAD

    @property
    def is_restarting(self) -> bool:
        """It lived, as far as anybody knows, and a new process is made for it."""
        return self.state is RESTARTING and self._may_have_lived

    @property
    def is_unreachable(self) -> bool:
        """It lives, as far as anybody knows, and there is no connection to it."""
        return self.state is DISCONNECTED

    def begins(self, made_by: bytes) -> None:
        """A task of this process has it created, and the process watches it when it is registered."""
        self._move(PENDING_CREATION)
        self.made_by = made_by
        self.is_watched = True

    def stands_for(self, creation_id: bytes) -> None:
        """The object whose references keep it alive."""
        self.creation_id = creation_id

    def follow(self, rules: CallRules) -> None:
        """What its options say of the calls to it."""
        self.rules = rules

    def note_watch(self, watched: bool) -> None:
        self.is_watched = watched

    def heard(self, info: Any) -> None:
        """The GCS told of it (ActorInfo)."""
        self.version = info.version
        self._has_lived = bool(info.pid or info.num_restarts)
        if self._registration is not None:
            self._latest = info
        self.pending_reason = info.pending_reason
        self.is_moving = info.is_moving
        self._story = story_of(info)

    def lost_process(self, info: Any) -> tuple[common_pb2.Address, Peer] | None:
        """The process that has calls under way, if the GCS (ActorInfo) says that the actor does not live in
        it any more."""
        if self.last_reached is None or not self.in_flight:
            return None
        if info.state == common_pb2.ALIVE:
            is_lost = info.address.worker_id != self.last_reached[0].worker_id
        else:
            is_lost = info.state in (common_pb2.DEAD, common_pb2.RESTARTING)
        return self.last_reached if is_lost else None

    def is_registered(self, request: gcs_pb2.RegisterActorRequest) -> None:
        """The GCS has taken it from this process, or, where it has, is told its arguments."""
        self._registration = request

    @property
    def is_registered_here(self) -> bool:
        """Whether the GCS has taken it from this process."""
        return self._registration is not None

    @property
    def why_unknown(self) -> str:
        """For people: why the GCS does not know it."""
        if self.is_registered_here:
            return "the GCS does not know this actor any more: it ended long ago, or the GCS lost its data"
        return "the cluster does not know this actor: it belongs to another session"

    def told_again(self) -> common_pb2.ActorInfo | None:
        """For a GCS that has lost it (AdoptRequest): as it was last heard of; None where it is not this
        process's, or dead."""
        request, latest = self._registration, self._latest
        if request is None or self.state is DEAD:
            return None
        is_whole = not request.awaits_arguments
        told = common_pb2.ActorInfo(
            creation_spec=request.creation_spec,
            class_name=request.class_name,
            state=common_pb2.PENDING_CREATION if is_whole else common_pb2.DEPENDENCIES_UNREADY,
        )
        if latest is not None and is_whole:
            told.MergeFrom(
                common_pb2.ActorInfo(
                    state=latest.state,
                    version=latest.version,
                    num_restarts=latest.num_restarts,
                    num_restarts_due_to_node_preemption=latest.num_restarts_due_to_node_preemption,
                    is_moving=latest.is_moving,
                    lost_on_node_id=latest.lost_on_node_id,
                    lost_because=latest.lost_because,
                    address=latest.address,
                    pid=latest.pid,
                    repr_name=latest.repr_name,
                    start_time_s=latest.start_time_s,
                )
            )
        return told

    def is_created(self) -> None:
        """The GCS said that it makes a process for it. That is news if nothing was known of it here."""
        if self.state is UNKNOWN:
            self._move(PENDING_CREATION)

    def connect(self, worker: common_pb2.Address, peer: Peer) -> None:
        """Calls go to this process of it from now on."""
        self._move(CONNECTED)
        self.worker, self.peer = worker, peer
        self.last_reached = worker, peer

    def disconnect(self) -> None:
        """Its process cannot be reached."""
        if self.state is not DISCONNECTED:
            self._move(DISCONNECTED)
        self.peer = self.worker = None

    def restart(self) -> bool:
        """A new process is made for it. Returns whether it may have lived before; calls of one that has not
        lived yet go on waiting."""
        if self.state is not RESTARTING:
            self._may_have_lived = self._may_have_lived or self.state is not PENDING_CREATION
            self._move(RESTARTING)
        self.peer = self.worker = None
        return self._may_have_lived

    def die(self, cause: common_pb2.DeathCause) -> None:
        self._move(DEAD)
        self._registration = self._latest = None
        self.death = common_pb2.DeathCause.FromString(cause.SerializeToString())
        self.peer = self.worker = self.last_reached = None

    # ---- its calls

    @property
    def num_waiting(self) -> int:
        """How many have no answer."""
        return len(self.queue) + len(self.in_flight) + len(self.unresolved)

    @property
    def has_room(self) -> bool:
        """Whether one more may be sent."""
        return len(self.in_flight) < self._calls_in_flight_max or (
            self.rules.is_concurrent and self._excess_bytes < self._excess_bytes_max
        )

    @property
    def room(self) -> int:
        """How many more it may have of those that every actor is given."""
        return self._config.calls_in_flight_max - len(self.in_flight)

    @property
    def takes_a_frame(self) -> bool:
        """Whether it is worth while to send more: so many that they travel together. Calls of an actor that
        runs several may wait for later ones, so those never wait for company."""
        return self.rules.is_concurrent or 2 * len(self.in_flight) <= self._calls_in_flight_max

    @property
    def holds_back(self) -> bool:
        """Whether there are calls here that wait for room. Calls that were sent may be waiting for them."""
        return bool(self.queue and self.peer is not None and self.rules.is_concurrent and not self.has_room)

    @property
    def takes_at_once(self) -> bool:
        """Whether a call without arguments to wait for can be sent as it comes: nothing is before it, and
        less is sent than every actor is given."""
        return (
            self.peer is not None
            and not self.queue
            and not self._excess
            and len(self.in_flight) < self._calls_in_flight_max
        )

    def allow_more(self) -> None:
        """Nothing was answered for long: what was sent may wait for what waits here."""
        self._excess_bytes_max += self._config.excess_bytes_max

    @property
    def num_answered(self) -> int:
        """While it has excess: answers so far."""
        return self._num_answered

    def note_look(self, looks: bool) -> None:
        """Whether a timer looks whether anything is answered."""
        self.is_looked_at = looks

    def warns_of(self, num_waiting: int) -> bool:
        """Whether so many are told: each time that they have doubled."""
        if num_waiting < self._warn_at:
            return False
        self._warn_at = 2 * num_waiting
        return True

    def send(self, task: PendingTask, payload: bytes | None) -> None:
        """It is on its way. payload: its push, where that is usual."""
        if len(self.in_flight) >= self._calls_in_flight_max:
            num_bytes = task.request.ByteSize() if payload is None else len(payload)
            size_bytes = num_bytes + self._config.excess_bytes_each
            self._excess[task.task_id] = size_bytes
            self._excess_bytes += size_bytes
        self.in_flight[task.task_id] = task
        task.pushed()

    def send_all(self, tasks: Sequence[PendingTask]) -> None:
        """They are on their way together. There is room for all of them."""
        self.in_flight.update(zip([task.task_id for task in tasks], tasks, strict=True))
        for task in tasks:
            task.pushed()

    def answered(self, task: PendingTask) -> bool:
        """Whether it was sent and still waited for."""
        if self._excess:
            self._num_answered += 1
            self._excess_bytes -= self._excess.pop(task.task_id, 0)
            if not self._excess:
                self._excess_bytes_max = self._config.excess_bytes_max
        return self.in_flight.pop(task.task_id, None) is not None

    def answered_all(
        self, tasks: Sequence[PendingTask], values: Sequence[bytes]
    ) -> tuple[Sequence[PendingTask], Sequence[bytes]]:
        """As answered, of several calls with their answers. Returns those that were waited for."""
        ids = [task.task_id for task in tasks]
        in_flight = self.in_flight
        if not self._excess and all(map(in_flight.__contains__, ids)):
            for task_id in ids:
                del in_flight[task_id]
            return tasks, values
        waited_for = [each for each in zip(tasks, values, strict=True) if self.answered(each[0])]
        return [task for task, _ in waited_for], [value for _, value in waited_for]

    def lose_frame(self, frame: SharedPush) -> None:
        """The connection ended before its last answer came."""
        self.lost_frames[frame.frame_id] = frame

    def answered_in_frame(self, reply: Any) -> tuple[Sequence[PendingTask], Sequence[bytes]]:
        """The calls of a lost frame that had answers (LastAnswersReply), with these."""
        frame = self.lost_frames.get(reply.frame_id)
        return (
            ((), ()) if frame is None else self.answered_all(*frame.answered_with(reply.first, reply.plain))
        )

    def _nothing_in_flight(self) -> None:
        self.in_flight.clear()
        self.lost_frames.clear()
        self._excess.clear()
        self._excess_bytes, self._excess_bytes_max = 0, self._config.excess_bytes_max

    def is_heard_out(self, is_all: bool) -> None:
        """Its last process is gone. is_all: what that had answered is here, so that of calls that ran one
        after another only the first that is left had begun."""
        if is_all and not (self.rules.is_concurrent or self.rules.is_unordered):
            for task in islice(self.in_flight.values(), 1, None):
                if not task.came_back:  # it may be said twice
                    task.not_started()

    def sent_from(self, task_id: bytes) -> list[PendingTask]:
        """This call and those that were sent after it, and have no answer."""
        return list(dropwhile(lambda task: task.task_id != task_id, self.in_flight.values()))

    def take_sent(self) -> list[PendingTask]:
        """What was sent and is not answered; in order."""
        sent = list(self.in_flight.values())
        self._nothing_in_flight()
        return sent

    def leaves(self, worker_id: bytes) -> bool:
        """Whether it is about to leave this process, though the GCS says that it lives there."""
        return worker_id == self._leaving

    def is_left(self, worker_id: bytes) -> None:
        """The actor moves away from this process."""
        self._leaving = worker_id

    def queue_again(self, tasks: list[PendingTask]) -> None:
        """They were sent, and wait to be sent again, in their order: some of those behind them may have come
        back before."""
        self.queue = deque(sorted([*tasks, *self.queue], key=lambda task: task.number))

    def given_back(self, task: PendingTask) -> None:
        """It was sent and did not begin: it waits to be sent again, in its order."""
        task.not_started()
        place = bisect_left(self.queue, task.number, key=lambda queued: queued.number)
        self.queue.insert(place, task)

    def take_queue(self) -> deque[PendingTask]:
        queue, self.queue = self.queue, deque()
        return queue

    def take_all(self) -> list[PendingTask]:
        """Every call that has no answer."""
        waiting = [*self.in_flight.values(), *self.queue, *self.unresolved.values()]
        self._nothing_in_flight()
        self.queue.clear()
        self.unresolved.clear()
        return waiting

    def waits_for_restart(self, task: PendingTask) -> bool:
        """Whether a call in the queue may stay there while the actor restarts: it has retries or was sent
        before, or could not be sent, or the actor moves."""
        if self.is_moving or task.came_back:
            return True
        may_run_again = self.rules.waits_for_restart or task.retries_left or task.request.attempt
        return bool(may_run_again or task.waits_for_arguments)

    def unqueue(self, task: PendingTask) -> None:
        if self.queue[-1] is task:
            self.queue.pop()  # the usual case
        else:
            self.queue.remove(task)

    # ---- its end

    def death_value(self) -> tuple[bytes, bytes]:
        """The error value of calls to a dead actor."""
        death = known(self.death, "the cause of an actor's death")
        if death.kind == common_pb2.DeathCause.UNSCHEDULABLE:
            serialized = serialization.serialize_error(ActorUnschedulableError(death.message))
            return serialized.metadata, serialized.to_bytes()
        if death.kind == common_pb2.DeathCause.PLACEMENT_GROUP_REMOVED and not self._has_lived:
            serialized = serialization.serialize_error(ActorPlacementGroupRemoved())
            return serialized.metadata, serialized.to_bytes()
        if death.kind == common_pb2.DeathCause.OUT_OF_MEMORY:
            error = OutOfMemoryError(f"The actor died.\n{self._story}\tcause: {death.message}")
            serialized = serialization.serialize_error(error)
            return serialized.metadata, serialized.to_bytes()
        cause: Any = f"{self._story}\tcause: {death.message or 'unknown'}"
        if death.HasField("error"):
            data = death.error.data
            try:
                cause = load_packed(data) or serialization.deserialize(serialization.ERROR, data)
            except BaseException:  # whatever unpickling raises, or a module that is not here
                cause = death.message or "its constructor raised an error that cannot be read here"
            if isinstance(cause, ActorDiedError):
                return serialization.ERROR, data
        died = ActorDiedError(cause, self.actor_id.hex(), preempted=death.is_preempted)
        serialized = serialization.serialize_error(died)
        return serialized.metadata, serialized.to_bytes()


def creation_failed(message: str, error: bytes = b"") -> common_pb2.DeathCause:
    """Of an actor that never lived. error: why, a serialized RayTaskError or ActorDiedError."""
    cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.CREATION_FAILED, message=message)
    if error:
        cause.error.CopyFrom(common_pb2.SerializedObject(metadata=serialization.ERROR, data=error))
    return cause


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
