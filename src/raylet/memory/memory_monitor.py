"""When a worker is killed for its memory. Pure.

    WATCHING ──above the threshold──► one is killed ──► WAITING for it
        ▲                                                  │
        └──it is gone, or wait_s is over───────────────────┘

After one was killed no other is before that one's memory is back: a process that has used many gigabytes
takes seconds to end, and the usage falls only then. So the look that finds it gone decides nothing: what is
used was read before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray_mono.raylet.memory.memory_usage import MemoryUsage
from ray_mono.raylet.memory.process_memory import ProcessMemory


@dataclass(frozen=True)
class _Killed:
    processes: Sequence[ProcessMemory]
    until_s: float


class MemoryMonitor:
    """Of one node."""

    def __init__(self, threshold: float, wait_s: float) -> None:
        """threshold: the part of the memory that may be used."""
        self._threshold = threshold
        self._wait_s = wait_s
        self._killed: _Killed | None = None

    def is_due(self, usage: MemoryUsage, has_memory: Callable[[ProcessMemory], bool], now_s: float) -> bool:
        """Whether a worker is to be killed now. has_memory(process): whether one that was killed still has
        its memory."""
        killed = self._killed
        if killed is None:
            return usage.used_bytes > self._threshold * usage.limit_bytes
        if now_s >= killed.until_s or not any(map(has_memory, killed.processes)):
            self._killed = None
        return False

    def killed(self, processes: Sequence[ProcessMemory], now_s: float) -> None:
        """A worker, with what it had started."""
        self._killed = _Killed(processes, now_s + self._wait_s)
