"""What is told about a worker or driver that ended: one sentence, and the exit status where the launcher
knows it.

When a process dies its connection ends, and the launcher reports its exit, in either order. The first of
the two is the death. The report waits for the second, but not for long: a process whose connection ended
may live on, and is killed then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Generic, TypeVar

from ray_mono.protobuf import common_pb2
from ray_mono.raylet.clients import ClientProcess
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.effects import GROUP_REMOVED
from ray_mono.raylet.worker.launcher import WorkerExit
from ray_mono.raylet.worker.room_for_workers import why_and_what_helps

ENDS_MAX = 1000
"""Ends that nobody has asked for yet and that are remembered; each is asked for within seconds or never."""
LAST_LINES_MAX = 10
LAST_BYTES_MAX = 1000
FATAL, FATAL_BYTES_MAX = "Fatal Python error:", 32 << 10
"""What Python writes when a signal of the processor ends it, and how long that is with all its frames."""
LABELS = (":job_id:", ":task_name:", ":actor_name:", "::ray_mono_progress::")
"""Of lines that a worker writes for the log monitor (log_files.py)."""
OOM_COUNTERS = "/proc/vmstat"

Key = TypeVar("Key")
End = TypeVar("End")


class Ends(Generic[Key, End]):
    """Ends that were reported, for whoever waits for one."""

    def __init__(self) -> None:
        self._known: dict[Key, End] = {}
        self._awaited: dict[Key, asyncio.Future[End]] = {}

    def happened(self, key: Key, end: End) -> None:
        waiter = self._awaited.get(key)
        if waiter is not None and not waiter.done():
            waiter.set_result(end)
        self._known[key] = end
        while len(self._known) > ENDS_MAX:
            del self._known[next(iter(self._known))]

    async def of(self, key: Key, timeout_s: float) -> End | None:
        """The end of this one, if it happened or happens within timeout_s. To be asked for once."""
        known = self._known.pop(key, None)
        if known is not None:
            return known
        waiter = self._awaited.setdefault(key, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except TimeoutError:
            return None
        finally:
            self._awaited.pop(key, None)
            self._known.pop(key, None)


class OomKills:
    """Whether the kernel's out-of-memory killer has struck on this machine, as far as the kernel tells."""

    def __init__(self, path: str = OOM_COUNTERS) -> None:
        self._path = path
        self._count = self._read()

    def has_struck(self) -> bool:
        """Since the last question."""
        before, self._count = self._count, self._read()
        return self._count > before

    def _read(self) -> int:
        with contextlib.suppress(OSError), open(self._path) as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0


def death_cause(
    client: ClientProcess,
    exit_: WorkerExit | None,
    connection_end: str,
    end_reason: str,
    config: RayletConfig,
    oom_kills: OomKills,
) -> common_pb2.DeathCause:
    """What is told of it: how it ended, where, and where it wrote to.

    end_reason: why the raylet meant to end it; empty where it did not.
    """
    exit_code, signum = (exit_.exit_code, exit_.signal) if exit_ is not None else (0, 0)
    if client.left_because:
        message = f"worker pid {client.pid} ended: {client.left_because}"
    elif exit_ is not None:
        message = exit_.message
    elif client.is_driver:
        message = f"driver pid {client.pid} disconnected: {connection_end}"
    else:
        message = f"worker pid {client.pid} lost its connection to the raylet: {connection_end}"
    ordered = client.ordered_cause
    is_ordered = bool(ordered.message or ordered.kind)
    kind = ordered.kind if is_ordered else common_pb2.DeathCause.WORKER_DIED
    if end_reason and _is_ours(client, exit_):
        message += f"; the raylet ended it: {end_reason}"
        if end_reason == GROUP_REMOVED and not is_ordered:
            kind = common_pb2.DeathCause.PLACEMENT_GROUP_REMOVED
    elif signum == signal.SIGKILL and not is_ordered:
        message += _whose_kill(oom_kills)
    if not client.is_driver:
        log = _log_of(client.worker_id, client.pid, config)
        message += f"; node {config.host}, output in {log}.out and .err"
        if not (is_ordered or end_reason):
            message += last_lines(log)
    cause = common_pb2.DeathCause(
        kind=kind,
        message=ordered.message or message,
        exit_code=exit_code,
        signal=signum,
        is_preempted=ordered.is_preempted,
    )
    if ordered.HasField("oom_retries"):
        cause.oom_retries.CopyFrom(ordered.oom_retries)
    return cause


def why_not_started(exit_: WorkerExit, worker_id: bytes, config: RayletConfig) -> str:
    """Of a worker that ended before it registered, or was never made: how, what it wrote last, and what
    helps."""
    lines = _last_written(_log_of(worker_id, exit_.pid, config))
    if not lines:
        return why_and_what_helps(exit_.message)
    last = lines[0] if lines[0].startswith(FATAL) else lines[-1]
    return why_and_what_helps(f"{exit_.message} and wrote last: {last.strip()}")


def last_lines(log: str) -> str:
    """What a process wrote last, on lines of their own, to go behind a sentence; empty where that is nothing.
    log: the path of its files, without the suffix."""
    lines = _last_written(log)
    return "\nIt wrote last:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""


def _log_of(worker_id: bytes, pid: int, config: RayletConfig) -> str:
    return f"{config.session_dir}/logs/worker-{worker_id.hex()}-{pid}"


def _last_written(log: str) -> list[str]:
    for suffix in (".err", ".out"):
        try:
            with open(log + suffix, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - FATAL_BYTES_MAX))
                text = file.read().decode(errors="replace")
        except OSError:
            continue
        fatal = text.rfind(FATAL)
        last = text[fatal:] if fatal >= 0 else text[-LAST_BYTES_MAX:]
        lines = [line for line in last.splitlines() if line and not line.startswith(LABELS)]
        # Python writes the innermost frame first.
        lines = lines[:LAST_LINES_MAX] if fatal >= 0 else lines[-LAST_LINES_MAX:]
        if lines:
            return lines
    return []


def _is_ours(client: ClientProcess, exit_: WorkerExit | None) -> bool:
    """Whether it ended as the raylet tried to end it. One that was only asked may be killed by somebody else
    before it has answered."""
    if exit_ is None or (exit_.exit_code == 0 and exit_.signal == 0):
        return bool(client.end_attempts)
    return exit_.exit_code == 0 and exit_.signal in client.end_attempts


def _whose_kill(oom_kills: OomKills) -> str:
    if oom_kills.has_struck():
        return (
            ", and the kernel's out-of-memory killer has struck: "
            "the machine, or its container, ran out of memory"
        )
    return ", which this cluster did not send"


def remove_socket(worker_id: bytes, session_dir: str) -> None:
    """Who was killed leaves the socket that it served on."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(session_dir, "sockets", f"worker-{worker_id.hex()[:16]}"))
