"""SimStorage: a GCS's store on a simulated disk, which keeps what was synced and nothing else.

A commit takes its time. A GCS that is killed during a commit leaves a store without it; one that was told
that the commit is done leaves a store with it. The disk outlives the process: the next GCS opens the same
one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from ray_mono.gcs.storage.table_storage import StorageError, Table, Write

COMMIT_DELAY_S = (20e-6, 2e-3)


class SimDisk:
    """What survives."""

    def __init__(self, rng: random.Random) -> None:
        self.tables: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        self.rng = rng
        self.commits = 0
        self.heads = 0


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
        await asyncio.sleep(self._disk.rng.uniform(*COMMIT_DELAY_S))
        for write in writes:
            if write.value is None:
                self._disk.tables[write.table].pop(write.key, None)
            else:
                self._disk.tables[write.table][write.key] = write.value
        self._disk.commits += 1
        self._is_committing = False

    def is_confirmed(self, for_s: float) -> bool:
        return True

    async def close(self) -> None:
        self._is_open = False
