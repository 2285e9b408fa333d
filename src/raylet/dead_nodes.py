"""Tells this node's workers and drivers which nodes are dead: one stream for each that asks (WatchDeadNodes).

A machine that is cut off, or stands still, ends no connection. Whoever waits there for an answer hears from
here that none will come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from ray_mono.protobuf import common_pb2, raylet_pb2

KEPT_MAX = 1000
"""The last ones are kept, for who asks later and has heard of the node before."""


class DeadNodes:
    """Of one raylet."""

    def __init__(self) -> None:
        # In the order of their deaths.
        self._dead: dict[bytes, raylet_pb2.DeadNode] = {}
        # What each stream has yet to tell. Bounded by the nodes.
        self._untold: list[asyncio.Queue[raylet_pb2.DeadNode]] = []

    def died(self, node: common_pb2.NodeInfo) -> None:
        if node.node_id in self._dead:
            return
        dead = raylet_pb2.DeadNode(node_id=node.node_id, host=node.host, port=node.node_manager_port)
        self._dead[node.node_id] = dead
        if len(self._dead) > KEPT_MAX:
            del self._dead[next(iter(self._dead))]
        for queue in self._untold:
            queue.put_nowait(dead)

    async def stream(self) -> AsyncGenerator[raylet_pb2.DeadNode, None]:
        """Until it is closed: first those that are dead already."""
        queue: asyncio.Queue[raylet_pb2.DeadNode] = asyncio.Queue()
        for dead in self._dead.values():
            queue.put_nowait(dead)
        self._untold.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._untold.remove(queue)
