"""A node that does not start for lack of room: its error says so, whatever failed first."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ray_mono._private.node.reaper_client import ServiceStartError
from ray_mono._private.node.session import BASE_VARIABLE, SessionError

FREE_BYTES_MIN = 64 << 10
"""With less than this neither logs nor the GCS's first rows can be written."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def full_disk_explained(base: Path) -> Iterator[None]:
    """What is raised inside goes on as a SessionError that names `base`, where sessions lie, if that is
    full."""
    try:
        yield
    except (OSError, SessionError, ServiceStartError) as error:
        is_told = isinstance(error, OSError) and error.errno in _NO_ROOM
        if not is_told and not _is_full(base):
            raise
        raise SessionError(
            f"no space is left in {base}, where logs, sockets and tables of a session are written: make room"
            " there, or choose another directory with --temp-dir (in Python: _temp_dir) or"
            f" {BASE_VARIABLE}. What failed: {error}"
        ) from error


def _is_full(directory: Path) -> bool:
    try:
        space = os.statvfs(directory)
    except OSError:
        return False
    return space.f_bavail * space.f_frsize < FREE_BYTES_MIN or bool(space.f_files and not space.f_favail)
