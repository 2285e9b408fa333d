"""Each test has a cluster of its own, since it breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from tests.chaos.victims import Victims


@pytest.fixture
def start(session_base: Path) -> Iterator[Callable[..., Victims]]:
    """start(**options of init): a cluster of this process, which is its driver, and those of its processes
    that a test may end."""

    def run(**options: Any) -> Victims:
        context = ray.init(address="local", **{"num_cpus": 2, **options})
        return Victims(context["session_dir"])

    try:
        yield run
    finally:
        ray.shutdown()
