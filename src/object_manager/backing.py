"""Puts pages under the store's file: when a request needs them, and some ahead of need.

It does so in steps, between which the loop serves others. Where the system has no memory left, the store is
told to make do with what it has, and a while later that it may ask again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.seams import SharedMemory
from ray_mono.object_manager.store import Store

# After the system refused pages it is asked again so much later.
_RETRY_S = 1.0


class Backing:
    """Keeps the allocator's limit and the file's pages together."""

    def __init__(
        self,
        config: ObjectManagerConfig,
        store: Store,
        memory: SharedMemory,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        on_change: Callable[[], None],
    ) -> None:
        """on_change() is called when who waits for memory may try again: there are pages, or none."""
        self._config = config
        self._store = store
        self._memory = memory
        self._spawn = spawn
        self._on_change = on_change
        self._wanted_bytes = 0
        self._is_running = False
        self._retry: asyncio.TimerHandle | None = None

    def keep_ahead(self) -> None:
        """Asks for pages beyond the frontier, so that a Create seldom waits for them."""
        ahead_bytes = self._store.frontier_bytes + self._config.backing_ahead_bytes
        if ahead_bytes - self._memory.backed_bytes >= self._config.backing_ahead_bytes // 2:
            self.extend(ahead_bytes)

    def extend(self, until_bytes: int) -> None:
        """Asks for pages up to here; returns at once."""
        self._wanted_bytes = min(max(self._wanted_bytes, until_bytes), self._config.capacity_bytes)
        if not self._is_running and self._store.can_grow and self._memory.backed_bytes < self._wanted_bytes:
            self._is_running = True
            self._spawn(self._run(), "back memory")

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()

    async def _run(self) -> None:
        while self._memory.backed_bytes < self._wanted_bytes:
            until_bytes = min(self._memory.backed_bytes + self._config.backing_step_bytes, self._wanted_bytes)
            if not self._memory.extend(until_bytes):
                self._store.stop_growing()
                self._wanted_bytes = self._memory.backed_bytes
                self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._may_grow_again)
                break
            self._store.backed(self._memory.backed_bytes)
            await asyncio.sleep(0)
        self._is_running = False
        self._on_change()

    def _may_grow_again(self) -> None:
        self._store.grow_again()
        self._on_change()
