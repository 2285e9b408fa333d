"""The proof that a program has let go of everything: an empty store, and an empty table of references at the
driver.
"""

from __future__ import annotations

import gc

from ray_mono._private import internal_state
from tests.waiting import wait_until


def wait_for_nothing_left() -> None:
    """Returns when the node's store has no object and this driver knows of no reference."""

    def is_empty() -> bool:
        # Each time: a caught error and the asyncio task that raised it are a cycle, and the last answer's
        # thread may still have held on to it when we came.
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
