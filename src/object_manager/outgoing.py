"""What a node gives other nodes: objects that it has, and objects that are on their way to it.

It knows no sockets: whoever serves a peer opens a Parcel, says what is in it, sends its parts, and closes it.
An object is pinned while it is sent, straight from the store's pages. One that is spilled is read slice by
slice, and takes no room in the store. One that still arrives is passed on as it comes, to those whom its
sender has told to ask here (senders.py). Nobody else is given it: two nodes that take each other for holders
would wait for each other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from ray_mono.common.our_bug import known
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import TRANSFERS, NodeKey, ObjectKey
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.seams import Arrival, ObjectHeader, SentOn, TransferFailed
from ray_mono.object_manager.senders import Senders
from ray_mono.object_manager.stored_object import StoredObject


@dataclass(frozen=True, slots=True)
class Asked:
    """What a peer wants."""

    object_id: ObjectKey
    asker: NodeKey
    offset: int = 0
    length: int = 0  # 0: to the end
    max_bytes: int = 0  # it can take no larger object now; 0: any
    avoided: tuple[NodeKey, ...] = ()  # these did not give it
    is_sent_on: bool = False
    goes_on: bool = False


class Parcel:
    """One object on its way to a peer. To be closed."""

    def __init__(
        self,
        node_store: NodeStore,
        senders: Senders,
        slice_bytes: int,
        asked: Asked,
        header: ObjectHeader,
        entry: StoredObject | None,
        arrival: Arrival | None,
    ) -> None:
        """entry: the object, pinned. arrival: where it still arrives."""
        self.header = header
        self.offset = min(asked.offset, header.size_bytes)
        left_bytes = header.size_bytes - self.offset
        is_too_large = bool(asked.max_bytes) and header.size_bytes > asked.max_bytes
        self.length = 0 if is_too_large else min(asked.length or left_bytes, left_bytes)
        self._node_store = node_store
        self._senders = senders
        self._slice_bytes = slice_bytes
        self._asked = asked
        self._entry = entry
        self._arrival = arrival
        self._is_begun = False

    def begin(self) -> None:
        """Raises SentOn."""
        if self.length:
            asked = self._asked
            size_bytes = self.header.size_bytes
            relay = self._senders.begin(
                asked.object_id, size_bytes, asked.asker, asked.avoided, asked.goes_on
            )
            if relay is not None:
                raise SentOn(relay)
            self._is_begun = True

    async def parts(self) -> AsyncIterator[memoryview]:
        """The bytes, as they can be had. Raises TransferFailed, OSError."""
        at, end = self.offset, self.offset + self.length
        while at < end:
            if self._entry is None:
                await self._await_more(at)
            if self._entry is None:
                part = self._arrived(at, end)
            else:
                part = await self._content(self._entry, at, end)
            yield part
            at += len(part)

    async def _await_more(self, at: int) -> None:
        arrival = known(self._arrival, "where an object arrives that is not here")
        await arrival.until_beyond(at)
        if arrival.is_over:
            self._entry = await self._node_store.read_for_transfer(self._asked.object_id)
            if self._entry is None:
                raise TransferFailed("the copy that arrived here was given up")

    def _arrived(self, at: int, end: int) -> memoryview:
        """A copy of the bytes: the object may be given up while they are sent."""
        arrival = known(self._arrival, "where an object arrives that is not here")
        until = min(end, arrival.received_bytes, at + self._slice_bytes)
        return memoryview(bytes(arrival.bytes_so_far(at, until)))

    async def _content(self, entry: StoredObject, at: int, end: int) -> memoryview:
        """From memory all of it, from disk a slice."""
        length = end - at if entry.is_in_memory else min(self._slice_bytes, end - at)
        return await self._node_store.content(entry, at, length)

    def close(self) -> None:
        if self._is_begun:
            self._senders.end(self._asked.object_id, self._asked.asker)
        if self._entry is not None:
            self._node_store.release(self._asked.object_id, TRANSFERS)


class Outgoing:
    """The giving side of one node."""

    def __init__(self, node_store: NodeStore, config: ObjectManagerConfig) -> None:
        self._node_store = node_store
        self._senders = Senders(config.receivers_per_object_max, config.sent_on_bytes_min)
        self._slice_bytes = config.send_slice_bytes
        self._header_timeout_s = config.seal_timeout_s

    async def open(self, asked: Asked) -> Parcel | None:
        """None: there is no copy here. Raises SentOn."""
        parcel = await self._parcel(asked)
        if parcel is not None:
            try:
                parcel.begin()
            except SentOn:
                parcel.close()
                raise
        return parcel

    async def _parcel(self, asked: Asked) -> Parcel | None:
        entry = await self._node_store.read_for_transfer(asked.object_id)
        if entry is None and asked.is_sent_on:
            arrival = self._node_store.arriving(asked.object_id)
            if arrival is None:
                return None
            header = await arrival.until_described(self._header_timeout_s)
            if header is not None:
                return self._pack(asked, header, None, arrival)
            entry = await self._node_store.read_for_transfer(asked.object_id)
        if entry is None:
            return None
        header = ObjectHeader(entry.size_bytes, entry.metadata, entry.owner)
        return self._pack(asked, header, entry, None)

    def _pack(
        self, asked: Asked, header: ObjectHeader, entry: StoredObject | None, arrival: Arrival | None
    ) -> Parcel:
        return Parcel(self._node_store, self._senders, self._slice_bytes, asked, header, entry, arrival)
