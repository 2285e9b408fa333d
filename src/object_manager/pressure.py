"""When a full store asks for help, and when it says so: a Create that waits for room is a reason for both.
While room is made by writing objects to disk, nothing is said.

First all processes of the cluster are asked to collect garbage: references in cycles keep objects that nobody
can reach. If that does not help, people are told. Neither again for a while, whoever asked, and nothing while
room is found at once. A machine without I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

COLLECT_AFTER_S = 0.3
COLLECT_PERIOD_S = 5.0
TELL_AFTER_S = 2.0
TELL_PERIOD_S = 30.0


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done now."""

    collect: bool
    tell: bool


class Pressure:
    """oldest_s, everywhere: since when the first of the Creates waits; None where none does. stuck_s: since
    when it waits for others to let go."""

    def __init__(self) -> None:
        self._collect_from_s = -math.inf
        self._tell_from_s = -math.inf

    def next_deadline_s(self, oldest_s: float | None, stuck_s: float | None) -> float | None:
        """When `expire` has something to do."""
        if oldest_s is None:
            return None
        collect_s = max(oldest_s + COLLECT_AFTER_S, self._collect_from_s)
        return collect_s if stuck_s is None else min(collect_s, self._tell_s(stuck_s))

    def may_collect(self, now_s: float) -> bool:
        """Another node, or this one's raylet, asks for it."""
        if now_s < self._collect_from_s:
            return False
        self._collect_from_s = now_s + COLLECT_PERIOD_S
        return True

    def expire(self, oldest_s: float | None, stuck_s: float | None, now_s: float) -> Due:
        collect = oldest_s is not None and now_s >= max(oldest_s + COLLECT_AFTER_S, self._collect_from_s)
        tell = stuck_s is not None and now_s >= self._tell_s(stuck_s)
        if collect:
            self._collect_from_s = now_s + COLLECT_PERIOD_S
        if tell:
            self._tell_from_s = now_s + TELL_PERIOD_S
        return Due(collect, tell)

    def _tell_s(self, stuck_s: float) -> float:
        return max(stuck_s + TELL_AFTER_S, self._tell_from_s)
