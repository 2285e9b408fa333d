"""What nodes have left in the file system whose reapers were killed. Nothing of them runs: the services went
with the reaper. `stop` removes it, and whoever starts the next node on the machine.

A node is known by its record (session.py). One in another container, which shares the directory with this
one, has a reaper that cannot be seen from here: it is told by its sockets, which answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from ray_mono._private.node.elsewhere import entry_of
from ray_mono._private.node.remains import remove_files, remove_stale_sockets
from ray_mono._private.node.session import SHARED_MEMORY, NodeRecord, Session, SessionError
from ray_mono.common.store_messages import SPILL_DIRECTORY_PREFIX

_NEW_S = 60.0
"""A store's file that is younger may be about to be locked."""


def remove_dead_nodes(sessions: Iterable[Session]) -> None:
    """Removes what their dead nodes have left. What cannot be read is left where it is."""
    for session in sessions:
        for path in session.record_paths():
            with contextlib.suppress(SessionError, OSError):
                record = NodeRecord.read(path)
                if is_dead(record):
                    remove_remains(record)


def remove_left_store_files(directory: Path = SHARED_MEMORY) -> None:
    """Those of this user whose object managers are gone, also where nobody has their records any more. An
    object manager locks its file as long as it lives (memory_file.py)."""
    for path in directory.glob("ray_mono.session_*"):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                status = os.fstat(file)
                is_new = time.time() - status.st_mtime < _NEW_S
                if status.st_uid == os.getuid() and stat.S_ISREG(status.st_mode) and not is_new:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
            finally:
                os.close(file)


def is_dead(record: NodeRecord) -> bool:
    """Whether nothing of the node runs."""
    return not record.reaper.is_alive() and not _answers(record.raylet_socket)


def _answers(path: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            pass  # many wait there
        return True
    return False


def remove_remains(record: NodeRecord) -> None:
    """What the reaper would have removed.

    Only files of the session are touched, the node's spilled objects and its entry elsewhere, whatever the
    record says.
    """
    session = Session(Path(record.session_dir))
    entry = entry_of(record.session_dir, record.node_id)
    paths = [Path(name) for name in record.owned_files]
    ours = [
        path
        for path in paths
        if session.path in path.parents
        or (path.parent == SHARED_MEMORY and path.name.startswith(f"ray_mono.{session.name}."))
        or path.name == SPILL_DIRECTORY_PREFIX + record.node_id
        or path == entry
    ]
    remove_files(str(path) for path in ours if ".." not in path.parts)
    remove_stale_sockets(str(session.sockets))
