"""What a node leaves in the file system, and how it is removed when the node has ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
from collections.abc import Iterable

from ray_mono.common.store_messages import SPILL_DIRECTORY_PREFIX


def remove_files(paths: Iterable[str]) -> None:
    """Those that are there and that we may remove; a directory of spilled objects with all that is in it."""
    for path in paths:
        try:
            if os.path.basename(path).startswith(SPILL_DIRECTORY_PREFIX):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
        except OSError:
            pass


def remove_stale_sockets(directory: str) -> bool:
    """Removes those sockets in the directory on which no living process listens. A worker that was killed
    leaves its own. Sockets of other nodes of the session, and of drivers, stay. Returns whether there are
    any.
    """
    try:
        # The directory first: what is bound later is not looked at.
        paths = [entry.path for entry in os.scandir(directory)]
        with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
            bound = {line.rstrip("\n").split(" ", 7)[-1] for line in table}
    except OSError:
        return False
    remove_files(path for path in paths if path not in bound and _is_stale(path))
    return any(path in bound for path in paths)


def _is_stale(path: str) -> bool:
    """Whether it is a socket that refuses connections. The table has only those of our network namespace, and
    containers may share the directory."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                return True
            except OSError:
                pass
    return False
