"""Waits of tests on real clusters, each with a bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray_mono as ray
from tests.waiting import wait_until

GET_TIMEOUT_S = 60


def get(references: Any) -> Any:
    """ray.get with the bound."""
    return ray.get(references, timeout=GET_TIMEOUT_S)


def process_ends(pid: int) -> None:
    """Returns when the process is gone, reaped by its parent."""
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} ends")
