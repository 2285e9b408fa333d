"""The storages elsewhere to which a node spills: checked when it starts, and empty of it when it ends.

    <session>/external_spilling_<node id>    the URIs, locked as long as the object manager lives

The lock ends with its holder, however that ended. So whoever starts on this machine with such a storage
removes what nodes of this user's that are gone have left, wherever that is. A thread does so: a storage that
does not answer holds nobody up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ray_mono.common.store_messages import ExternalStorageError
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.external_place import ExternalPlace

_PREFIX = "external_spilling_"
_REMOVE_PAUSES_S = (0.1, 0.4)
"""Between attempts to empty a storage at the end: a node has seconds to end."""

logger = logging.getLogger(__name__)


class ExternalStorage:
    """Those of one node."""

    def __init__(
        self, uris: Sequence[str], node_id_hex: str, session: str | None, config: ObjectManagerConfig
    ) -> None:
        """session: the node's, among others that may have ended. Raises ExternalStorageError."""
        self._config = config
        self._mark: Path | None = None
        self._lock: int | None = None
        self.places = [self._place(uri, node_id_hex) for uri in uris]
        if session is not None:
            self._mark = Path(session) / (_PREFIX + node_id_hex)
            self._lock = _make_mark(self._mark, list(uris))
        try:
            for place in self.places:
                self._check(place)
        except BaseException:
            self._forget()
            raise
        if session is not None:
            sessions = Path(session).absolute().parent
            threading.Thread(target=self._remove_left, args=(sessions,), daemon=True).start()

    def close(self) -> None:
        """Nothing of the node is left in them; if one does not answer, the mark stays."""
        failures = [error for place in self.places if (error := _emptied(place)) is not None]
        for error in failures:
            logger.error("spilled objects are left in a storage until a node starts here again: %s", error)
        if not failures:
            self._forget()

    def _place(self, uri: str, node_id_hex: str) -> ExternalPlace:
        return ExternalPlace(
            uri, node_id_hex, self._config.external_part_bytes, self._config.external_retry_s
        )

    def _check(self, place: ExternalPlace) -> None:
        """Raises ExternalStorageError where a file cannot be written, read and removed in time."""
        failures: list[OSError] = []
        is_over = threading.Event()

        def check() -> None:
            try:
                place.check()
            except OSError as error:
                failures.append(error)
            is_over.set()

        threading.Thread(target=check, daemon=True).start()
        if not is_over.wait(self._config.external_check_timeout_s):
            raise ExternalStorageError(
                f"objects cannot be spilled to {place.uri}: it has not answered for"
                f" {self._config.external_check_timeout_s:g} s"
            )
        if failures:
            raise ExternalStorageError(
                f"objects cannot be spilled to {place.uri}: {failures[0].strerror or failures[0]}: name a"
                " storage that exists and that this user can write to, with its credentials in the"
                " environment of the node"
            ) from failures[0]

    def _remove_left(self, sessions: Path) -> None:
        for mark in sessions.glob(f"session_*/{_PREFIX}*"):
            with contextlib.suppress(OSError):
                lock = os.open(mark, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    self._remove_left_by(mark, lock)
                finally:
                    os.close(lock)

    def _remove_left_by(self, mark: Path, lock: int) -> None:
        """Raises OSError where its node lives."""
        if os.fstat(lock).st_uid != os.getuid():
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            for uri in json.loads(mark.read_text()):
                self._place(uri, mark.name.removeprefix(_PREFIX)).remove_all()
        except (OSError, ValueError, ExternalStorageError) as error:
            logger.warning("what %s names cannot be removed now: %s", mark, error)
        else:
            logger.warning("removed what %s names, of a node that is gone", mark)
            mark.unlink(missing_ok=True)

    def _forget(self) -> None:
        if self._mark is not None:
            self._mark.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
        self._lock = self._mark = None


def _emptied(place: ExternalPlace) -> OSError | None:
    """Why it is not. One request that fails is no reason to leave all that is there."""
    for pause_s in (*_REMOVE_PAUSES_S, None):
        try:
            place.remove_all()
        except OSError as error:
            if pause_s is None:
                return error
            logger.warning("%s: %s; trying again in %g s", place.uri, error, pause_s)
            time.sleep(pause_s)
        else:
            return None
    return None


def _make_mark(mark: Path, uris: list[str]) -> int:
    """Its lock. It gets its name when it is locked: before that another node would take it for one that was
    left. Raises ExternalStorageError."""
    unnamed = mark.with_name(f".{mark.name}")
    try:
        lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, json.dumps(uris).encode())
        os.rename(unnamed, mark)
    except OSError as error:
        raise ExternalStorageError(f"{mark} cannot be made: {error}") from error
    return lock
