"""The command `explain` where there is nobody to ask."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def test_somebody_at_a_shell_is_told_that_the_head_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "ray_mono.scripts", "explain", f"--address={address}"]
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as asks:
            try:
                assert asks.stderr is not None
                said = asks.stderr.readline()
            finally:
                asks.kill()
    assert (
        said == f"the head at {address} has not answered for 3 s: what waits may wait for that. Asking on.\n"
    )
