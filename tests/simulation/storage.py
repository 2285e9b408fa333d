"""SimStorage: a GCS's store on a simulated disk, which keeps what was synced and nothing else.

A commit takes its time. A GCS that is killed before it is written leaves a store without it; one that is
killed afterwards leaves a store with it, whether it was told so or not. The disk outlives the process: the
next GCS opens the same one.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray_mono.gcs.storage.table_storage import StorageError, Table, Write

COMMIT_DELAY_S = (20e-6, 2e-3)


class CommitStep(enum.Enum):
    """Where in a commit something may happen to the GCS."""

    BEGUN = "nothing of it is written, and will not be"
    WRITTEN = "it is durable, and nobody was told"


@dataclass(frozen=True)
class DiskKnobs:
    """What the seed draws for the head's disk."""

    slow_probability: float = 0.0
    """Of a commit that takes this long:"""
    slow_delay_s: tuple[float, float] = (0.1, 2.0)


class SimDisk:
    """What survives."""

    def __init__(self, rng: random.Random, knobs: DiskKnobs) -> None:
        self.tables: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        self.commits = 0
        """Begun so far, by all heads."""
        self.heads = 0
        self.on_step: Callable[[int, CommitStep], None] = lambda number, step: None
        """Called with the number of a commit, from 0, where it may happen to the GCS."""
        self._rng = rng
        self._knobs = knobs

    def lose(self) -> None:
        """What the next GCS finds is nothing."""
        self.tables = {table: {} for table in Table}
        self.heads = 0

    @property
    def is_slow(self) -> bool:
        """Now and then."""
        return self._knobs.slow_probability > 0

    def draw_delay_s(self) -> float:
        if self._knobs.slow_probability and self._rng.random() < self._knobs.slow_probability:
            return self._rng.uniform(*self._knobs.slow_delay_s)
        return self._rng.uniform(*COMMIT_DELAY_S)


class SimStorage:
    """TableStorage of one GCS process."""

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk
        self._is_open = False
        self._is_committing = False

    async def open(self) -> int:
        self._is_open = True
        self._disk.heads += 1
        return self._disk.heads

    async def load_all(self, table: Table) -> dict[bytes, bytes]:
        return dict(sorted(self._disk.tables[table].items()))

    async def commit(self, writes: Sequence[Write]) -> None:
        if not self._is_open or self._is_committing:
            raise StorageError(
                "a commit during another, or of a store that is not open: there is one user at a time"
            )
        self._is_committing = True
        number = self._disk.commits
        self._disk.commits += 1
        self._disk.on_step(number, CommitStep.BEGUN)
        await asyncio.sleep(self._disk.draw_delay_s())
        for write in writes:
            if write.value is None:
                self._disk.tables[write.table].pop(write.key, None)
            else:
                self._disk.tables[write.table][write.key] = write.value
        self._disk.on_step(number, CommitStep.WRITTEN)
        # A turn of the loop: a process that has just been killed is not told.
        await asyncio.sleep(0)
        self._is_committing = False

    def is_confirmed(self, for_s: float) -> bool:
        return True

    async def close(self) -> None:
        self._is_open = False
