"""What people are told where the store has no room: who wants how much, and what the store is full of."""

from __future__ import annotations

from collections.abc import Sequence

from ray_mono.common.store_messages import DISK_FULL, FILE_SYSTEM_FULL, remedy
from ray_mono.object_manager.admission import NeverAdmitted
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.create_queue import CreateQueue
from ray_mono.object_manager.errors import StoreFull
from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.store import Store


class NoRoom:
    """Makes the sentences of one store."""

    def __init__(
        self, config: ObjectManagerConfig, node_id: NodeKey, store: Store, creates: CreateQueue
    ) -> None:
        self._config = config
        self._node = f"node {node_id.hex()}"
        self._store = store
        self._creates = creates

    def for_creates(self, now_s: float) -> str:
        """They wait, and may get it still."""
        waited_s = now_s - (self._creates.stuck_s or now_s)
        memory = self._store.describe_memory()
        what = "file system" if FILE_SYSTEM_FULL in memory else "object store"
        what = "disk for spilled objects" if DISK_FULL in memory else what
        return (
            f"The {what} is full: {len(self._creates)} objects of together {self._creates.wanted_bytes} bytes"
            f" have waited for room, the first for {waited_s:.0f} s. {memory}. What gets none within"
            f" {self._config.create_timeout_s:g} s fails: {remedy(memory)}."
        )

    def for_copy(self, get: NeverAdmitted, holders: Sequence[NodeKey]) -> str:
        """It was not found in time."""
        lies = f"lies on node {holders[0].hex()}" if holders else "lies on another node"
        return (
            f"object {get.object_id.hex()} of {get.size_bytes} bytes {lies},"
            f" and there was no room to copy it to {self._node} for {self._config.pull_memory_timeout_s:g} s:"
            f" {self._store.describe_memory()}{get.why and f'; nor on disk: {get.why}'}"
        )

    def ever(self, object_id: ObjectKey, holder: NodeKey | None, error: StoreFull) -> str:
        """The copy is larger than the store, or all those of a Get are together, and the disk is full."""
        lies = f"lies on node {holder.hex()}" if holder is not None else "lies on another node"
        return f"object {object_id.hex()} {lies} and cannot be copied to {self._node}: {error}"
