"""The memory of a simulated node, as its raylet's monitor sees it. Each worker that lives has the same part
of it. A fault leaves room for so many and no more, for a while.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ray_mono.raylet.memory.memory_usage import MemoryUsage
from ray_mono.raylet.memory.process_memory import Processes, ProcessMemory
from tests.simulation.checkers import Journal
from tests.simulation.launcher import SimWorkerLauncher

WORKER_BYTES = 1 << 20
LIMIT_BYTES = 1 << 40


@dataclass(frozen=True)
class MemoryFault:
    """A node runs short of memory."""

    at_s: float
    choice: int
    """Which node: an index, modulo how many there are then."""
    num_workers: int
    """For how many of its workers there is room."""
    lasts_s: float


def draw_memory_fault(rng: random.Random) -> MemoryFault:
    return MemoryFault(
        at_s=rng.uniform(0.1, 8.0),
        choice=rng.getrandbits(8),
        num_workers=rng.choice([0, 1, 2]),
        lasts_s=rng.choice([0.3, 1.0, 4.0]),
    )


class SimMemory:
    """Implements Memory."""

    def __init__(self, launcher: SimWorkerLauncher, journal: Journal) -> None:
        self._launcher = launcher
        self._journal = journal
        self._num_workers: int | None = None

    def leave_room_for(self, num_workers: int | None) -> None:
        """None: for all."""
        self._num_workers = num_workers

    def usage(self) -> MemoryUsage:
        num_living = len(self._launcher.living())
        if self._num_workers is None or num_living <= self._num_workers:
            return MemoryUsage(num_living * WORKER_BYTES, LIMIT_BYTES)
        return MemoryUsage(LIMIT_BYTES, LIMIT_BYTES)

    def processes(self, usage: MemoryUsage) -> Processes:
        self._journal.kills_for_memory()
        return Processes(
            ProcessMemory(process.pid, 0, 0, WORKER_BYTES, process.name)
            for process in self._launcher.living()
        )

    def has_memory(self, process: ProcessMemory) -> bool:
        return any(living.pid == process.pid for living in self._launcher.living())

    def kill(self, process: ProcessMemory) -> None:
        """Workers start nothing here."""
