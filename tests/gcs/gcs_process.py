"""A real gcs_server process, and a connection to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from ray_mono.protobuf import gcs_rpc
from ray_mono.rpc.framed import FramedTransport

SECRET = "a secret of this test"
TIMEOUT_S = 30.0
MODULE = "ray_mono.gcs.gcs_server"


class GcsProcess:
    """One gcs_server, from start to end."""

    def __init__(
        self, session_dir: str, arguments: Sequence[str], variables: dict[str, str] | None = None
    ) -> None:
        self.log_path = f"{session_dir}/gcs.log"
        ready, ready_in_child = os.pipe()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        environment = {**os.environ, "PYTHONPATH": path, "RAY_MONO_AUTH_TOKEN": SECRET, **(variables or {})}
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    MODULE,
                    f"--session-dir={session_dir}",
                    f"--ready-fd={ready_in_child}",
                    *arguments,
                ],
                stderr=log,
                pass_fds=(ready_in_child,),
                env=environment,
            )
        os.close(ready_in_child)
        with open(ready) as file:
            self.ready_line = file.readline()

    @property
    def address(self) -> str:
        address: str = json.loads(self.ready_line)["address"]
        return address

    def log(self) -> str:
        with open(self.log_path) as file:
            return file.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """In order; returns the exit status."""
        self.process.terminate()
        return self.process.wait(TIMEOUT_S)


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[gcs_rpc.GcsServiceAsyncStub]:
    channel = await FramedTransport(SECRET).connect(address, TIMEOUT_S)
    try:
        yield gcs_rpc.GcsServiceAsyncStub(channel)
    finally:
        channel.close()


def talk(address: str, talk: Callable[[gcs_rpc.GcsServiceAsyncStub], Awaitable[None]]) -> None:
    async def run() -> None:
        async with connected(address) as gcs:
            await talk(gcs)

    asyncio.run(run())


Start = Callable[..., GcsProcess]
