"""The default store: one sqlite3 file in WAL mode, in the session directory.

A commit appends to the write-ahead log. With synchronous=NORMAL it is in the kernel's hands when `commit`
returns: it survives the death of every process, SIGKILL included, but not of the machine. FULL also syncs to
the disk, ten times slower, and survives power loss. Commits take tens of microseconds, so they run on the
loop: a thread would cost more than it saves.

The file is locked exclusively while open, so that two heads cannot write over each other. The number of the
head, and how many commits there were, are rows of no table.

Each row has a checksum, and `commit_mark.py` knows how many commits there must be. A file that is damaged, or
has fewer, is refused and kept aside (`damaged_file.py`): nothing that was acknowledged is lost in silence.

Pages of deleted rows are used again. A file that is mostly free pages is packed when it is opened.

Where the disk has no room it says so (StorageFullError), and has written nothing: `room.py` waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
import zlib
from collections.abc import Sequence

from ray_mono.common import private_files
from ray_mono.gcs.storage import commit_mark, damaged_file
from ray_mono.gcs.storage.table_storage import StorageError, StorageFullError, Table, Write

SCHEMA_VERSION = 2
# What the log may keep on the disk after a large batch.
LOG_BYTES_MAX = 16 << 20
# With fewer free pages, packing is not worth the time.
FREE_PAGES_MIN = 4096

HEAD = "head"
HEAD_NUMBER = b"number"
COMMITS = b"commits"
PUT = "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)"


class SqliteStorage:
    """Implements TableStorage in a file."""

    def __init__(self, path: str, survive_power_loss: bool) -> None:
        """path: created (0600) where it does not exist; its folder must. survive_power_loss: sync commits."""
        self._path = path
        self._synchronous = "FULL" if survive_power_loss else "NORMAL"
        self._connection: sqlite3.Connection | None = None
        self._mark: commit_mark.CommitMark | None = None
        self._commits = 0

    async def open(self) -> int:
        try:
            self._prepare_files()
            return self._take_over()
        except private_files.UntrustedPathError as error:
            raise StorageError(f"the GCS's file {self._path} is not to be trusted: {error}") from error
        except OSError as error:
            raise _failure(error, f"cannot open the GCS's file {self._path}: {error.strerror}") from error
        except sqlite3.Error as error:
            hint = ": is another gcs_server using it?" if "locked" in str(error) else ""
            raise _failure(error, f"cannot open the GCS's file {self._path}: {error}{hint}") from error

    def _prepare_files(self) -> None:
        # Whoever can read the file reads every job's code and arguments; whoever can put another there
        # has his own code run. sqlite opens it by its name, and two more beside it.
        directory = private_files.open_directory(os.path.dirname(self._path) or ".")
        try:
            name = os.path.basename(self._path)
            if not os.path.lexists(self._path):
                damaged_file.refuse_beside(self._path)
                # Whoever removed the file wants a new one.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name + commit_mark.SUFFIX, dir_fd=directory)
            os.close(private_files.open_file(name, os.O_RDWR | os.O_CREAT, directory))
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.close(private_files.open_file(name + suffix, os.O_RDWR, directory))
        finally:
            os.close(directory)

    def _take_over(self) -> int:
        """Opens the file, looks whether it is whole, and counts this head."""
        # isolation_level None: transactions begin and end only where this file says so.
        connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            try:
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")
                connection.execute("PRAGMA journal_mode=WAL")
                # Nothing is written before all was looked at.
                self._mark = commit_mark.CommitMark(self._path)
                self._commits = self._check(connection, self._mark.read())
            except sqlite3.DatabaseError as error:
                if not damaged_file.is_damage(error):
                    raise
                raise damaged_file.DamagedFileError(str(error)) from error
            self._set_up(connection)
            number = self._count_head(connection)
            self._connection = connection
            return number
        except damaged_file.DamagedFileError as damage:
            # Before the connection closes, which would write to what is kept.
            raise StorageError(damaged_file.keep_aside(self._path, str(damage))) from damage
        finally:
            if self._connection is None:
                connection.close()
                self._close_mark()

    def _check(self, connection: sqlite3.Connection, commits_min: int) -> int:
        """Returns how many commits the file has. Raises DamagedFileError, StorageError, sqlite3.Error."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            raise StorageError(
                f"{self._path} was written with schema {version}; this ray_mono reads schema {SCHEMA_VERSION}"
            )
        commits = 0
        if version == SCHEMA_VERSION:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise damaged_file.DamagedFileError(verdict)
            for name, key, value, checksum in connection.execute("SELECT * FROM rows"):
                if checksum != checksum_of(name, key, value):
                    raise damaged_file.DamagedFileError(f"a row of table {name!r} is not what was written")
            found = connection.execute("SELECT value FROM rows WHERE name = ? AND key = ?", (HEAD, COMMITS))
            commits = int((found.fetchone() or (b"0",))[0])
        elif connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            raise StorageError(f"{self._path} is not a file of the GCS: it has other tables")
        if commits < commits_min:
            raise damaged_file.DamagedFileError(
                f"it has {commits} commits, and {commits_min} were acknowledged"
            )
        return commits

    def _set_up(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        connection.execute(f"PRAGMA journal_size_limit={LOG_BYTES_MAX}")
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
        if free_pages > max(FREE_PAGES_MIN, pages // 2):
            connection.execute("VACUUM")

    def _count_head(self, connection: sqlite3.Connection) -> int:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS rows"
            " (name TEXT, key BLOB, value BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (name, key))"
        )
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        found = connection.execute("SELECT value FROM rows WHERE name = ? AND key = ?", (HEAD, HEAD_NUMBER))
        # A time, so that it is above those of all heads before also where an older copy of the file was put
        # in its place: nodes may know later heads than that does.
        now_ms = time.time_ns() // 10**6
        number = max(now_ms, 1 + int((found.fetchone() or (b"0",))[0]))
        self._put(connection, HEAD, HEAD_NUMBER, str(number).encode())
        self._end_commit(connection)
        return number

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
                    self._put(connection, write.table.value, write.key, write.value)
            self._end_commit(connection)
        except (sqlite3.Error, OSError, TypeError) as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise _failure(error, f"cannot write to {self._path}: {error}") from error

    def _put(self, connection: sqlite3.Connection, name: str, key: bytes, value: bytes) -> None:
        connection.execute(PUT, (name, key, value, checksum_of(name, key, value)))

    def _end_commit(self, connection: sqlite3.Connection) -> None:
        commits = self._commits + 1
        self._put(connection, HEAD, COMMITS, str(commits).encode())
        connection.execute("COMMIT")
        self._commits = commits
        if self._mark is not None:
            self._mark.write(commits)

    def is_confirmed(self, for_s: float) -> bool:
        return True

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._close_mark()

    def _close_mark(self) -> None:
        if self._mark is not None:
            self._mark.close()
            self._mark = None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StorageError(f"{self._path} is not open")
        return self._connection


def checksum_of(name: str, key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key, zlib.crc32(b"%d %s" % (len(key), name.encode()))))


def _failure(error: Exception, message: str) -> StorageError:
    """Whether the disk, a quota or a limit had no room, or something else failed."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        has_room = code not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
    else:
        has_room = getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return StorageError(message) if has_room else StorageFullError(message)
