"""A store that lives as long as its object: for tests, and for clusters whose head need not survive.

The simulator hands it to the next GCS.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_mono.gcs.storage.table_storage import Table, Tables, Write


class MemoryStorage:
    """Implements TableStorage in a dictionary per table."""

    def __init__(self) -> None:
        self._tables: Tables = {table: {} for table in Table}
        self._head_number = 0

    async def open(self) -> int:
        self._head_number += 1
        return self._head_number

    async def load_all(self, table: Table) -> dict[bytes, bytes]:
        return dict(sorted(self._tables[table].items()))

    async def commit(self, writes: Sequence[Write]) -> None:
        for write in writes:
            if write.value is None:
                self._tables[write.table].pop(write.key, None)
            else:
                self._tables[write.table][write.key] = write.value

    def is_confirmed(self, for_s: float) -> bool:
        return True

    async def close(self) -> None:
        pass
