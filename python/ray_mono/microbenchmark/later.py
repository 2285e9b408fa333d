"""Lines of Ray's microbenchmark that need what a module may not have yet: the remote client.

They are measured as soon as the feature is there; until then they are told as "not yet".
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ray_mono.microbenchmark import calls
from ray_mono.microbenchmark.calls import BATCH, CALLS_AT_LEAST, LARGE_PUT_GB, SMALL_PUTS
from ray_mono.microbenchmark.line import Group, Repeated

START_TIMEOUT_S = 60.0
# What a command line ends with that makes no sense to the program.
REFUSED_OPTION = 2


@contextlib.contextmanager
def client(ray: Any) -> Iterator[None]:
    """A cluster on this machine with a client server, which the command line starts, and this process as
    its client."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # As long as this process of the command line runs, and no longer, the cluster does.
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", f"{ray.__name__}.scripts.scripts", "start", "--head", "--block"),
            *("--port=0", "--include-dashboard=false", f"--ray-client-server-port={port}"),
        ]
    )
    try:
        _wait_for(server, port)
        ray.init(f"ray://127.0.0.1:{port}")
        try:
            yield
        finally:
            ray.shutdown()
    finally:
        server.terminate()
        server.wait(START_TIMEOUT_S)


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if server.poll() == REFUSED_OPTION:
            raise NotImplementedError("its command line refuses --ray-client-server-port")
        if server.poll() is not None:
            raise RuntimeError(f"the cluster with a client server ended with status {server.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"no client server after {START_TIMEOUT_S:.0f} s")


CLIENT = Group("client", client, is_microbenchmark=True)


def _rate(name: str, count: float = 1, target: float = CALLS_AT_LEAST) -> Callable[[Repeated], Repeated]:
    return CLIENT.rate(f"client: {name}", count, target=target, needs="the client server")


@_rate("get calls")
def get_small(ray: Any) -> Callable[[], object]:
    return calls.get_small(ray)


@_rate("put calls")
def put_small(ray: Any) -> Callable[[], object]:
    return calls.put_small(ray)


@_rate("tasks and get batch")
def tasks_and_get(ray: Any) -> Callable[[], object]:
    return calls.tasks_and_get(ray)


@_rate("tasks and put batch", SMALL_PUTS * 10)
def tasks_and_put(ray: Any) -> Callable[[], object]:
    return calls.put_small_from_many(ray)


@_rate("put gigabytes", LARGE_PUT_GB, target=1)
def put_large(ray: Any) -> Callable[[], object]:
    array = np.zeros(100 << 20, np.int64)
    return lambda: ray.put(array)


@_rate("1:1 actor calls sync")
def actor_sync(ray: Any) -> Callable[[], object]:
    return calls.actor_sync(ray)


@_rate("1:1 actor calls async", BATCH)
def actor_async(ray: Any) -> Callable[[], object]:
    return calls.actor_async(ray)


@_rate("1:1 actor calls concurrent", BATCH)
def actor_concurrent(ray: Any) -> Callable[[], object]:
    return calls.actor_concurrent(ray)
