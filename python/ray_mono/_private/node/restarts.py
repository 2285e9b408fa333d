"""When a service that ended is started again: at once, then after longer and longer pauses, and at some point
not any more. One that lived for a while has begun anew.

What ends by itself again and again will do so the next time, too. Who is killed may just have enemies, so
that counts less.
"""

from __future__ import annotations

from ray_mono.common.backoff import pause_after_s

LIVED_S = 60.0
"""A service that lived so long does not die of its start."""
PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 5.0
ENDS_MAX = 10
"""So many ends in a row are too many. All pauses together are shorter than a raylet waits for a GCS."""
KILLED_PART = 0.1
"""What the end of one that was killed counts."""


class Restarts:
    """Of one service. Times are seconds of one clock, given by the caller."""

    def __init__(self) -> None:
        self.num_in_a_row = 0
        """Ends, of processes that each lived for less than LIVED_S."""
        self._weight = 0.0

    def ended(self, started_s: float, now_s: float, was_killed: bool) -> float | None:
        """The service's process, which began at `started_s`, has ended. Returns when the next one shall
        begin; None if there shall be none."""
        if now_s - started_s >= LIVED_S:
            self.num_in_a_row, self._weight = 0, 0.0
        self.num_in_a_row += 1
        self._weight += KILLED_PART if was_killed else 1.0
        if self._weight >= ENDS_MAX:
            return None
        failures = int(self._weight) - (not was_killed)
        return now_s + pause_after_s(failures, PAUSE_FIRST_S, PAUSE_MAX_S)
