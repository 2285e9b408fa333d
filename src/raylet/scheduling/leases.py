"""The values that a lease is made of, and the steps of its life.

    QUEUED ──► RESERVED ──► GRANTED ──► (gone)
       │           │            └ returned, worker died, or requester gone
       └───────────┴──────────► (gone): cancelled, sent elsewhere, rejected

RESERVED: the node's resources are its own, and it waits for a worker to become idle or to start. Reserving
first is what lets any number of workers start side by side while no more than the node has are ever given
out.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ray_mono.common.scheduling.resources import GPU, ResourceSet
from ray_mono.common.scheduling.strategy import Strategy


class LeaseState(enum.Enum):
    QUEUED = "queued"
    RESERVED = "waiting for a worker"
    GRANTED = "granted"


@dataclass(frozen=True)
class Shape:
    """What decides where a lease can run. Leases of one shape are alike, so one answer serves them all."""

    required: ResourceSet
    """Must be free at the grant."""
    resources: ResourceSet
    """Held while the lease lasts."""
    strategy: Strategy
    # Shapes are looked up several times per lease, and hashing one anew costs more than everything else about
    # it.
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.required, self.resources, self.strategy)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True)
class Binding:
    """Whom a worker belongs to after its first lease: code, sys.path and environment of a job stay in its
    process. So does what a library decided when it looked for GPUs: a process either has some, or never had.
    """

    job_id: bytes
    runtime_env: str
    outlives_job: bool = False
    """A detached actor's, or of somebody below one: it is needed until the job is over, not only until it is finished."""
    has_gpus: bool = False


@dataclass(frozen=True)
class LeaseRequest:
    """What was asked for. `requester` is this raylet's number for the connection that asked: its end ends the
    lease.
    """

    lease_id: bytes
    requester: int
    requester_node_id: bytes
    requester_worker_id: bytes
    job_id: bytes
    resources: ResourceSet
    placement_resources: ResourceSet
    strategy: Strategy = field(default_factory=Strategy)
    runtime_env: str = ""
    for_actor: bool = False
    grant_or_reject: bool = False
    task_name: str = ""
    outlives_job: bool = False
    scheduling_key: int = 0
    """The requester's own number of what it asks for alike."""

    @property
    def line(self) -> tuple[int, int]:
        """Requests that may be served by each other's leases."""
        return self.requester, self.scheduling_key

    @property
    def shape(self) -> Shape:
        placement = self.placement_resources
        if not placement:
            return Shape(self.resources, self.resources, self.strategy)
        names = {name for name, _ in placement.items()} | {name for name, _ in self.resources.items()}
        required = ResourceSet({name: max(placement.get(name), self.resources.get(name)) for name in names})
        return Shape(required, self.resources, self.strategy)

    @property
    def binding(self) -> Binding:
        return Binding(self.job_id, self.runtime_env, self.outlives_job, bool(self.resources.get(GPU)))


@dataclass
class Lease:
    """A request and how far it got."""

    request: LeaseRequest
    shape: Shape
    queued_at_s: float
    # Counts arrivals: the order among leases that wait for a worker.
    number: int
    state: LeaseState = LeaseState.QUEUED
    # Set exactly while GRANTED.
    worker_id: bytes | None = None
    granted_at_s: float = 0.0
    # When its holder was asked to end it.
    asked_at_s: float | None = None
    # Since it said nothing: none of its tasks begins any more.
    is_closed: bool = False

    @property
    def lease_id(self) -> bytes:
        return self.request.lease_id
