"""The default store: one sqlite3 file in WAL mode, in the session directory.

A commit appends to the write-ahead log. With synchronous=NORMAL it is in the kernel's hands when `commit`
returns: it survives the death of every process, SIGKILL included, but not of the machine. FULL also syncs to
the disk, ten times slower, and survives power loss. Commits take tens of microseconds, so they run on the
loop: a thread would cost more than it saves.

The file is locked exclusively while open, so that two heads cannot write over each other.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence

from ray_mono.common import private_files
from ray_mono.gcs.storage.table_storage import StorageError, Table, Write

SCHEMA_VERSION = 1


class SqliteStorage:
    """Implements TableStorage in a file."""

    def __init__(self, path: str, survive_power_loss: bool) -> None:
        """path: created (0600) where it does not exist; its folder must. survive_power_loss: sync commits."""
        self._path = path
        self._synchronous = "FULL" if survive_power_loss else "NORMAL"
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        try:
            # Whoever can read the file reads every job's code and arguments; whoever can put another there
            # has his own code run. sqlite opens it by its name, and two more beside it.
            directory = private_files.open_directory(os.path.dirname(self._path) or ".")
            try:
                name = os.path.basename(self._path)
                os.close(private_files.open_file(name, os.O_RDWR | os.O_CREAT, directory))
                for suffix in ("-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.close(private_files.open_file(name + suffix, os.O_RDWR, directory))
            finally:
                os.close(directory)
            self._connection = self._connect()
        except private_files.UntrustedPathError as error:
            raise StorageError(f"the GCS's file {self._path} is not to be trusted: {error}") from error
        except OSError as error:
            raise StorageError(f"cannot open the GCS's file {self._path}: {error.strerror}") from error
        except sqlite3.OperationalError as error:
            hint = ": is another gcs_server using it?" if "locked" in str(error) else ""
            raise StorageError(f"cannot open the GCS's file {self._path}: {error}{hint}") from error
        except sqlite3.DatabaseError as error:
            raise StorageError(f"{self._path} is not a file of the GCS: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        # isolation_level None: transactions begin and end only where this file says so.
        connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA_VERSION):
                raise StorageError(
                    f"{self._path} was written with schema {version}; "
                    f"this ray_mono reads schema {SCHEMA_VERSION}"
                )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS rows"
                " (name TEXT, key BLOB, value BLOB NOT NULL, PRIMARY KEY (name, key))"
            )
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    async def load_all(self, table: Table) -> dict[bytes, bytes]:
        query = "SELECT key, value FROM rows WHERE name = ? ORDER BY key"
        try:
            return dict(self._opened().execute(query, (table.value,)))
        except sqlite3.Error as error:
            raise StorageError(f"cannot read table {table.value} of {self._path}: {error}") from error

    async def commit(self, writes: Sequence[Write]) -> None:
        connection = self._opened()
        try:
            connection.execute("BEGIN IMMEDIATE")
            for write in writes:
                if write.value is None:
                    connection.execute(
                        "DELETE FROM rows WHERE name = ? AND key = ?", (write.table.value, write.key)
                    )
                else:
                    connection.execute(
                        "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)",
                        (write.table.value, write.key, write.value),
                    )
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise StorageError(f"cannot write to {self._path}: {error}") from error

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StorageError(f"{self._path} is not open")
        return self._connection
