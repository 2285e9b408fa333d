"""Lines of Ray's microbenchmark that need what a module may not have yet: placement groups, and the remote client.

They are measured as soon as the feature is there; until then they are told as "not yet".
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ray_mono._private.microbenchmark import clusters
from ray_mono._private.microbenchmark.calls import BATCH, CALLS_AT_LEAST, LARGE_PUT_GB, SMALL_PUTS, remotes
from ray_mono._private.microbenchmark.line import Bench, Group, Line

PLACEMENT = Group(
    "placement groups", clusters.local(address="local", resources={"custom": 100}), is_microbenchmark=True
)
GROUPS_AT_ONCE = 100


@PLACEMENT.rate(
    "placement group create/removal", GROUPS_AT_ONCE, target=CALLS_AT_LEAST, needs="placement groups"
)
def placement_groups(ray: Any) -> Callable[[], object]:
    placement_group, remove = ray.util.placement_group, ray.util.remove_placement_group

    def run() -> None:
        made = [placement_group(bundles=[{"custom": 0.001}]) for _ in range(GROUPS_AT_ONCE)]
        for group in made:
            if not group.wait(timeout_seconds=30):
                raise RuntimeError("a placement group was not ready in 30 s")
        for group in made:
            remove(group)

    return run


# ---- the client


CLIENT = Group("client", is_microbenchmark=True)
START_TIMEOUT_S = 60.0


@contextlib.contextmanager
def client(ray: Any) -> Iterator[None]:
    """A cluster of this machine with a client server, started by the command line, and this process as its client."""
    module = ray.__name__
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", f"{module}.scripts.scripts"]
    subprocess.run(
        [*command, "start", "--head", "--port=0", "--include-dashboard=false", f"--ray-client-server-port={port}"],
        check=True,
        timeout=START_TIMEOUT_S,
    )
    try:
        ray.init(f"ray://127.0.0.1:{port}")
        yield
    finally:
        ray.shutdown()
        subprocess.run([*command, "stop"], check=True, timeout=START_TIMEOUT_S)
