"""How a process gets ready to be forked, so that its children share its memory for long.

A child shares each page (4 KiB) until it writes to it. It writes more than it seems: to the reference counts
of what it uses, and with each new object into a hole somewhere between its parent's objects. What follows
saves a worker 0.8 MB of 8.0 (bench/microbenchmark.py --only "idle worker").
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

# CPython's allocator takes objects up to this size from pools, one size per pool.
_LARGEST_BYTES = 512
_STEP_BYTES = 16
_POOL_BYTES = 16 << 10
# An allocator of another kind shows no end of its holes.
_FILLED_BYTES_MAX = 4 * _POOL_BYTES
_BYTES_OVERHEAD = sys.getsizeof(b"")

_kept: list[list[object]] = []


def prepare_to_fork() -> None:
    """To be called once, by the parent, when it has imported what its children need."""
    gc.collect()
    # Each entry of this cache counts a reference to a name. A child has others to enter, and would write to
    # both names.
    (getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache)()
    _fill_holes()
    gc.freeze()


def _fill_holes() -> None:
    """Then the next objects of each size lie side by side, in pools of their own."""
    for size_bytes in range(_STEP_BYTES, _LARGEST_BYTES + 1, _STEP_BYTES):
        make = _maker(size_bytes)
        filler: list[object] = []
        _kept.append(filler)
        last = num_in_row = 0
        while num_in_row < _POOL_BYTES // size_bytes // 2 and len(filler) * size_bytes < _FILLED_BYTES_MAX:
            filler.append(made := make())
            # Numbers as large as an address are objects, too, of 32 bytes.
            num_in_row = num_in_row + 1 if 0 < id(made) - last <= max(size_bytes, 96) else 0
            last = id(made)


def _maker(size_bytes: int) -> Callable[[], object]:
    """Makes objects of a size that the collector does not look at."""
    if size_bytes == 16:
        return object
    if size_bytes == 32:
        return lambda: complex(0.5, 0.5)
    return lambda: bytes(size_bytes - _BYTES_OVERHEAD)
