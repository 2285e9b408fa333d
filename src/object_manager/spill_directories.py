"""The directories in which a node's spilled objects lie: one of the node's own in each that it is told.

    <directory>/ray_spilled_objects_<node id>/   0700
        lock   held as long as the object manager lives
        <number>

The lock says whose files they are: it ends with its holder, however that ended. So whoever starts here, or
beside the sessions in which they lie, removes the directories of nodes of this user's that are gone. They are
no use to anybody: a spilled object ends with its store. A directory without a lock is not ours, and stays.

A node's directory that somebody has removed (what cleans /tmp does) is made again when something is to be
written there. Not so where its file system is gone: what was meant for that disk would fill another one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from ray_mono.common.private_files import UntrustedPathError, make_directory, open_directory
from ray_mono.common.store_messages import SPILL_DIRECTORY_PREFIX

_LOCK = "lock"

logger = logging.getLogger(__name__)


class SpillDirectoryError(Exception):
    """A directory cannot be used; the message says which, and why."""


class SpillDirectories:
    """Those of one node, made and locked."""

    def __init__(self, directories: Sequence[str], node_id_hex: str, session: str | None = None) -> None:
        """session: the node's, among others that may have ended. Raises SpillDirectoryError."""
        self.paths: list[str] = []
        # By path.
        self._locks: dict[str, int] = {}
        self._devices: dict[str, int] = {}
        self._making = threading.Lock()
        if session is not None:
            for other in Path(session).absolute().parent.glob("session_*"):
                _remove_left(other)
        try:
            for directory in directories:
                self._prepare(Path(directory), node_id_hex)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Removes them with all that is in them."""
        with self._making:
            for path in self.paths:
                _remove(path)
            for lock in self._locks.values():
                os.close(lock)
            self.paths, self._locks = [], {}

    def bring_back(self, path: str) -> None:
        """Makes one of them again if it is gone. Called by threads. Raises OSError."""
        with self._making:
            if path not in self._locks or os.path.isdir(path):
                return
            directory = Path(path).parent
            try:
                make_directory(directory)
                os.close(open_directory(directory))
            except UntrustedPathError as error:
                raise OSError(errno.EPERM, str(error), path) from error
            if os.stat(directory).st_dev != self._devices[path]:
                raise OSError(errno.ENODEV, "the file system on which it lay is gone", path)
            lock = _make(Path(path))
            os.close(self._locks[path])
            self._locks[path] = lock
        logger.warning("%s had been removed, and was made again: what was in it is lost", path)

    def _prepare(self, directory: Path, node_id_hex: str) -> None:
        path = directory / (SPILL_DIRECTORY_PREFIX + node_id_hex)
        try:
            make_directory(directory)
            os.close(open_directory(directory))
            _remove_left(directory)
            self._locks[str(path)] = _make(path)
            self._devices[str(path)] = os.stat(directory).st_dev
        except UntrustedPathError as error:
            raise SpillDirectoryError(f"objects cannot be spilled to {directory}: {error}") from error
        except OSError as error:
            raise SpillDirectoryError(
                f"objects cannot be spilled to {directory}: {error.strerror}: choose a directory that this"
                " user can write to (--object-spilling-directory, in Python"
                " object_spilling_directory)"
            ) from error
        self.paths.append(str(path))


def _make(path: Path) -> int:
    """Its lock. It gets its name when it is locked: before that another node would take it for one that was
    left. Raises OSError, and nothing is left."""
    unnamed = path.with_name(f".{path.name}")
    os.mkdir(unnamed, 0o700)
    try:
        lock = os.open(unnamed / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(unnamed, path)
        except OSError:
            os.close(lock)
            raise
    except OSError:
        _remove(str(unnamed))
        raise
    return lock


def _remove_left(directory: Path) -> None:
    """Removes what nodes of this user's have left that are gone."""
    for path in directory.glob(SPILL_DIRECTORY_PREFIX + "*"):
        try:
            if path.lstat().st_uid != os.getuid():
                continue
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its node lives
        else:
            logger.warning("%s was left behind by a node that is gone: removed", path)
            _remove(str(path))
        finally:
            os.close(lock)


def _remove(path: str) -> None:
    """A thread that still writes may make a file meanwhile: then once more."""
    for _ in range(3):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
