"""What the tests of real sockets share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for a Unix socket's path."""
    path = tempfile.mkdtemp(prefix="rpc", dir="/tmp")
    yield Path(path)
    shutil.rmtree(path)
