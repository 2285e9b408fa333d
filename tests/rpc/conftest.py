"""What the tests of real sockets share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_mono.rpc.reactor_server import ReactorServer
from tests.rpc.reactor_pair import Store, served


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for a Unix socket's path."""
    path = tempfile.mkdtemp(prefix="rpc", dir="/tmp")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture(params=["unix", "tcp"])
def both(request: Any, directory: Path) -> Iterator[tuple[Store, ReactorServer, str]]:
    """A server on a reactor, and an address of it."""
    with served(str(directory)) as (store, server, unix, tcp):
        yield store, server, unix if request.param == "unix" else tcp
