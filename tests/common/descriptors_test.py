"""Waiting for descriptors."""

from __future__ import annotations

import fcntl
import math
import os
import resource
from collections.abc import Iterator

import pytest

from ray_mono.common.descriptors import is_readable

FAR = 1500
"""More than select() takes."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(where it is read, where it is written); the former with a high number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * FAR), hard))
    near, writing = os.pipe()
    reading = fcntl.fcntl(near, fcntl.F_DUPFD_CLOEXEC, FAR)
    os.close(near)
    yield reading, writing
    os.close(reading)
    os.close(writing)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_any_descriptor_can_be_waited_for(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    assert not is_readable(reading, 0) and not is_readable(reading, -1.0) and not is_readable(reading, 0.01)
    os.write(writing, b"x")
    assert is_readable(reading, 0) and is_readable(reading, None)
    assert is_readable(reading, 1e12) and is_readable(reading, math.inf)


def test_the_end_of_a_process_can_be_waited_for() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    pidfd = os.pidfd_open(child)
    try:
        assert is_readable(pidfd, 60.0)
    finally:
        os.close(pidfd)
        os.waitpid(child, 0)
