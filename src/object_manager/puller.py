"""Carries out fetches: finds the holder, opens the stream, lands the bytes, and tells how it ended.

The PullManager decides, this does. There is one task per fetch. Between fetches of the same object (a holder
that broke off, a wait for memory) the Landing stays: it knows what the object is and how much of it is here,
so that the next holder continues where the last one stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ray_mono.common.our_bug import known
from ray_mono.object_manager.errors import ObjectExists, StoreFull
from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.pull_manager import StartFetch
from ray_mono.object_manager.seams import (
    ObjectHeader,
    PeerAddress,
    SharedMemory,
    TransferFailed,
    TransferStreams,
)

logger = logging.getLogger(__name__)


class AddressBook(Protocol):
    """Where nodes are."""

    async def find(self, node_id: NodeKey, timeout_s: float) -> PeerAddress:
        """Waits up to timeout_s for a node that nobody has heard of yet.

        Raises TransferFailed: unknown, or dead.
        """
        ...


class CopyLanding:
    """Where one object's bytes go: nowhere, until a holder has said how many there are and there was room."""

    def __init__(self, object_id: ObjectKey, node_store: NodeStore, store_memory: SharedMemory) -> None:
        self.object_id = object_id
        self.received_bytes = 0
        self.header: ObjectHeader | None = None
        self._node_store = node_store
        self._store_memory = store_memory
        self._memory: memoryview | None = None
        self._offset = 0  # of the memory in the store

    @property
    def has_memory(self) -> bool:
        return self._memory is not None

    def place(self, header: ObjectHeader) -> memoryview | None:
        """Raises TransferFailed; ObjectExists, StoreFull as the store does."""
        if self.header is not None and header != self.header:
            raise TransferFailed(f"it has another object of this id: {header}, not {self.header}")
        self.header = header
        return self.take_memory()

    def take_memory(self) -> memoryview | None:
        """Asks the store for room where that is not there yet."""
        if self._memory is None and self.header is not None:
            offset = self._node_store.place_copy(self.object_id, self.header)
            if offset is not None:
                self._offset = offset
                self._memory = self._store_memory.view(offset, self.header.size_bytes)
        return self._memory

    def prepare(self, start: int, count: int) -> None:
        self._store_memory.prepare(self._offset + start, count)


class Puller:
    """The Fetcher of a node that has others around it."""

    def __init__(
        self,
        node_store: NodeStore,
        memory: SharedMemory,
        streams: TransferStreams,
        nodes: AddressBook,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[Any]],
    ) -> None:
        self._node_store = node_store
        self._memory = memory
        self._streams = streams
        self._nodes = nodes
        self._spawn = spawn
        self._landings: dict[ObjectKey, CopyLanding] = {}
        self._tasks: dict[ObjectKey, asyncio.Task[Any]] = {}
        node_store.attach(self)

    def start_fetch(self, fetch: StartFetch) -> None:
        name = f"fetch {fetch.object_id.hex()} from {fetch.node_id.hex()}"
        self._tasks[fetch.object_id] = self._spawn(self._fetch(fetch), name)

    def stop_fetch(self, object_id: ObjectKey) -> None:
        task = self._tasks.pop(object_id, None)
        if task is not None:
            task.cancel()

    def forget(self, object_id: ObjectKey) -> None:
        landing = self._landings.pop(object_id, None)
        if landing is not None and landing.has_memory:
            self._node_store.drop_copy(object_id)

    async def _fetch(self, fetch: StartFetch) -> None:
        """One attempt with one holder. Its end is reported exactly once, unless it is stopped."""
        object_id = fetch.object_id
        landing = self._landings.setdefault(object_id, CopyLanding(object_id, self._node_store, self._memory))
        try:
            is_whole = await self._attempt(fetch, landing)
        except TransferFailed as error:
            logger.info("object %s: node %s did not give it: %s", object_id.hex(), fetch.node_id.hex(), error)
            del self._tasks[object_id]
            self._node_store.fetch_failed(object_id, str(error))
        except ObjectExists:
            del self._tasks[object_id], self._landings[object_id]
            self._node_store.appeared(object_id)
        except StoreFull as error:
            del self._tasks[object_id]
            self._node_store.never_fits(object_id, error)
        else:
            del self._tasks[object_id]
            if is_whole:
                del self._landings[object_id]
                self._node_store.fetched(object_id)
            elif landing.has_memory:
                self._node_store.fetch_announced(object_id)
            else:
                header = known(landing.header, "the header of an object that found no memory")
                self._node_store.fetch_found_no_memory(object_id, header.size_bytes)

    async def _attempt(self, fetch: StartFetch, landing: CopyLanding) -> bool:
        # The size is known from an earlier attempt: no need to ask for what there is still no room for.
        if landing.header is not None and landing.take_memory() is None:
            return False
        peer = await self._nodes.find(fetch.node_id, self._node_store.config.unknown_node_timeout_s)
        max_bytes = 0 if landing.has_memory else fetch.max_bytes
        return await self._streams.fetch(peer, fetch.object_id, max_bytes, landing)
