"""How nodes hear what others have free: at a pace that does not grow with the cluster.

A node that works reports 20 times a second. Were each report passed on at once, what all nodes hear together
would grow with the square of their number. So reports gather, the latest of each node, and leave together:

    report ──► waits ──── once a period, those that have waited longest, NODES_MAX of them ──► all subscribers

The first after a quiet period leaves at once. A node hears of 64 nodes 20 times a second at most. Where more
nodes than that report all the time, each is heard of in its turn: of 1,000 all within two seconds. So what is
known of a node is older in a larger cluster. Raylets count what they sent there themselves
(raylet/scheduling/cluster_view.py), and a node that is full after all sends on what comes.

What the GCS sends is bounded, too: the period grows with the number of nodes beyond NODES_PER_S.
"""

from __future__ import annotations

import asyncio

from ray_mono.common.background import BackgroundTasks
from ray_mono.gcs.pubsub.subscriptions import Subscriptions
from ray_mono.protobuf import common_pb2, gcs_pb2

PERIOD_S = 0.05
NODES_MAX = 64
"""In one message: some 6 KB."""
NODES_PER_S = 10_000
"""So many nodes get a message in a second, which takes the GCS a tenth of it."""


class ResourceNews:
    """What nodes reported, on its way to the others."""

    def __init__(self, tasks: BackgroundTasks, subscriptions: Subscriptions) -> None:
        self._tasks = tasks
        self._subscriptions = subscriptions
        # By node id, in the order of their first report that has not left.
        self._waiting: dict[bytes, common_pb2.NodeResources] = {}
        self._is_sending = False

    def add(self, resources: common_pb2.NodeResources) -> None:
        """A node's latest report."""
        self._waiting[resources.node_id] = resources
        if not self._is_sending:
            self._is_sending = True
            self._tasks.spawn(self._send(), "tell nodes of resources")

    async def _send(self) -> None:
        while self._waiting:
            first = list(self._waiting)[:NODES_MAX]
            news = gcs_pb2.ResourceNews(nodes=[self._waiting.pop(node_id) for node_id in first])
            reached = self._subscriptions.publish(gcs_pb2.NODE_RESOURCES, b"", news.SerializeToString())
            await asyncio.sleep(max(PERIOD_S, len(reached) / NODES_PER_S))
        self._is_sending = False
