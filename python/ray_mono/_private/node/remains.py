"""What a node leaves in the file system, and how it is removed when the node has ended."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable


def remove_files(paths: Iterable[str]) -> None:
    """Those that are there and that we may remove."""
    for path in paths:
        try:
            os.unlink(path)
        except OSError:
            pass


def remove_stale_sockets(directory: str) -> None:
    """Removes those sockets in the directory that no living process has bound. A worker that was killed
    leaves its own. Sockets of other nodes of the session, and of drivers, stay.
    """
    try:
        with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
            bound = {line.rstrip("\n").split(" ", 7)[-1] for line in table}
        paths = [entry.path for entry in os.scandir(directory)]
    except OSError:
        return
    remove_files(path for path in paths if path not in bound and stat.S_ISSOCK(os.lstat(path).st_mode))
