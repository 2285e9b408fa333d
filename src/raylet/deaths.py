"""What is told about a worker or driver that ended: one sentence and, where the launcher knows it, the exit
status.

Two things happen when a process dies, in either order: its connection ends, and the launcher reports its
exit. The first of them is the death; the report waits for the second, but not for long: a process whose
connection ended may live on, and is killed then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from ray_mono.protobuf import common_pb2
from ray_mono.raylet.clients import ClientProcess
from ray_mono.raylet.launcher import WorkerExit

EXITS_MAX = 1000
"""Exits without a connection that are remembered; each is asked for within a second or never."""


class Exits:
    """Exits that were reported, for whoever waits for one."""

    def __init__(self) -> None:
        self._known: dict[int, WorkerExit] = {}
        self._awaited: dict[int, asyncio.Future[WorkerExit]] = {}

    def happened(self, exit_: WorkerExit) -> None:
        waiter = self._awaited.get(exit_.startup_token)
        if waiter is not None and not waiter.done():
            waiter.set_result(exit_)
        self._known[exit_.startup_token] = exit_
        while len(self._known) > EXITS_MAX:
            del self._known[next(iter(self._known))]

    async def of(self, startup_token: int, timeout_s: float) -> WorkerExit | None:
        """The exit of a worker, if it happened or happens within timeout_s."""
        known = self._known.pop(startup_token, None)
        if known is not None:
            return known
        waiter = self._awaited.setdefault(startup_token, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except TimeoutError:
            return None
        finally:
            self._awaited.pop(startup_token, None)
            self._known.pop(startup_token, None)


def death_cause(
    client: ClientProcess, exit_: WorkerExit | None, connection_end: str, end_reason: str
) -> common_pb2.DeathCause:
    """end_reason: why the raylet ended it; empty where it did not."""
    cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.WORKER_DIED)
    if exit_ is not None:
        message = exit_.message
        cause.exit_code = exit_.exit_code
        cause.signal = exit_.signal
    elif client.is_driver:
        message = f"driver pid {client.pid} disconnected: {connection_end}"
    else:
        message = f"worker pid {client.pid} lost its connection to the raylet: {connection_end}"
    if end_reason:
        message += f"; the raylet ended it: {end_reason}"
    if client.ordered_cause.message or client.ordered_cause.kind:
        cause.kind = client.ordered_cause.kind
        message = client.ordered_cause.message or message
    cause.message = message
    return cause


def remove_socket(client: ClientProcess, session_dir: str) -> None:
    """A driver that was killed leaves the socket that membership.py made for it; the template sees to those of workers."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(session_dir, "sockets", f"worker-{client.worker_id.hex()[:16]}"))
