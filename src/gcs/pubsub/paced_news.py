"""What every node hears of all others, at a pace that does not grow with the cluster.

A node that works reports its resources 20 times a second, its workers end now and then, and a cluster may
start at once. Were each of that passed on at once, what all nodes hear together would grow with the square of
their number. So it gathers, of each node the latest, and leaves together:

    news ──► waits ──── once a period, what has waited longest, BYTES_MAX of it ──► all subscribers

The first after a quiet period leaves at once, and in small clusters each row of a node. A node gets 20
messages a second at most. One has the resources of a hundred nodes, or of fewer where there are bundles of
placement groups, which have names of their own. Where more nodes than that report all the time, each is heard
of in its turn: of 1,000 all within a second. So what is known of a node is older in a larger cluster. Raylets
count what they sent there themselves (raylet/scheduling/cluster_view.py), and a node that is full after all
sends on what comes. Of a death only the id is told: whoever wants more asks.

What the GCS sends is bounded, too: the period grows with the number of nodes beyond NODES_PER_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

from ray_mono.common.background import BackgroundTasks
from ray_mono.gcs.pubsub.subscriptions import Subscriptions
from ray_mono.protobuf import common_pb2, gcs_pb2

T = TypeVar("T")

PERIOD_S = 0.05
BYTES_MAX = 16 << 10
"""In one message, unless one node alone has more to tell."""
NODES_PER_S = 10_000
"""So many nodes get a message in a second, which takes the GCS a tenth of it."""
AT_ONCE_MAX = 40
"""Of so many subscribers each is told of a node at once: a raylet and a store on each node are two."""


class PacedNews(Generic[T]):
    """News of one kind, on its way."""

    def __init__(
        self,
        tasks: BackgroundTasks,
        publish: Callable[[Sequence[T]], int],
        size_bytes: Callable[[T], int],
        period_s: Callable[[int], float] = lambda num_reached: max(PERIOD_S, num_reached / NODES_PER_S),
    ) -> None:
        """publish(news) returns how many subscribers it reached. size_bytes(one): of its message.
        period_s(num_reached): until the next message."""
        self._tasks = tasks
        self._publish = publish
        self._size_bytes = size_bytes
        self._period_s = period_s
        # By key, in the order of the first of a key that has not left.
        self._waiting: dict[bytes, T] = {}
        self._is_sending = False

    def add(self, key: bytes, news: T) -> None:
        """It replaces what waits under this key."""
        self._waiting[key] = news
        if not self._is_sending:
            self._is_sending = True
            self._tasks.spawn(self._send(), "tell subscribers")

    def forget(self, key: bytes) -> None:
        """What waits under this key is not true any more."""
        self._waiting.pop(key, None)

    async def _send(self) -> None:
        while self._waiting:
            num_reached = self._publish(self._take())
            await asyncio.sleep(self._period_s(num_reached))
        self._is_sending = False

    def _take(self) -> list[T]:
        """What has waited longest, for one message."""
        keys = list(islice(self._waiting, _how_many(map(self._size_bytes, self._waiting.values()))))
        return [self._waiting.pop(key) for key in keys]


def _how_many(sizes_bytes: Iterable[int]) -> int:
    """Fit in one message: one at least."""
    left_bytes, count = BYTES_MAX, 0
    for size_bytes in sizes_bytes:
        left_bytes -= size_bytes
        if count and left_bytes < 0:
            break
        count += 1
    return count


def in_parts(rows: Sequence[common_pb2.NodeInfo]) -> Iterator[Sequence[common_pb2.NodeInfo]]:
    """As many together as fit in one message."""
    begin = 0
    while begin < len(rows):
        end = begin + _how_many(row.ByteSize() for row in islice(rows, begin, None))
        yield rows[begin:end]
        begin = end


def node_news(tasks: BackgroundTasks, subscriptions: Subscriptions) -> PacedNews[common_pb2.NodeInfo]:
    """By node id. In small clusters each leaves at once: the next head after a lost store may know of a node
    only what others have heard (adoption.py)."""

    def publish(nodes: Sequence[common_pb2.NodeInfo]) -> int:
        news = gcs_pb2.NodeNews(nodes=nodes)
        return len(subscriptions.publish(gcs_pb2.NODE, b"", news.SerializeToString()))

    def period_s(num_reached: int) -> float:
        return num_reached / NODES_PER_S if num_reached > AT_ONCE_MAX else 0.0

    return PacedNews(tasks, publish, common_pb2.NodeInfo.ByteSize, period_s)


def resource_news(
    tasks: BackgroundTasks, subscriptions: Subscriptions
) -> PacedNews[common_pb2.NodeResources]:
    """By node id."""

    def publish(nodes: Sequence[common_pb2.NodeResources]) -> int:
        news = gcs_pb2.ResourceNews(nodes=nodes)
        return len(subscriptions.publish(gcs_pb2.NODE_RESOURCES, b"", news.SerializeToString()))

    return PacedNews(tasks, publish, common_pb2.NodeResources.ByteSize)


def death_news(tasks: BackgroundTasks, subscriptions: Subscriptions) -> PacedNews[bytes]:
    """Ids of workers, by themselves."""

    def publish(worker_ids: Sequence[bytes]) -> int:
        news = gcs_pb2.WorkerDeaths(worker_ids=worker_ids)
        return len(subscriptions.publish(gcs_pb2.WORKER_DEATH, b"", news.SerializeToString()))

    return PacedNews(tasks, publish, len)


class ClusterNews:
    """What all nodes hear of each other."""

    def __init__(self, tasks: BackgroundTasks, subscriptions: Subscriptions) -> None:
        self._nodes = node_news(tasks, subscriptions)
        self._resources = resource_news(tasks, subscriptions)
        self._deaths = death_news(tasks, subscriptions)

    def node_changed(
        self, row: common_pb2.NodeInfo, after_commit: Callable[[Callable[[], object]], None]
    ) -> None:
        """It is told when it is durable. Who subscribes from now on gets this row, and must not get an
        earlier one after it."""
        self._nodes.forget(row.node_id)
        news = common_pb2.NodeInfo()
        news.CopyFrom(row)
        after_commit(lambda: self._nodes.add(news.node_id, news))

    def reported(self, resources: common_pb2.NodeResources) -> None:
        self._resources.add(resources.node_id, resources)

    def worker_died(self, worker_id: bytes) -> None:
        self._deaths.add(worker_id, worker_id)
