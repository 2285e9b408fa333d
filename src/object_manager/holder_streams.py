"""One fetch of an object: the streams over which it comes, from one holder or from several at once.

The first holder says what the object is, and brings its first bytes. If much is missing then, and others are
said to have it, these are asked as well (ranges.py says for which bytes). Whatever becomes of the others is
not told: they are asked again in their turn if the first one fails. A holder that is busy with other nodes,
and would send this one on, is no help and is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import NodeKey
from ray_mono.object_manager.pull_manager import StartFetch
from ray_mono.object_manager.ranges import Part, Ranges
from ray_mono.object_manager.seams import (
    Fetch,
    Landing,
    PeerAddress,
    SentOn,
    TransferFailed,
    TransferStreams,
)

# A holder that has nothing to bring looks so often whether another one is slow.
_LOOKS_AGAIN_S = 0.1


def _heard(task: asyncio.Task[bool]) -> None:
    """Its failure matters to nobody where others brought the rest, or the fetch was given up."""
    if not task.cancelled():
        task.exception()


class HolderStreams:
    """Of one fetch."""

    def __init__(
        self,
        fetch: StartFetch,
        max_bytes: int,
        ranges: Ranges,
        landing: Callable[[Part], Landing],
        streams: TransferStreams,
        find: Callable[[NodeKey], Awaitable[PeerAddress]],
        config: ObjectManagerConfig,
    ) -> None:
        """max_bytes: see Fetch. landing(part): where the bytes of a part go."""
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._object_id = fetch.object_id
        self._ranges = ranges
        self._landing = landing
        self._streams = streams
        self._find = find
        self._others_max = config.holders_per_object_max - 1
        self._loop = asyncio.get_running_loop()
        # Those that run, but where there is only one holder.
        self._tasks: set[asyncio.Task[bool]] = set()
        self._bringing: dict[Part, asyncio.Task[Any] | None] = {}

    async def run(self) -> bool:
        """See TransferStreams.fetch."""
        if not self._fetch.others:
            return await self._bring(self._fetch.node_id, is_first=True)
        first = self._begin(self._fetch.node_id, is_first=True)
        try:
            while self._tasks and not self._ranges.is_whole:
                done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                self._tasks -= done
                for task in done:
                    if task is not first and not task.cancelled():
                        task.result()
        finally:
            self.stop()
            if self._tasks:
                await asyncio.wait(self._tasks)
        if self._ranges.is_whole:
            return True
        if first.cancelled():
            raise TransferFailed("it was slower than others")
        return first.result()

    def stop(self) -> None:
        """Not a byte is written any more when this returns."""
        for task in self._tasks:
            task.cancel()

    def _begin(self, node_id: NodeKey, is_first: bool) -> asyncio.Task[bool]:
        bring = self._bring(node_id, is_first) if is_first else self._help(node_id)
        task = asyncio.create_task(bring, name=f"{self._object_id.hex()} from {node_id.hex()}")
        task.add_done_callback(_heard)
        self._tasks.add(task)
        return task

    async def _help(self, node_id: NodeKey) -> bool:
        try:
            return await self._bring(node_id, is_first=False)
        except (TransferFailed, SentOn):
            return False

    async def _bring(self, node_id: NodeKey, is_first: bool) -> bool:
        """All that one holder brings."""
        fetch, ranges = self._fetch, self._ranges
        peer = await self._find(node_id)
        goes_on = False
        by_chunks = bool(fetch.others)
        while (part := await self._next_part()) is not None:
            self._bringing[part] = asyncio.current_task()
            try:
                while part.at < part.end:
                    ranges.ask(part, by_chunks, self._loop.time())
                    max_bytes = 0 if goes_on or not is_first else self._max_bytes
                    asked = Fetch(self._object_id, max_bytes, fetch.avoided, fetch.is_sent_on, goes_on)
                    if not await self._streams.fetch(peer, asked, self._landing(part)):
                        return False
                    if is_first and not goes_on:
                        by_chunks = by_chunks and ranges.is_for_several
                        for other in fetch.others[: self._others_max] if by_chunks else ():
                            self._begin(other, is_first=False)
                    goes_on = True
            finally:
                del self._bringing[part]
                ranges.leave(part)
        return ranges.is_whole

    async def _next_part(self) -> Part | None:
        """None: it is whole, or others bring what is missing of it."""
        ranges = self._ranges
        while not ranges.is_whole:
            part = ranges.take()
            if part is not None or not self._bringing:
                return part
            slow = ranges.slow(self._loop.time())
            task = self._bringing.get(slow) if slow is not None else None
            if task is not None:
                task.cancel()
            await asyncio.sleep(0 if task is not None else _LOOKS_AGAIN_S)
        return None
