"""What belongs to a process and does not change once it is connected: who it is, its doors to the world, and
its limits.

Each part of the core worker gets the Environment by its constructor, with the other parts that it uses. What
changes is in context.py: the job that a worker serves, and the task that runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray_mono.common.world import Clock
from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceStub
from ray_mono.protobuf.raylet_rpc import RayletServiceStub


class TimerHandle(Protocol):
    def cancel(self) -> None: ...


class Flushable(Protocol):
    def flush(self) -> None: ...


class Closable(Protocol):
    def close(self, reason: str) -> None: ...


class ReactorInterface(Protocol):
    """The loop that reads and writes for the parts: rpc.reactor.Reactor, or one of a test's."""

    lock: Any
    """The RLock of the whole core worker."""
    is_closed: bool
    """Nothing is read or written any more."""
    interrupted: bool
    """The main thread's next wait raises KeyboardInterrupt."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> TimerHandle:
        """Calls callback() once, under the lock, when delay_s have passed. Lock held."""
        ...

    def mark_dirty(self, connection: Flushable, rings: bool = True) -> None: ...

    def flush(self) -> None: ...

    def flush_soon(self) -> None: ...

    def wake(self) -> None:
        """Something was left for the end of a turn, so that has to come soon. Takes no lock."""
        ...

    def take_turn(self) -> None:
        """Reads and writes what can be read and written now. For a thread that makes call after call, and
        waits for none. Takes the lock."""
        ...

    def hand_over(self) -> None:
        """A thread waits for what comes, and not by `wait`. So it is read at once, also if a caller read it
        until now. Lock held."""
        ...

    def wait(self, waiter: Any, timeout_s: float | None = None) -> bool: ...

    def rest_in(self, wait: Callable[[float | None], bool], timeout_s: float | None) -> bool:
        """wait(timeout_s), which is Python's, in the place of a wait of ours."""
        ...

    def raise_if_interrupted(self) -> None: ...

    def may_interrupt(self, frame: Any) -> bool: ...

    def note_interrupt(self, is_wanted: bool = True) -> None:
        """Whether the main thread's next wait raises KeyboardInterrupt."""
        ...

    def close(self) -> None:
        """Ends every wait. Nothing is read or written any more."""
        ...

    def abandon(self) -> None:
        """For a fork of the process: this copy does nothing any more."""
        ...

    def serve_queues(self, queues: Sequence[Any], drain: Callable[[], None]) -> None:
        """From now on calls drain() under the lock, if one of `queues` has something, at the end of each turn
        and before a thread polls."""
        ...


@dataclass(frozen=True)
class Environment:
    """One per core worker."""

    config: CoreWorkerConfig
    reactor: ReactorInterface
    clock: Clock
    rng: random.Random
    """Makes ids that nobody else may have."""
    address: common_pb2.Address
    """Where peers reach this process. Nobody may change the message."""
    node: common_pb2.NodeInfo
    gcs: GcsServiceStub
    raylet: RayletServiceStub
    """This node's raylet."""
    session_dir: str
    is_driver: bool
    pid: int
    lock: Any = field(init=False, repr=False)
    """The reactor's lock."""
    worker_id: bytes = field(init=False)
    node_id: bytes = field(init=False)
    owner_address: bytes = field(init=False)
    """The address as it travels with the references that this process owns."""

    def __post_init__(self) -> None:
        derived = {
            "lock": self.reactor.lock,
            "worker_id": self.address.worker_id,
            "node_id": self.node.node_id,
            "owner_address": self.address.SerializeToString(deterministic=True),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
