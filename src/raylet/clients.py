"""The processes that are connected: this node's workers and drivers, and whoever asked for a lease.

A process lives as long as its connection. A connection gets a number when it first asks for a lease
(`requester_of`). A worker or driver that registered is kept under its worker id until its connection or its
process ends. What such an end means is decided elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ray_mono.common.start_board import BoardOfAnother
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import Connection

_REQUESTER = "raylet.requester"

logger = logging.getLogger(__name__)


@dataclass
class ClientProcess:
    """A worker or driver of this node that is registered."""

    worker_id: bytes
    type: common_pb2.WorkerType
    language: common_pb2.Language
    pid: int
    job_id: bytes
    address: common_pb2.Address
    connection: Connection
    startup_token: int
    start_time_s: float
    """Since the epoch."""
    board: BoardOfAnother | None = None
    """None where the worker has none, or it cannot be read."""
    ordered_cause: common_pb2.DeathCause = field(default_factory=common_pb2.DeathCause)
    """Why somebody had it killed; empty where nobody had."""
    end_attempts: frozenset[int] = frozenset()
    """How the raylet has tried to end it while it lived: the numbers of signals; 0: it was asked."""
    left_because: str = ""
    """What a task did to end it."""
    ran: str = ""
    """What it ran when it died by itself, as a sentence has it."""

    @property
    def is_driver(self) -> bool:
        return self.type == common_pb2.DRIVER

    def leaves(self, because: str) -> None:
        """It ends by itself. because: what a task did to end it; empty where nothing is wrong."""
        self.left_because = because
        if not because and not self.ordered_cause.kind:
            self.ordered_cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.EXITED)

    def is_ordered_to_end(self, cause: common_pb2.DeathCause) -> None:
        """Somebody has it killed."""
        self.ordered_cause = cause

    def raylet_tries_to_end_it(self, signum: int) -> None:
        """signum: what it is sent; 0 where it is asked."""
        self.end_attempts |= {signum}

    def belongs_to(self, job_id: bytes) -> None:
        """A worker has no job until its first lease."""
        self.job_id = job_id

    def note_what_ran(self) -> None:
        """It died while it was leased for tasks: remembers which of them it ran."""
        name = self.board.running() if self.board is not None else ""
        self.ran = f"task {name}" if name else "" if self.board is not None else "a task"

    def info(self, node_id: bytes) -> common_pb2.WorkerInfo:
        """Its row at the GCS."""
        return common_pb2.WorkerInfo(
            worker_id=self.worker_id,
            node_id=node_id,
            type=self.type,
            language=self.language,
            pid=self.pid,
            job_id=self.job_id,
            is_alive=True,
            start_time_s=self.start_time_s,
            address=self.address,
            ran=self.ran,
        )

    def info_at_its_end(
        self, node_id: bytes, end_time_s: float, cause: common_pb2.DeathCause
    ) -> common_pb2.WorkerInfo:
        """Its last row at the GCS. end_time_s: since the epoch."""
        info = self.info(node_id)
        info.ClearField("is_alive")
        info.MergeFrom(common_pb2.WorkerInfo(end_time_s=end_time_s, death_cause=cause))
        return info


class Clients:
    """Registered processes and numbered connections."""

    def __init__(self) -> None:
        self._processes: dict[bytes, ClientProcess] = {}
        self._next_requester = 1

    def __iter__(self) -> Iterator[ClientProcess]:
        return iter(list(self._processes.values()))

    def get(self, worker_id: bytes) -> ClientProcess | None:
        return self._processes.get(worker_id)

    def add(self, process: ClientProcess) -> None:
        """Raises ValueError where the id is taken: a connection registers one process, once."""
        if process.worker_id in self._processes:
            raise ValueError(f"{process.worker_id.hex()} is registered already")
        self._processes[process.worker_id] = process

    def describe(self) -> list[dict[str, Any]]:
        """The drivers, for people."""
        return [
            {"worker_id": client.worker_id.hex(), "pid": client.pid, "job_id": client.job_id.hex()}
            for client in self
            if client.is_driver
        ]

    def remove(self, worker_id: bytes) -> ClientProcess | None:
        return self._processes.pop(worker_id, None)

    def requester_of(self, connection: Connection, on_gone: Callable[[int], None]) -> int:
        """The connection's number; on_gone(number) runs when it ends."""
        number: int | None = connection.state.get(_REQUESTER)
        if number is None:
            number = connection.state[_REQUESTER] = self._next_requester
            self._next_requester += 1
            connection.on_close(lambda reason: on_gone(number))
        return number


def open_board(worker_id: bytes, pid: int, fd: int) -> BoardOfAnother | None:
    """fd: the worker's descriptor of its board; 0 where it has none. What is mapped here outlives the
    worker."""
    try:
        return BoardOfAnother(pid, fd, worker_id) if fd else None
    except (OSError, ValueError) as error:
        logger.warning("worker %s: what it has begun cannot be read: %s", worker_id.hex()[:8], error)
        return None
