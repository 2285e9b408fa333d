"""Until when a node's actors may run (raylet/head_lease.py), as each sees it who has to look.

Times are nanoseconds: `ends_ns` of CLOCK_BOOTTIME, which counts while the machine sleeps, and `awake_ns` of
CLOCK_MONOTONIC, which does not. It is over when both are past. So 0 for awake_ns means that sleep counts.
"""

from __future__ import annotations

from time import CLOCK_BOOTTIME, CLOCK_MONOTONIC, clock_gettime_ns

NO_END = (1 << 64) - 1
NS_PER_S = 1_000_000_000


def is_over(ends_ns: int, awake_ns: int) -> bool:
    return clock_gettime_ns(CLOCK_BOOTTIME) >= ends_ns and clock_gettime_ns(CLOCK_MONOTONIC) >= awake_ns
