"""What the GCS asks of a store: tables of rows by key, read whole at the start and written in batches.

The GCS holds everything it knows in memory, and reads the store only when it starts. So a store is a log of
the latest rows, not a database to query. A batch is atomic, and durable when `commit` returns.
`write_through.py` makes the batches and knows what waits for them. Three implementations stand beside this
file: memory, sqlite3, Redis.

A store belongs to one head at a time, and each head that opens it gets a number above all earlier ones. Where
another head can take the store over while this one still runs (Redis), every commit checks the number
together with the write, and a head answers only while it knows that it is the latest (`is_confirmed`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ray_mono.common.service import FinalError


class Table(enum.Enum):
    """Every table there is. The values are names in the stores: never change one."""

    META = "meta"
    """cluster_id, start_time, next_job_number; what adoption.py has to know of earlier heads."""
    NODE = "node"
    JOB = "job"
    ACTOR = "actor"
    PLACEMENT_GROUP = "placement_group"
    WORKER = "worker"
    KV = "kv"
    ANSWER = "answer"


Tables = dict[Table, dict[bytes, bytes]]
"""Rows by table and key."""


class StorageError(Exception):
    """The store cannot be opened, or did not take a write.

    The message says which store, and what it answered.
    """


class StorageFullError(StorageError):
    """There was no room for a write, of which nothing was written. It may be written when there is room."""


class DeposedError(StorageError, FinalError):
    """Another head took the store over. The message says which. Begun again, this one would take it back."""


@dataclass(frozen=True)
class Write:
    """One row written, or deleted where `value` is None."""

    table: Table
    key: bytes
    value: bytes | None


class TableStorage(Protocol):
    """A store of rows. One user at a time: only one GCS may have it open. Calls do not overlap."""

    async def open(self) -> int:
        """Takes the store over, creating it where there is none. Returns the number of this head.

        Raises StorageError.
        """
        ...

    async def load_all(self, table: Table) -> dict[bytes, bytes]:
        """Every row of the table, in the order of the keys. Raises StorageError."""
        ...

    async def commit(self, writes: Sequence[Write]) -> None:
        """Applies the writes in order, all or none; durable on return, and then this head was the latest.

        Without writes it asks only that. Raises StorageError; DeposedError where another head took over.
        """
        ...

    def is_confirmed(self, for_s: float) -> bool:
        """Whether no other head takes over within for_s, so that this one may answer without asking.

        Always, where the store itself keeps others out.
        """
        ...

    async def close(self) -> None:
        """Releases the store. Everything committed stays."""
        ...
