"""When a worker is killed for its memory. Pure.

    WATCHING ──above the threshold──► one is killed ──► WAITING for it
        ▲                                                  │
        └──its process is gone, or wait_s is over──────────┘

After one was killed no other is before that one's memory is back: a process that has used many gigabytes
takes seconds to end, and the usage falls only then. So the look that finds it gone decides nothing: what is
used was read before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ray_mono.raylet.memory.memory_usage import MemoryUsage


@dataclass(frozen=True)
class _Killed:
    pid: int
    until_s: float


class MemoryMonitor:
    """Of one node."""

    def __init__(self, threshold: float, wait_s: float) -> None:
        """threshold: the part of the memory that may be used."""
        self._threshold = threshold
        self._wait_s = wait_s
        self._killed: _Killed | None = None

    def is_due(self, usage: MemoryUsage, lives: Callable[[int], bool], now_s: float) -> bool:
        """Whether a worker is to be killed now. lives(pid): whether a process still has its memory."""
        killed = self._killed
        if killed is None:
            return usage.used_bytes > self._threshold * usage.limit_bytes
        if now_s >= killed.until_s or not lives(killed.pid):
            self._killed = None
        return False

    def killed(self, pid: int, now_s: float) -> None:
        self._killed = _Killed(pid, now_s + self._wait_s)
