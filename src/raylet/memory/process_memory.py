"""How much memory processes use, each by itself: what they would give back if they ended. That is their
resident memory less what files and shared memory have of it. Pages that a fork shares with its parent count
for both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import NamedTuple

from ray_mono.common.process import all_living

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessMemory(NamedTuple):
    pid: int
    parent_pid: int
    used_bytes: int
    name: str
    """The kernel's, without arguments, which may be secret."""


def all_processes() -> dict[int, ProcessMemory]:
    """By pid. Those that end meanwhile are left out."""
    found = {}
    for process in all_living():
        with contextlib.suppress(OSError, ValueError):
            folder = f"/proc/{process.pid}"
            with open(f"{folder}/statm", "rb") as file:
                _, resident, shared = file.read().split(maxsplit=3)[:3]
            with open(f"{folder}/comm", errors="replace") as comm:
                name = comm.read().rstrip("\n")
            used = max(0, int(resident) - int(shared)) * _PAGE_BYTES
            found[process.pid] = ProcessMemory(process.pid, process.parent_pid, used, name)
    return found


def with_children(processes: Mapping[int, ProcessMemory]) -> dict[int, int]:
    """What each process uses with all those below it, by pid."""
    totals = dict.fromkeys(processes, 0)
    for process in processes.values():
        above: ProcessMemory | None = process
        seen = set()
        # They are not of one moment, so a pid may have come to a child of its child.
        while above is not None and above.pid not in seen:
            totals[above.pid] += process.used_bytes
            seen.add(above.pid)
            above = processes.get(above.parent_pid)
    return totals
