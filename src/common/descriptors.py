"""Waiting for a file descriptor."""

from __future__ import annotations

import math
import select
import time

_POLL_MAX_S = 1_000_000.0
"""poll() takes its time as an int of milliseconds."""


def is_readable(descriptor: int, timeout_s: float | None) -> bool:
    """Waits until it can be read, or has ended; False where that did not happen in timeout_s seconds. None:
    waits as long as it takes.

    select() would refuse descriptors from 1024 on, and a node with some hundred workers has more.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    end_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left_s = min(max(0.0, end_s - time.monotonic()), _POLL_MAX_S)
        if poll.poll(left_s * 1000):
            return True
        if time.monotonic() >= end_s:
            return False
