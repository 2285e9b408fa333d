"""Tells holders which of their leases others wait for: one stream for each connection that asked for one
(WatchReclaims).

A holder that watches nothing keeps its leases until it is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from ray_mono.protobuf import raylet_pb2
from ray_mono.raylet.effects import ReclaimLease


class ReclaimStreams:
    """What each requester has yet to be told."""

    def __init__(self) -> None:
        # Bounded by the leases that a requester has: each is named once.
        self._untold: dict[int, asyncio.Queue[bytes]] = {}

    def tell(self, effect: ReclaimLease) -> None:
        queue = self._untold.get(effect.requester)
        if queue is not None:
            queue.put_nowait(effect.lease_id)

    def listens(self, requester: int) -> bool:
        """Whether it hears of reclaims at all."""
        return requester in self._untold

    async def stream(self, requester: int) -> AsyncGenerator[raylet_pb2.ReclaimedLeases, None]:
        """Until it is closed; a second one of a requester replaces the first."""
        queue = self._untold[requester] = asyncio.Queue()
        try:
            while True:
                lease_ids = [await queue.get()]
                while not queue.empty():
                    lease_ids.append(queue.get_nowait())
                yield raylet_pb2.ReclaimedLeases(lease_ids=lease_ids)
        finally:
            if self._untold.get(requester) is queue:
                del self._untold[requester]
