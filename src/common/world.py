"""What the services take from the world, injected whole and small, so that the simulator can be the world.

No machine reads a clock, draws a random number or starts a process by itself. There are no defaults on
purpose: a default that is the real thing is how the real thing slips into a simulation.
"""

from __future__ import annotations

import random
import time
from typing import Protocol


class Clock(Protocol):
    """Time. Timers belong to the asyncio loop that a service runs on; in the simulator that loop is virtual
    too."""

    def time_s(self) -> float:
        """Monotonic seconds, for intervals."""
        ...

    def wall_s(self) -> float:
        """Seconds since the epoch, for people."""
        ...

    def awake_or_asleep_s(self) -> float:
        """Monotonic seconds that count while the machine sleeps, too: a lease does not sleep."""
        ...


class SystemClock:
    """The machine's clocks."""

    def time_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()

    def awake_or_asleep_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)


def system_rng() -> random.Random:
    """A generator seeded by the operating system: the real counterpart of a simulation's seeded
    random.Random."""
    return random.SystemRandom()
