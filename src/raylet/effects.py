"""What the raylet's machines decide: plain values that `effect_runner.py` carries out.

The effects of one list are carried out in its order. Nothing has to be on disk before that: a raylet keeps
nothing on disk.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

GROUP_REMOVED = "its placement group was removed"
"""The reason of an EndWorker: what the worker ran has no place any more."""


class RejectionKind(enum.Enum):
    """Why a lease was not granted; the names are those of Rejection.Kind in raylet.proto."""

    CANCELLED = 0
    NOT_HERE = 1
    RUNTIME_ENV_FAILED = 2
    JOB_FINISHED = 3
    INFEASIBLE = 4
    PLACEMENT_GROUP_REMOVED = 5


@dataclass(frozen=True)
class Granted:
    """The lease has resources and a worker. `instances`: indices of accelerators, e.g. {"GPU": (0, 2)}."""

    lease_id: bytes
    worker_id: bytes
    instances: Mapping[str, tuple[int, ...]]
    number: int = 0
    """Of the lease: no other of this raylet has it."""


@dataclass(frozen=True)
class SpilledBack:
    """The requester should ask that node instead: with grant_or_reject, or to wait there."""

    lease_id: bytes
    node_id: bytes
    host: str
    port: int
    may_wait: bool = False
    waited_s: float = 0.0
    """So far."""


@dataclass(frozen=True)
class Rejected:
    lease_id: bytes
    kind: RejectionKind
    message: str


@dataclass(frozen=True)
class BundlesHeld:
    """The bundles that waited under this id are held."""

    lease_id: bytes


@dataclass(frozen=True)
class StartWorker:
    """Start a process that will register with this token and id."""

    startup_token: int
    worker_id: bytes


class EndMode(enum.Enum):
    """How a worker is ended."""

    ASK = "ask"  # it may refuse, because it owns objects that others still use
    TERMINATE = "terminate"  # SIGTERM, then SIGKILL after the grace period
    KILL = "kill"  # SIGKILL


@dataclass(frozen=True)
class EndWorker:
    worker_id: bytes
    startup_token: int
    mode: EndMode
    reason: str


@dataclass(frozen=True)
class WarnJob:
    """One sentence for the job's driver."""

    job_id: bytes
    type: str
    message: str


@dataclass(frozen=True)
class Unclaimed:
    """Whoever leased this worker for an actor is gone. The GCS (this one or the next) has to say whether it
    still wants the worker."""

    lease_id: bytes


@dataclass(frozen=True)
class ReclaimLease:
    """Others wait for what the lease holds: its holder is asked to end it."""

    lease_id: bytes
    requester: int


@dataclass(frozen=True)
class CollectGarbage:
    """Garbage of some process on some node may hold what others wait for: every process has to collect its
    own."""


Effect = (
    Granted
    | SpilledBack
    | Rejected
    | BundlesHeld
    | StartWorker
    | EndWorker
    | WarnJob
    | Unclaimed
    | ReclaimLease
    | CollectGarbage
)
