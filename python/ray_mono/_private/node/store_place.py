"""How large a node's object store is, and where its file lies, by Ray's rules.

The file lies in shared memory if that has room for the whole store, and else in the session's directory. The
latter is warned of, since a disk is slower. (A store in shared memory that is smaller than it says would fail
far from the cause.) If nobody names a size, it is 30 % of the free memory and 200 GB at most, and more than
10 GB only if shared memory has room for it. Whoever asks for more than 10 GB that would lie on a disk has to
say that slow storage is meant (ALLOW_SLOW_VARIABLE). More than the machine's memory is refused.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_mono._private.node.resource_spec import MachineMemory

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
# Of the memory that is free at the start; Ray's share.
STORE_SHARE = 0.3
# Ray's bound where nobody names a size.
STORE_BYTES_MAX = 200 * 10**9
# Below this not even a few objects fit beside the allocator's own pages.
STORE_BYTES_MIN = 1 << 20
# So much of a file system is taken where nobody names a size: the rest is left to its other users.
ROOM_SHARE = 0.95
# Ray's REQUIRE_SHM_SIZE_THRESHOLD.
SLOW_BYTES_MAX = 10**10
ALLOW_SLOW_VARIABLE = "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE"


@dataclass(frozen=True)
class StorePlace:
    """Where a node's objects go."""

    size_bytes: int
    is_in_shared_memory: bool
    """Else the file lies in the session's directory."""


def place_store(wanted_bytes: Any, memory: MachineMemory, base: Path) -> StorePlace:
    """wanted_bytes: None for the default. base: where sessions lie.

    Raises ValueError naming object_store_memory where nothing can hold so much.
    """
    in_memory, on_disk = room_bytes(SHARED_MEMORY), room_bytes(_existing(base))
    if wanted_bytes is None:
        size_bytes = min(int(memory.available_bytes * STORE_SHARE), STORE_BYTES_MAX)
        size_bytes = min(size_bytes, max(SLOW_BYTES_MAX, int(in_memory * ROOM_SHARE)))
        if size_bytes > max(in_memory, on_disk * ROOM_SHARE):
            size_bytes = int(max(in_memory, on_disk) * ROOM_SHARE)
            if size_bytes <= in_memory:
                logger.warning(
                    "The object store has only %d bytes, since %s and %s for %d: %s.",
                    *(size_bytes, _state(SHARED_MEMORY, in_memory), base, on_disk, _remedy(SHARED_MEMORY)),
                )
        size_bytes = max(size_bytes, STORE_BYTES_MIN)
    else:
        size_bytes = _checked(wanted_bytes, memory)
    if size_bytes <= in_memory:
        return StorePlace(size_bytes, True)
    if size_bytes > on_disk:
        raise ValueError(
            f"object_store_memory is {size_bytes} bytes, but {_state(SHARED_MEMORY, in_memory)} and {base}"
            f" has room for {on_disk}:"
            f" ask for less, or {_remedy(SHARED_MEMORY)}"
        )
    if size_bytes > SLOW_BYTES_MAX and not os.environ.get(ALLOW_SLOW_VARIABLE):
        raise ValueError(
            f"object_store_memory is {size_bytes} bytes, but {_state(SHARED_MEMORY, in_memory)}: ask for"
            f" less, or {_remedy(SHARED_MEMORY)};"
            f" {ALLOW_SLOW_VARIABLE}=1 uses a file below {base}, which is slower"
        )
    logger.warning(
        "The object store of %d bytes uses a file below %s, which is slower, since %s: %s.",
        *(size_bytes, base, _state(SHARED_MEMORY, in_memory), _remedy(SHARED_MEMORY)),
    )
    return StorePlace(size_bytes, False)


def _state(directory: Path, num_bytes: int) -> str:
    if not directory.is_dir():
        return f"{directory} is missing"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"{directory} cannot be written to"
    return f"{directory} has room for only {num_bytes}"


def _remedy(directory: Path) -> str:
    if os.access(directory, os.W_OK | os.X_OK):
        return f"enlarge {directory} (in Docker: --shm-size)"
    return f"have a tmpfs at {directory} that can be written to"


def room_bytes(directory: Path) -> int:
    """What can still be written there: nothing where it is missing or not writable."""
    if not os.access(directory, os.W_OK | os.X_OK):
        return 0
    statistics = os.statvfs(directory)
    return statistics.f_bavail * statistics.f_frsize


def _checked(wanted: Any, memory: MachineMemory) -> int:
    is_number = isinstance(wanted, (int, float)) and not isinstance(wanted, bool) and math.isfinite(wanted)
    if not is_number or wanted < STORE_BYTES_MIN:
        raise ValueError(
            f"object_store_memory must be a number of bytes, at least {STORE_BYTES_MIN}, got {wanted!r}"
        )
    if wanted > memory.total_bytes:
        raise ValueError(
            f"object_store_memory is {int(wanted)} bytes, but this machine, or container, has only"
            f" {memory.total_bytes} of memory: ask for less"
        )
    return int(wanted)


def _existing(directory: Path) -> Path:
    """The directory, or the next above it that exists."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory
