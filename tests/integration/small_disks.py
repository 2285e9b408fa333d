"""File systems of a size of their own, for what happens where one is full."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def file_system(place: Path, size_mib: int) -> Iterator[Path]:
    """One at this new directory, in memory. Skips the test where this machine mounts none for us."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(place)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine mounts no file systems for us")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
