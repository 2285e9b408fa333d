"""Each test has a cluster of its own, since it breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from tests.chaos.victims import Victims
from tests.integration.clusters import CommandLineCluster, driven_cluster


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


@pytest.fixture
def cluster(session_base: Path) -> Iterator[CommandLineCluster]:
    """One that was started by commands. This process is a driver there, in the namespace "here"."""
    with driven_cluster(session_base, num_cpus=2) as made:
        ray.init(address=made.address, namespace="here")
        yield made
