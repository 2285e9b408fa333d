"""The command `explain` where there is nobody to ask."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def asked(address: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "ray_mono.scripts", "explain", f"--address={address}"]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as asks:
        try:
            yield asks
        finally:
            asks.kill()


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Somebody listens there, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"127.0.0.1:{silent.getsockname()[1]}"


def test_somebody_at_a_shell_is_told_that_the_head_is_waited_for(silent_address: str) -> None:
    with asked(silent_address, RAY_MONO_AUTH_TOKEN="secret") as asks:
        assert asks.stderr is not None
        said = asks.stderr.readline()
    waits = "has not answered for 3 s: what waits may wait for that. Asking on."
    assert said == f"the head at {silent_address} {waits}\n"


def test_somebody_without_the_secret_is_told_so_in_one_line(silent_address: str, tmp_path: Path) -> None:
    with asked(silent_address, HOME=str(tmp_path)) as asks:
        assert asks.stderr is not None
        said = asks.stderr.read()
        assert asks.wait() == 1
    assert said.startswith("Error: no secret was found; pass the cluster's secret in ")
    assert said.count("\n") == 1
