"""Processes seen from outside, through /proc: who descends from whom, and what each costs.

This reads /proc itself: the child that measures another module runs in an interpreter of that module's, where
of ray_mono only this package can be imported (`supervisor.py`).
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One process; its start time tells it from a later one with the same pid."""

    pid: int
    parent_pid: int
    start_ticks: int
    cpu_s: float
    """User and system time so far, without that of its children."""
    is_zombie: bool


def find(pid: int) -> Process | None:
    """None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return Process(
        pid=pid,
        parent_pid=int(fields[1]),
        start_ticks=int(fields[19]),
        cpu_s=(int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_S,
        is_zombie=fields[0] == "Z",
    )


def descendants(pid: int) -> list[Process]:
    """Children, their children and so on, at this moment."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (process := find(int(entry))) is not None:
            children.setdefault(process.parent_pid, []).append(process)
    found: list[Process] = []
    waiting = [pid]
    while waiting:
        below = children.pop(waiting.pop(), [])
        found += below
        waiting += [process.pid for process in below]
    return found


def command(pid: int) -> str:
    """Command line or title; "" where there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def pss_bytes(pid: int) -> int:
    """Proportional set size: pages shared with others count in part. 0 where the process has ended."""
    return _rollup(pid, "Pss:")


def private_bytes(pid: int) -> int:
    """Memory that would be free if the process ended: what it does not share with others."""
    return _rollup(pid, "Private_Clean:") + _rollup(pid, "Private_Dirty:")


def _rollup(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def cpu_s(processes: list[Process]) -> float:
    """What those of them that still run have used, together."""
    return sum(now.cpu_s for process in processes if (now := find(process.pid)) is not None)


def is_running(process: Process) -> bool:
    now = find(process.pid)
    return now is not None and now.start_ticks == process.start_ticks and not now.is_zombie


def end_all(processes: list[Process], grace_s: float) -> None:
    """Waits until all of them have ended, and kills those that have not within `grace_s`."""
    deadline_s = time.monotonic() + grace_s
    while (left := [process for process in processes if is_running(process)]) and (
        time.monotonic() < deadline_s
    ):
        time.sleep(0.05)
    for process in left:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
