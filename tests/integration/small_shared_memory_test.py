"""A machine whose shared memory is small, as in a container by default: objects lie in a file of the session,
and it is said once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import numpy as np
import ray_mono as ray

ray.init(num_cpus=1, object_store_memory=200_000_000)
held = [ray.put(np.full(20_000_000, value, np.uint8)) for value in range(8)]

@ray.remote
def last_of(array):
    return int(array[-1])

assert ray.get([last_of.remote(ref) for ref in held], timeout=60) == list(range(8))
print("done")
"""
MOUNT = "mount -t tmpfs -o size=64m tmpfs /dev/shm"


def test_a_store_that_does_not_fit_into_shared_memory_uses_a_file_of_the_session(session_base: Path) -> None:
    unshare = [shutil.which("unshare") or "unshare", "-m", "sh", "-c"]
    try:
        subprocess.run([*unshare, MOUNT], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(
            "file systems cannot be mounted here; tests/python/_private/node/store_place_test.py has the"
            " rules"
        )
    done = subprocess.run(
        [*unshare, f'{MOUNT}; exec "$0" -c "$1"', sys.executable, PROGRAM],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.endswith("done\n"), done.stderr
    assert done.stderr.count("since /dev/shm has room for only 67108864") == 1, done.stderr
