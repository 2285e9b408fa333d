"""Waiting for what comes about by itself: looked at again and again, within a bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# On a busy machine things take their time.
TIMEOUT_S = 30.0
POLL_S = 0.005


def wait_until(is_so: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Returns when is_so() is true. Raises AssertionError naming `what` when it is not within timeout_s."""
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(POLL_S)


async def until(is_so: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """The same for a coroutine, on its loop's clock. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(POLL_S)
