"""Waiting for a file descriptor."""

from __future__ import annotations

import select


def is_readable(descriptor: int, timeout_s: float | None) -> bool:
    """Waits until it can be read, or has ended; False where that did not happen in timeout_s seconds. None:
    waits as long as it takes.

    select() would refuse descriptors from 1024 on, and a node with some hundred workers has more.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))
