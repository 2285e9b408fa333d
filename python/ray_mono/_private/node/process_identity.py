"""Which process a pid means, and which processes there are below one: read from /proc.

A pid alone says little: the kernel gives it to another process once its owner is gone. A pid together with the tick at which the
process started names one process for as long as the machine runs. Nothing here is found by its name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, for good: what a session file records of a reaper."""

    pid: int
    start_ticks: int
    """Clock ticks between the machine's start and the process's."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The process that has this pid now; None where there is none, or only its remains (a zombie)."""
        fields = _stat_fields(pid)
        if fields is None or fields[0] in "ZX":
            return None
        return cls(pid, int(fields[19]))

    def is_alive(self) -> bool:
        return ProcessIdentity.of(self.pid) == self


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, parents before their children; without zombies. A snapshot: more may be forked meanwhile."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        fields = _stat_fields(int(name))
        if fields is not None and fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(int(name))
    found = list(children.get(pid, ()))
    for parent in found:
        found.extend(children.get(parent, ()))
    return found


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state (field 3) on. The command's name before them may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
