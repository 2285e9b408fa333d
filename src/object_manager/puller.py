"""Carries out fetches: finds the holder, opens the stream, lands the bytes, and tells how it ended.

The PullManager decides, this does. There is one task per fetch. Between fetches of the same object (a holder
that broke off, a wait for memory) the Landing stays: it knows what the object is and how much of it is here,
so that the next holder continues where the last one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ray_mono.common.our_bug import known
from ray_mono.object_manager.errors import ObjectExists, StoreFull
from ray_mono.object_manager.holder_streams import HolderStreams
from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.pull_manager import StartFetch
from ray_mono.object_manager.ranges import Part, Ranges
from ray_mono.object_manager.seams import (
    Arrival,
    ObjectHeader,
    PeerAddress,
    SentOn,
    SharedMemory,
    TransferFailed,
    TransferStreams,
)

# A byte that arrived just before somebody waited for it is seen after so long.
_LOOKS_AGAIN_S = 0.05

logger = logging.getLogger(__name__)


class AddressBook(Protocol):
    """Where nodes are."""

    async def find(self, node_id: NodeKey, timeout_s: float) -> PeerAddress:
        """Waits up to timeout_s for a node that nobody has heard of yet.

        Raises NodeGone: dead, or unknown. Raises TransferFailed where nobody can say.
        """
        ...


class CopyLanding:
    """Where one object's bytes go: nowhere, until a holder has said how many there are and there was room.

    As an Arrival it tells those to whom the object is passed on of what has come.
    """

    def __init__(self, object_id: ObjectKey, node_store: NodeStore, store_memory: SharedMemory) -> None:
        self.object_id = object_id
        self.ranges = Ranges(node_store.config.range_bytes, node_store.config.slow_range_s)
        self.header: ObjectHeader | None = None
        self._node_store = node_store
        self._store_memory = store_memory
        self._memory: memoryview | None = None
        self._offset = 0  # of the memory in the store
        self._is_in_file = False
        self.is_over = False
        self._loop = asyncio.get_running_loop()
        self._watchers: set[asyncio.Future[None]] = set()

    @property
    def has_memory(self) -> bool:
        return self._memory is not None

    @property
    def received_bytes(self) -> int:
        """See Arrival."""
        return self.ranges.received_bytes

    def landing(self, part: Part) -> PartLanding:
        return PartLanding(self, part)

    def place(self, header: ObjectHeader) -> memoryview | None:
        """Raises TransferFailed; ObjectExists, StoreFull as the store does."""
        if self.header is not None and header != self.header:
            raise TransferFailed(f"it has another object of this id: {header}, not {self.header}")
        self.header = header
        self.ranges.described(header.size_bytes)
        return self.take_memory()

    def take_memory(self) -> memoryview | None:
        """Asks the store for room where that is not there yet."""
        if self._memory is None and self.header is not None:
            offset = self._node_store.place_copy(self.object_id, self.header)
            if offset is not None:
                self._offset = offset
                self._memory = self._store_memory.view(offset, self.header.size_bytes)
                self._wake()
        return self._memory

    async def take_room(self) -> bool:
        """As `take_memory`, or makes a file where the copy gets one. Raises ObjectExists, StoreFull."""
        header = self.header
        if self.take_memory() is None and header is not None:
            if self._node_store.gets_a_file(self.object_id, header.size_bytes):
                self._memory = await self._node_store.place_copy_in_file(self.object_id, header)
                self._is_in_file = True
                self._wake()
        return self.has_memory

    def prepare(self, start: int, count: int) -> None:
        if not self._is_in_file:
            self._store_memory.prepare(self._offset + start, count)

    def arrived(self) -> None:
        """Some bytes."""
        self._wake()

    def arrived_in_thread(self) -> None:
        """The same, told by another thread."""
        if self._watchers:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                self._loop.call_soon_threadsafe(self._wake)

    def end(self) -> None:
        """It is whole, or given up."""
        self.is_over = True
        self._wake()

    # ---- for those to whom it is passed on

    async def until_described(self, timeout_s: float) -> ObjectHeader | None:
        """See Arrival."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.is_over and not self.has_memory:
                    await self._change()
        return self.header if self.has_memory and not self.is_over else None

    async def until_beyond(self, offset: int) -> None:
        """See Arrival."""
        while not self.is_over and self.received_bytes <= offset:
            await self._change()

    def bytes_so_far(self, start: int, end: int) -> memoryview:
        """See Arrival."""
        return known(self._memory, "the memory of a copy that arrives")[start:end]

    async def _change(self) -> None:
        change = self._loop.create_future()
        self._watchers.add(change)
        # What arrived in the thread before it saw the watcher did not wake anybody.
        self._loop.call_later(_LOOKS_AGAIN_S, _set, change)
        try:
            await change
        finally:
            self._watchers.discard(change)

    def _wake(self) -> None:
        for change in self._watchers:
            _set(change)


