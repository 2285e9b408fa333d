"""The processes that are connected: this node's workers and drivers, and whoever asked for a lease.

A connection is the life of what is behind it. Each gets a number when it first matters (`requester_of`); a
worker or driver that registered is kept under its worker id until its connection, or its process, ends. Knows
nothing about what that means.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

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
    ended_by_itself: bool | None = None
    """Whether it had ended when the raylet first meant to end it; None where that never did."""
    left_because: str = ""
    """What a task did to end it."""
    ran: str = ""
    """What it ran when it died by itself, as a sentence has it."""

    @property
    def is_driver(self) -> bool:
        return self.type == common_pb2.DRIVER

    def note_what_ran(self) -> None:
        """It died while it was leased for tasks."""
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
    """fd: 0 where the worker has none. Its descriptor is not needed for long: what is mapped outlives the worker."""
    try:
        return BoardOfAnother(pid, fd, worker_id) if fd else None
    except (OSError, ValueError) as error:
        logger.warning("worker %s: what it has begun cannot be read: %s", worker_id.hex()[:8], error)
        return None
