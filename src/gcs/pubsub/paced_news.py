"""What every node hears of all others, at a pace that does not grow with the cluster.

A node that works reports its resources 20 times a second, and its workers end now and then. Were each of that
passed on at once, what all nodes hear together would grow with the square of their number. So it gathers,
of each node's resources the latest, and leaves together:

    news ──► waits ──── once a period, what has waited longest, so many of them ──► all subscribers

The first after a quiet period leaves at once. A node gets 20 messages a second at most, and hears of the
resources of 64 nodes in each. Where more nodes than that report all the time, each is heard of in its turn:
of 1,000 all within two seconds. So what is known of a node is older in a larger cluster. Raylets count what
they sent there themselves (raylet/scheduling/cluster_view.py), and a node that is full after all sends on
what comes. Of a death only the id is told: whoever wants more asks.

What the GCS sends is bounded, too: the period grows with the number of nodes beyond NODES_PER_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ray_mono.common.background import BackgroundTasks
from ray_mono.gcs.pubsub.subscriptions import Subscriptions
from ray_mono.protobuf import common_pb2, gcs_pb2

T = TypeVar("T")

PERIOD_S = 0.05
NODES_MAX = 64
"""Of nodes that reported, in one message: some 6 KB."""
DEATHS_MAX = 1_000
NODES_PER_S = 10_000
"""So many nodes get a message in a second, which takes the GCS a tenth of it."""


class PacedNews(Generic[T]):
    """News of one kind, on its way."""

    def __init__(self, tasks: BackgroundTasks, publish: Callable[[Sequence[T]], int], most: int) -> None:
        """publish(news) returns how many subscribers it reached. most: of them in one message."""
        self._tasks = tasks
        self._publish = publish
        self._most = most
        # By key, in the order of the first of a key that has not left.
        self._waiting: dict[bytes, T] = {}
        self._is_sending = False

    def add(self, key: bytes, news: T) -> None:
        """It replaces what waits under this key."""
        self._waiting[key] = news
        if not self._is_sending:
            self._is_sending = True
            self._tasks.spawn(self._send(), "tell subscribers")

    async def _send(self) -> None:
        while self._waiting:
            first = list(self._waiting)[: self._most]
            num_reached = self._publish([self._waiting.pop(key) for key in first])
            await asyncio.sleep(max(PERIOD_S, num_reached / NODES_PER_S))
        self._is_sending = False


def resource_news(
    tasks: BackgroundTasks, subscriptions: Subscriptions
) -> PacedNews[common_pb2.NodeResources]:
    """By node id."""

    def publish(nodes: Sequence[common_pb2.NodeResources]) -> int:
        news = gcs_pb2.ResourceNews(nodes=nodes)
        return len(subscriptions.publish(gcs_pb2.NODE_RESOURCES, b"", news.SerializeToString()))

    return PacedNews(tasks, publish, NODES_MAX)


def death_news(tasks: BackgroundTasks, subscriptions: Subscriptions) -> PacedNews[bytes]:
    """Ids of workers, by themselves."""

    def publish(worker_ids: Sequence[bytes]) -> int:
        news = gcs_pb2.WorkerDeaths(worker_ids=worker_ids)
        return len(subscriptions.publish(gcs_pb2.WORKER_DEATH, b"", news.SerializeToString()))

    return PacedNews(tasks, publish, DEATHS_MAX)