def _set(change: asyncio.Future[None]) -> None:
    if not change.done():
        change.set_result(None)


class PartLanding:
    """Implements Landing, for one stream."""

    def __init__(self, copy: CopyLanding, part: Part) -> None:
        self._copy = copy
        self._part = part
        self.place = copy.place
        self.prepare = copy.prepare

    @property
    def at(self) -> int:
        return self._part.at

    @property
    def end(self) -> int | None:
        return None if self._part.ends_with_object else self._part.asked_end

    def arrived(self, count: int) -> None:
        self._part.arrived(count)
        self._copy.arrived()

    def arrived_in_thread(self, count: int) -> None:
        self._part.arrived(count)
        self._copy.arrived_in_thread()


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
        self._running: dict[ObjectKey, HolderStreams] = {}
        node_store.attach(self)

    def start_fetch(self, fetch: StartFetch) -> None:
        name = f"fetch {fetch.object_id.hex()} from {fetch.node_id.hex()}"
        self._tasks[fetch.object_id] = self._spawn(self._fetch(fetch), name)

    def stop_fetch(self, object_id: ObjectKey) -> None:
        task = self._tasks.pop(object_id, None)
        if task is not None:
            task.cancel()
        running = self._running.pop(object_id, None)
        if running is not None:
            running.stop()

    def forget(self, object_id: ObjectKey) -> None:
        landing = self._landings.pop(object_id, None)
        if landing is not None:
            landing.end()
            if landing.has_memory:
                self._node_store.drop_copy(object_id)

    def arriving(self, object_id: ObjectKey) -> Arrival | None:
        """What has come of an object that is on its way here."""
        return self._landings.get(object_id)

    async def _fetch(self, fetch: StartFetch) -> None:
        """One attempt with one holder. Its end is reported exactly once, unless it is stopped."""
        object_id = fetch.object_id
        landing = self._landings.setdefault(object_id, CopyLanding(object_id, self._node_store, self._memory))
        before_bytes = landing.received_bytes
        try:
            is_whole = await self._attempt(fetch, landing)
        except SentOn as answer:
            del self._tasks[object_id]
            self._node_store.fetch_sent_on(object_id, answer.node_id)
        except TransferFailed as error:
            logger.info("object %s: node %s did not give it: %s", object_id.hex(), fetch.node_id.hex(), error)
            del self._tasks[object_id]
            self._node_store.fetch_failed(object_id, str(error), landing.received_bytes > before_bytes)
        except ObjectExists:
            del self._tasks[object_id]
            self._landings.pop(object_id).end()
            self._node_store.appeared(object_id)
        except StoreFull as error:
            del self._tasks[object_id]
            self._node_store.never_fits(object_id, error)
        else:
            del self._tasks[object_id]
            # One without a byte is whole when it is described, also where there was no room for it.
            if is_whole and landing.has_memory:
                del self._landings[object_id]
                self._node_store.fetched(object_id)
                landing.end()
            elif landing.has_memory:
                self._node_store.fetch_announced(object_id)
            else:
                header = known(landing.header, "the header of an object that found no memory")
                self._node_store.fetch_found_no_memory(object_id, header.size_bytes)

    async def _attempt(self, fetch: StartFetch, landing: CopyLanding) -> bool:
        # The size is known from an earlier attempt: no need to ask for what there is still no room for.
        if landing.header is not None and not await landing.take_room():
            return False
        config = self._node_store.config
        max_bytes = 0 if landing.has_memory else fetch.max_bytes
        if max_bytes and self._node_store.gets_a_file(fetch.object_id, 0):
            max_bytes = 1  # what it is comes first, then its file
        running = HolderStreams(
            fetch,
            max_bytes,
            landing.ranges,
            landing.landing,
            self._streams,
            lambda node_id: self._nodes.find(node_id, config.unknown_node_timeout_s),
            config,
        )
        self._running[fetch.object_id] = running
        try:
            return await running.run()
        finally:
            if self._running.get(fetch.object_id) is running:
                del self._running[fetch.object_id]
