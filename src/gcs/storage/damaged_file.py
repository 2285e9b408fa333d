"""What becomes of a database that is damaged: it is kept aside, and nothing begins in its place by itself.

It is renamed beside, with the time in its name, together with its log. While it lies there and no file is in
its old place, a GCS does not start: an empty store would forget in silence what was acknowledged, also where
something starts the GCS again and again. A person repairs it, or moves it away.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sqlite3
import time

from ray_mono.gcs.storage import commit_mark
from ray_mono.gcs.storage.table_storage import StorageError

KEPT = ".damaged-"
# In this order: what is left where the file is gone is not taken for another file's.
SUFFIXES = ("-wal", "", commit_mark.SUFFIX)


class DamagedFileError(Exception):
    """Says what is wrong with the file."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether sqlite says that the file is damaged, not that it cannot be used now."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR) or code in (
        sqlite3.SQLITE_IOERR_SHORT_READ,
        sqlite3.SQLITE_IOERR_CORRUPTFS,
    )


def keep_aside(path: str, what: str) -> str:
    """Renames a database of ours. Returns what is to be said.

    A file that never was one of ours is left alone: it has no count of commits.
    """
    if not os.path.exists(path + commit_mark.SUFFIX) or not os.path.getsize(path + commit_mark.SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + commit_mark.SUFFIX)
        return f"{path} is not a file of the GCS: {what}"
    now_s, now_ns = divmod(time.time_ns(), 10**9)
    kept = f"{path}{KEPT}{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now_s))}.{now_ns:09d}Z"
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + suffix, kept + suffix)
    return f"the GCS's file {path} is damaged: {what}. {how_to_go_on(path, kept)}"


def refuse_beside(path: str) -> None:
    """Raises StorageError where a damaged database was kept beside this path, which holds none."""
    kept = [found for found in glob.glob(glob.escape(path + KEPT) + "*") if found.endswith("Z")]
    if kept:
        raise StorageError(f"the GCS's file {path} was damaged. {how_to_go_on(path, max(kept))}")


def how_to_go_on(path: str, kept: str) -> str:
    return (
        f"It is kept as {kept}, and the GCS does not start without it, since changes that were acknowledged "
        f"may be in it. Either repair it (sqlite3 {kept} .recover | sqlite3 {path}) or put a copy at {path}; "
        "or, to begin with an empty store, move it to another folder"
    )
