"""What outsiders check about actors: incarnations, restarts, and the order of calls.

- One live incarnation: when a constructor begins, no other process of the actor lives, unless it is stopped;
  and when it goes on, it begins no call.
- Incarnations are numbered upwards and no more than max_restarts allow.
- Its owner reads that it died only when so many processes ended that its restarts are used up, and that it is
  unavailable only when those of a call are. (Unless connections break, or a head forgets its actors.)
- A caller's calls run in order within an incarnation, each at most once there (unless connections break), and
  no more often than max_task_retries allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ray_mono.common.exceptions import ActorDiedError, ActorUnavailableError
from ray_mono.common.ids import ActorID
from tests.simulation.loop import SimulationError

CREATION_BYTES = 8
CREATION = b"\xff" * CREATION_BYTES
"""What the ids of actors' creation tasks, and of the objects that stand for actors, begin with. The actor's
follows."""


NO_HEAD = "the GCS cannot be reached"
OWNER_ENDED = "its owner"
"""In the error of an actor that ended with its owner, who may live for a moment."""


class ActorCheckFailed(SimulationError):
    """An invariant about actors does not hold."""


@dataclass
class Incarnation:
    """One process that is, or was, an actor."""

    worker_id: bytes
    node_id: bytes
    number: int
    is_alive: bool = True
    last_calls: dict[tuple[bytes, int], int] = field(default_factory=dict)
    """Of each caller, and of each attempt where connections break."""


@dataclass
class ActorStory:
    """What became of an actor."""

    max_restarts: int
    incarnations: list[Incarnation] = field(default_factory=list)
    runs_of_call: dict[tuple[bytes, int], int] = field(default_factory=dict)
    others_died: int = 0
    """How many workers that were no actors had ended when its latest process did."""


class ActorJournal:
    """Told by simulated drivers and workers."""

    def __init__(self) -> None:
        self.actors: dict[bytes, ActorStory] = {}
        self.calls_done = 0
        self.calls_failed = 0
        self.num_drains = 0
        self.is_stopped: Callable[[bytes], bool] = lambda worker_id: False
        """Whether the process of a worker is stopped; set by the cluster."""
        self.connections_break = False
        self.heads_forget = False
        self.heads_stay_away = False
        self._others_died = 0
        self._has_left: dict[bytes, Callable[[], bool]] = {}
        self._of_worker: dict[bytes, bytes] = {}
        # An ordered set.
        self._doomed: dict[bytes, None] = {}

    def drains_node(self) -> None:
        """What it does to an actor that may restart does not count."""
        self.num_drains += 1

    def registered(self, actor_id: bytes, max_restarts: int) -> None:
        self.actors[actor_id] = ActorStory(max_restarts)

    def constructor_began(self, actor_id: bytes, worker_id: bytes, node_id: bytes, number: int) -> None:
        """A worker was pushed the creation task, as incarnation `number`."""
        story = self.actors[actor_id]
        for other in story.incarnations:
            if other.is_alive and not (self.is_stopped(other.worker_id) or self._has_left[other.worker_id]()):
                raise ActorCheckFailed(
                    f"actor {_short(actor_id)} begins as worker {_short(worker_id)}, incarnation {number},"
                    f" while worker {_short(other.worker_id)}, incarnation {other.number}, lives"
                )
        if number > story.max_restarts + (self.num_drains if story.max_restarts else 0):
            raise ActorCheckFailed(
                f"actor {_short(actor_id)} begins for the {number}. time after its first, "
                f"and may be restarted {story.max_restarts} times"
            )
        if story.incarnations and number < story.incarnations[-1].number and not self.heads_forget:
            last = story.incarnations[-1].number
            raise ActorCheckFailed(f"actor {_short(actor_id)} begins as incarnation {number} after {last}")
        story.incarnations.append(Incarnation(worker_id, node_id, number))
        self._of_worker[worker_id] = actor_id

    def may_leave(self, worker_id: bytes, has_left: Callable[[], bool]) -> None:
        """has_left(): whether the actor of this worker has gone to another node. The process may live on,
        for what it owns, and runs no call."""
        self._has_left[worker_id] = has_left

    def killed(self, actor_id: bytes) -> None:
        """By kill(). Its process counts as dead from now on, and may live for a moment."""
        self._doomed[actor_id] = None

    def object_freed(self, object_id: bytes) -> None:
        """If it stands for an actor, that ends: nobody can call it any more."""
        actor_id = object_id[CREATION_BYTES:][: ActorID.SIZE]
        if object_id.startswith(CREATION) and actor_id in self.actors:
            self._doomed[actor_id] = None

    def is_doomed(self, worker_id: bytes) -> bool:
        """Whether it is the process of an actor that was killed, or that nobody can call any more."""
        return self._of_worker.get(worker_id) in self._doomed

    def worker_died(self, worker_id: bytes) -> None:
        actor_id = self._of_worker.pop(worker_id, None)
        if actor_id is None:
            self._others_died += 1
            return
        story = self.actors[actor_id]
        story.others_died = self._others_died
        for incarnation in story.incarnations:
            if incarnation.worker_id == worker_id:
                incarnation.is_alive = False

    def error_read(self, actor_id: bytes, max_task_retries: int, error: BaseException) -> None:
        """The actor's owner, which lives, has this instead of an answer."""
        story = self.actors[actor_id]
        if self.connections_break or self.heads_forget or actor_id in self._doomed:
            return
        num_ended = sum(not incarnation.is_alive for incarnation in story.incarnations)
        # Some ended before their constructors began.
        last = story.incarnations[-1].number if story.incarnations else -1
        num_unseen = self._others_died - story.others_died
        if isinstance(error, ActorDiedError) and OWNER_ENDED not in str(error):
            if last + num_unseen < story.max_restarts or not num_ended + num_unseen:
                raise ActorCheckFailed(
                    f"actor {_short(actor_id)} is said to be dead, was incarnation {last}, and may be"
                    f" restarted {story.max_restarts} times: {error}"
                )
        elif isinstance(error, ActorUnavailableError) and 0 < max_task_retries >= num_ended:
            if self.heads_stay_away and NO_HEAD in str(error):
                return
            raise ActorCheckFailed(
                f"a call of actor {_short(actor_id)} was given up for good, may be retried"
                f" {max_task_retries} times, and {num_ended} processes ended: {error}"
            )

    def call_runs(
        self,
        actor_id: bytes,
        worker_id: bytes,
        caller: bytes,
        number: int,
        attempt: int,
        max_task_retries: int,
        is_ordered: bool,
    ) -> None:
        """A caller's `number`-th call runs."""
        story = self.actors[actor_id]
        incarnation = next(one for one in story.incarnations if one.worker_id == worker_id)
        if story.incarnations[-1] is not incarnation:
            raise ActorCheckFailed(
                f"actor {_short(actor_id)} runs call {number} as worker {_short(worker_id)}, incarnation "
                f"{incarnation.number}, while incarnation {story.incarnations[-1].number} has begun"
            )
        # What was sent before a connection broke may run, and is sent again to the same process.
        sequence = (caller, attempt if self.connections_break else 0)
        last_call = incarnation.last_calls.get(sequence, -1)
        if number <= last_call and is_ordered:
            raise ActorCheckFailed(
                f"actor {_short(actor_id)} runs call {number} of {_short(caller)} after call {last_call}"
            )
        incarnation.last_calls[sequence] = number
        key = (caller, number)
        runs = story.runs_of_call[key] = story.runs_of_call.get(key, 0) + 1
        if runs > max_task_retries + 1:
            raise ActorCheckFailed(f"call {number} of actor {_short(actor_id)} runs for the {runs}. time")

    def check_everything_ended(self) -> None:
        """After the drivers left: no process of an actor lives."""
        living = [
            f"worker {_short(incarnation.worker_id)} of actor {_short(actor_id)}"
            for actor_id, story in self.actors.items()
            for incarnation in story.incarnations
            if incarnation.is_alive
        ]
        if living:
            raise ActorCheckFailed(f"actors outlived their drivers: {', '.join(living)}")

    def restarts(self) -> int:
        """How many constructors began beyond the first of each actor."""
        return sum(max(0, len(story.incarnations) - 1) for story in self.actors.values())

    def living(self) -> int:
        """How many processes of actors live."""
        return len(self._of_worker)


def _short(id_bytes: bytes) -> str:
    return id_bytes.hex()[:12]
