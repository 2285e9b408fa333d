"""What a store is full of, for messages."""

from __future__ import annotations

from collections.abc import Iterable

from ray_mono.common.store_messages import FILE_SYSTEM_FULL
from ray_mono.object_manager.allocator import Allocator
from ray_mono.object_manager.stored_object import StoredObject


def describe(
    allocator: Allocator,
    rows: Iterable[StoredObject],
    evictable_bytes: int,
    on_disk_bytes: int,
    full_directory: str,
    why_not_spilled: str,
) -> str:
    """full_directory: of the store's file, where the system has no pages for a longer one; else empty."""
    pinned = primary = 0
    for row in rows:
        pinned += row.size_bytes if row.num_pins and row.has_memory else 0
        primary += row.size_bytes if row.is_primary else 0
    parts = [
        f"primary copies {primary}",
        f"pinned by readers {pinned}",
        f"can be evicted {evictable_bytes}",
        *([f"on disk {on_disk_bytes}"] if on_disk_bytes else []),
    ]
    text = f"capacity {allocator.capacity_bytes} bytes, used {allocator.used_bytes} ({', '.join(parts)})"
    if full_directory:
        text += (
            f"; {FILE_SYSTEM_FULL}: other files in {full_directory} leave room for"
            f" {allocator.limit_bytes} bytes of the store"
        )
    return f"{text}; {why_not_spilled}" if why_not_spilled else text
