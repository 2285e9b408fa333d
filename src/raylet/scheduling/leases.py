"""The values that a lease is made of, and its life: one table, and nothing happens that is not in it.

    QUEUED ──► RESERVED ──► GRANTED ──► CLOSED
       │           │            │          └ its worker died, or was given back
       │           │            └ returned, its worker died, or its requester is gone
       └───────────┴──────────► ENDED: cancelled, sent elsewhere, rejected, or its bundles are held

RESERVED: it has its resources, and waits for a worker to become idle or to start. Because resources are
reserved first, any number of workers can start side by side, and no more is given out than the node has.

CLOSED: its holder was asked to end it and says nothing, so none of its tasks begins any more. Its worker may
still run what it has begun.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from ray_mono.common.our_bug import InternalError
from ray_mono.common.scheduling.bundle_resources import named
from ray_mono.common.scheduling.resources import GPU, ResourceSet
from ray_mono.common.scheduling.strategy import Strategy
from ray_mono.raylet.worker.binding import Binding


class WorkerLeaseState(enum.Enum):
    QUEUED = "queued"
    RESERVED = "waiting for a worker"
    GRANTED = "granted"
    CLOSED = "closed"
    ENDED = "ended"

    # Enum's own is Python code, which each step of each lease would run.
    __hash__ = object.__hash__


class WorkerLeaseEvent(enum.Enum):
    RESERVED = "got its resources"
    GRANTED = "got its worker"
    CLOSED = "closed"
    ENDED = "ended"

    __hash__ = object.__hash__


_S, _E = WorkerLeaseState, WorkerLeaseEvent
TRANSITIONS: dict[tuple[WorkerLeaseState, WorkerLeaseEvent], WorkerLeaseState] = {
    (_S.QUEUED, _E.RESERVED): _S.RESERVED,
    (_S.QUEUED, _E.ENDED): _S.ENDED,
    (_S.RESERVED, _E.GRANTED): _S.GRANTED,
    (_S.RESERVED, _E.ENDED): _S.ENDED,
    (_S.GRANTED, _E.CLOSED): _S.CLOSED,
    (_S.GRANTED, _E.ENDED): _S.ENDED,
    (_S.CLOSED, _E.ENDED): _S.ENDED,
}
HAVE_WORKERS = frozenset({WorkerLeaseState.GRANTED, WorkerLeaseState.CLOSED})


@dataclass(frozen=True, eq=False)
class Shape:
    """What decides where a lease can run. Leases of one shape are alike, so one answer serves them all.

    There is one object for all that are alike (`shape_of`), since a shape is looked up several times for each
    lease.
    """

    required: ResourceSet
    """Must be free at the grant."""
    resources: ResourceSet
    """Held while the lease lasts."""
    strategy: Strategy


_shapes: WeakValueDictionary[tuple[ResourceSet, ResourceSet | None, Strategy], Shape] = WeakValueDictionary()


def shape_of(required: ResourceSet, resources: ResourceSet, strategy: Strategy) -> Shape:
    """The one object for this shape, as long as anybody has it."""
    is_all = required is resources or required == resources
    key = required, None if is_all else resources, strategy
    shape = _shapes.get(key)
    if shape is None:
        shape = _shapes[key] = Shape(required, resources, strategy)
    return shape


class LeaseRequest(NamedTuple):
    """What was asked for. `requester` is this raylet's number for the connection that asked, and whose end
    ends the lease. A tuple, since a frozen dataclass of so many fields takes four times as long to make."""

    lease_id: bytes
    requester: int
    requester_node_id: bytes
    job_id: bytes
    resources: ResourceSet
    placement_resources: ResourceSet
    strategy: Strategy = Strategy()
    runtime_env: str = ""
    for_actor: bool = False
    grant_or_reject: bool = False
    task_name: str = ""
    outlives_job: bool = False
    scheduling_key: int = 0
    """The requester's own number of what it asks for alike."""
    depth: int = 0
    """How deep the task is nested, that it is for."""
    is_retriable: bool = False
    """What it is for may be run again if the worker is killed."""
    owner_id: bytes = b""
    """The worker or driver whose task or actor it is for."""
    owner_node_id: bytes = b""
    bundles: Mapping[int, ResourceSet] | None = None
    """Set where it asks for these bundles of a placement group instead of a worker (bundle_demand.py)."""
    waited_s: float = 0.0
    """Elsewhere, before it came here."""

    @property
    def line(self) -> tuple[int, int]:
        """Requests that may be served by each other's leases."""
        return self.requester, self.scheduling_key

    @property
    def shape(self) -> Shape:
        resources, placement = self.resources, self.placement_resources
        if not placement:
            return shape_of(resources, resources, self.strategy)
        names = {name for name, _ in placement.items()} | {name for name, _ in resources.items()}
        required = ResourceSet({name: max(placement.get(name), resources.get(name)) for name in names})
        return shape_of(required, resources, self.strategy)

    @property
    def binding(self) -> Binding:
        gpus = self.resources.get(GPU) or (self.strategy.group_id and named(self.resources, GPU))
        return Binding(self.job_id, self.runtime_env, self.outlives_job, bool(gpus))


