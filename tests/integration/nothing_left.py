"""The proof that a program has let go of everything: an empty store, and an empty table of references at the
driver.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from ray_mono._private import internal_state

# Frees travel in the background; on a busy machine they take their time.
TIMEOUT_S = 30.0
POLL_S = 0.02


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Returns when is_so() is true. Raises AssertionError naming `what` when it is not within timeout_s."""
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(POLL_S)


def wait_for_nothing_left() -> None:
    """Returns when the node's store has no object and this driver knows of no reference."""

    def is_empty() -> bool:
        # Each time: a caught error and the asyncio task that raised it are a cycle, and the last answer's thread may still have held
        # on to it when we came.
        gc.collect()
        stats = internal_state.store_stats()
        return not (
            internal_state.num_references() or stats.num_objects or stats.num_unsealed or stats.num_pins
        )

    try:
        wait_until(is_empty, "an empty store and an empty table of references")
    except AssertionError as error:
        stats = internal_state.store_stats()
        raise AssertionError(
            f"{error}; {internal_state.num_references()} references, store: {stats}"
        ) from None
