"""What the tests of the GCS share: a short directory, and a real Redis with a password."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ray_mono.common import process
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.gcs.storage.embedded_redis import find_server_binary
from tests.gcs.gcs_process import GcsProcess, Start

REDIS_START_TIMEOUT_S = 30.0


@pytest.fixture
def short_dir() -> Iterator[str]:
    """A directory whose path is short enough for Unix sockets; gone afterwards."""
    path = tempfile.mkdtemp(prefix="rmg", dir="/tmp")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """The ids of the nodes that are asked from now on whether they take work. All of them do."""
    asked: set[bytes] = set()

    def takes_work(node: NodeSnapshot) -> bool:
        asked.add(node.node_id)
        return True

    monkeypatch.setattr(NodeSnapshot, "takes_work", property(takes_work))
    return asked


@dataclass
class RedisServer:
    """A redis-server of the test."""

    directory: str
    password: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.directory}/r"

    def start(self) -> None:
        """Returns when it listens."""
        settings = (
            f"port 0\nunixsocket {self.directory}/r\nrequirepass {self.password}\n"
            f"dir {self.directory}\nappendonly yes\nappendfsync no\n"
        )
        parent_pid = os.getpid()
        self.process = subprocess.Popen(
            [find_server_binary(), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: process.set_pdeathsig(signal.SIGKILL, parent_pid),
        )
        assert self.process.stdin is not None
        self.process.stdin.write(settings.encode())
        self.process.stdin.close()
        end_s = time.monotonic() + REDIS_START_TIMEOUT_S
        while not os.path.exists(f"{self.directory}/r"):
            assert self.process.poll() is None and time.monotonic() < end_s, (
                "the redis-server of the test does not listen"
            )
            time.sleep(0.01)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            os.unlink(f"{self.directory}/r")


@pytest.fixture
def redis_server(short_dir: str) -> Iterator[RedisServer]:
    """A running redis-server that demands a password."""
    server = RedisServer(short_dir, password="open sesame".replace(" ", "-"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def start(short_dir: str) -> Iterator[Start]:
    """start(*arguments) starts a GCS in the session directory short_dir; all are gone afterwards."""
    started: list[GcsProcess] = []

    def start_one(*arguments: str, **variables: str) -> GcsProcess:
        started.append(GcsProcess(short_dir, arguments, variables))
        return started[-1]

    yield start_one
    for one in started:
        if one.process.poll() is None:
            one.kill()