@dataclass
class WorkerLease:
    """A request and how far it got. Only the lease manager and its scheduler move it on."""

    request: LeaseRequest
    shape: Shape
    queued_at_s: float
    number: int
    """Counts arrivals: the order among leases that wait for a worker."""
    state: WorkerLeaseState = WorkerLeaseState.QUEUED
    worker_id: bytes | None = None
    """Set from the grant on."""
    held_since_s: float = 0.0
    """When it got its resources."""
    granted_at_s: float = 0.0
    asked_at_s: float | None = None
    """When its holder was asked to end it."""
    has_been_shared_out: bool = False
    """It has waited for long, and was told to wait here (LeaseScheduler)."""
    story: tuple[WorkerLeaseEvent, ...] = ()
    """Its whole life, which has at most four steps: for error messages."""
    lease_id: bytes = field(init=False)
    line: tuple[int, int] = field(init=False)
    binding: Binding = field(init=False)

    def __post_init__(self) -> None:
        self.lease_id = self.request.lease_id
        self.line = self.request.line
        self.binding = self.request.binding

    @property
    def has_worker(self) -> bool:
        return self.state in HAVE_WORKERS

    def is_same_line(self, other: WorkerLease) -> bool:
        """Either serves the tasks of the other."""
        mine, theirs = self.request, other.request
        return mine.job_id == theirs.job_id and self.line == other.line and self.shape is other.shape

    @property
    def waits_since_s(self) -> float:
        """Elsewhere and here."""
        return self.queued_at_s - self.request.waited_s

    def reserve(self, now_s: float) -> None:
        self._step(WorkerLeaseEvent.RESERVED)
        self.held_since_s = now_s

    def grant(self, worker_id: bytes, now_s: float) -> None:
        self._step(WorkerLeaseEvent.GRANTED)
        self.worker_id = worker_id
        self.granted_at_s = now_s

    def close(self) -> None:
        self._step(WorkerLeaseEvent.CLOSED)

    def end(self) -> None:
        self._step(WorkerLeaseEvent.ENDED)

    def ask_to_end(self, now_s: float) -> None:
        """Its holder is being asked. That changes nothing: the holder may need it for long."""
        self.asked_at_s = now_s

    def is_late(self, before_s: float) -> bool:
        """Whether its holder was asked to end it before that, and has not."""
        return self.asked_at_s is not None and self.asked_at_s < before_s

    def stay(self) -> None:
        """It goes on waiting here, when others like it are sent to other nodes."""
        self.has_been_shared_out = True

    def requested_by(self, requester: int) -> None:
        """Its requester asked again, on another connection, which has not been asked for anything yet."""
        self.request = self.request._replace(requester=requester)
        self.line = self.request.line
        self.asked_at_s = None

    def describe(self, why: str, now_s: float) -> dict[str, Any]:
        """For people. why: in one sentence, why it is where it is."""
        return {
            "lease_id": self.lease_id.hex(),
            "task_name": self.request.task_name,
            "job_id": self.request.job_id.hex(),
            "state": self.state.value,
            "needs": self.shape.required.to_units(),
            "holds": self.shape.resources.to_units(),
            "worker_id": self.worker_id.hex() if self.worker_id else "",
            "waited_s": round(now_s - self.queued_at_s, 3),
            "why": why,
        }

    def _step(self, event: WorkerLeaseEvent) -> None:
        """Moves on. Raises InternalError with the lease's story where the table has no such step; nothing has
        changed then."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise InternalError(
                f"lease {self.lease_id.hex()} is {self.state.value} and cannot be '{event.value}'; "
                f"so far: {', '.join(event.value for event in self.story) or 'nothing'}"
            )
        self.story = (*self.story, event)
        self.state = following
