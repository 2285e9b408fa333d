"""Primary copies leave a node that is drained, for other nodes.

    this raylet:  its store says which it has (ListPrimaries), in memory or on disk
                  the head says where their owners are (GetAllWorkers): once, and when there are others
                  it chooses a node for each, and asks that one's raylet (TakeObjects)
    the other:    its store copies them (Get), it tells the owners (AddObjectLocation), and then they are
                  primary copies there (MarkPrimary)
    this raylet:  they are primary copies here no more, so the next round does not see them

The raylet decides, since it knows the nodes and what they have free. Owners are only told, so a driver that
does nothing keeps nothing waiting. What is read meanwhile is read here or there. Objects of owners that live
on this node go with their owners, and are left out.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence

from ray_mono.common.backoff import Backoff
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import OBJECT_STORE_MEMORY, SCALE
from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.protobuf.raylet_rpc import RayletServiceAsyncStub
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.scheduling.cluster_view import ClusterView
from ray_mono.raylet.store_client import StoreClient
from ray_mono.rpc.surface import RpcError, Transport

OBJECTS_MAX = 1000
"""Of one round. The next round has the others."""
BATCH_BYTES_MAX = 64 << 20
BATCH_OBJECTS_MAX = 100
BATCHES_AT_ONCE = 4
ASK_FIRST_S, ASK_MAX_S = 0.2, 10.0
"""Between two questions to the head for owners: longer each time while nothing leaves."""
TAKE_TIMEOUT_S = 90.0
"""One batch; longer than the other store lets a copy wait for room."""

logger = logging.getLogger(__name__)

Take = raylet_pb2.ObjectToTake


class Evacuation:
    """Of one raylet."""

    def __init__(
        self,
        node_id: bytes,
        clock: Clock,
        transport: Transport,
        connect_timeout_s: float,
        clients: Clients,
        cluster: ClusterView,
        store: StoreClient,
        workers: Callable[[], Awaitable[Sequence[common_pb2.WorkerInfo]]],
    ) -> None:
        """workers(): every worker and driver of the cluster that the head knows. Raises RpcError."""
        self._node_id = node_id
        self._clock = clock
        self._transport = transport
        self._connect_timeout_s = connect_timeout_s
        self._clients = clients
        self._cluster = cluster
        self._store = store
        self._workers = workers
        self._at_once = asyncio.Semaphore(BATCHES_AT_ONCE)
        self._told = ""
        # Addresses of owners, by worker id, as the head told them last.
        self._owners: dict[bytes, common_pb2.Address] = {}
        self._asks_again = Backoff(ASK_FIRST_S, ASK_MAX_S)
        self._ask_at_s = 0.0

    async def what_is_here(self) -> str:
        """What would be lost with the node, for people; empty: nothing."""
        reply = await self._store.primaries((), 1)
        return "its store has primary copies of objects" if reply.objects or reply.num_unsealed else ""

    async def round(self) -> int:
        """Moves what can be moved now. Returns how much may be left; 0: nothing is."""
        try:
            return await self._round()
        except RpcError as error:
            self._tell(f"objects cannot leave this node now: {error}")
            return 1

    async def _round(self) -> int:
        here = [client.worker_id for client in self._clients]
        reply = await self._store.primaries(here, OBJECTS_MAX)
        if not reply.objects:
            return int(reply.num_unsealed)
        await self._learn({item.owner_worker_id for item in reply.objects})
        objects = [
            Take(
                object_id=item.object_id,
                size_bytes=item.size_bytes,
                owner=self._owners[item.owner_worker_id],
            )
            for item in reply.objects
            if item.owner_worker_id in self._owners
        ]
        nodes = [node for node in self._cluster.nodes() if node.takes_work]
        if not nodes and objects:
            self._tell("there is no other node that could take this node's objects")
        num_taken = sum(await asyncio.gather(*(self._move(batch, nodes) for batch in batches(objects))))
        if num_taken:
            self._asks_again.reset()
            logger.info("%d objects have left this node", num_taken)
        # There may be more. Those of owners that are dead go when the store hears of that.
        return max(1, len(reply.objects) - num_taken)

    async def _learn(self, wanted: set[bytes]) -> None:
        """Where these owners are. Those that the head does not know are dead, and what they own goes when the
        store hears of that; or they have just begun."""
        now_s = self._clock.time_s()
        if wanted <= self._owners.keys() or now_s < self._ask_at_s:
            return
        self._ask_at_s = now_s + self._asks_again.next_s()
        living = [worker for worker in await self._workers() if worker.is_alive]
        self._owners = {worker.worker_id: worker.address for worker in living}

    async def _move(self, batch: Sequence[Take], nodes: Sequence[NodeSnapshot]) -> int:
        """To the first node that takes something of it. Returns how many were taken."""
        async with self._at_once:
            size_bytes = sum(item.size_bytes for item in batch)
            for node in by_room(nodes, size_bytes, batch[0].object_id):
                try:
                    taken = await self._ask(node, batch)
                except RpcError as error:
                    self._tell(f"node {node.node_id.hex()} took no objects: {error}")
                    continue
                if taken:
                    await self._store.mark_primary(taken, is_primary=False)
                    return len(taken)
                # Perhaps their owners are dead.
                for item in batch:
                    self._owners.pop(item.owner.worker_id, None)
        return 0

    async def _ask(self, node: NodeSnapshot, batch: Sequence[Take]) -> list[bytes]:
        channel = await self._transport.connect(f"{node.host}:{node.port}", self._connect_timeout_s)
        try:
            request = raylet_pb2.TakeObjectsRequest(from_node_id=self._node_id, objects=batch)
            reply = await RayletServiceAsyncStub(channel).TakeObjects(request, timeout_s=TAKE_TIMEOUT_S)
            return list(reply.object_ids)
        finally:
            channel.close()

    def _tell(self, trouble: str) -> None:
        """Each once, as long as it is the same."""
        if trouble != self._told:
            self._told = trouble
            logger.warning("%s", trouble)


def batches(objects: Iterable[Take]) -> list[list[Take]]:
    made: list[list[Take]] = []
    room_bytes = 0
    for item in objects:
        room_bytes -= item.size_bytes
        if not made or room_bytes < 0 or len(made[-1]) == BATCH_OBJECTS_MAX:
            made.append([])
            room_bytes = BATCH_BYTES_MAX - item.size_bytes
        made[-1].append(item)
    return made


def by_room(nodes: Iterable[NodeSnapshot], size_bytes: int, key: bytes) -> list[NodeSnapshot]:
    """The order in which they are asked: those with memory for it first, in turn by `key`, so that several
    batches go to several nodes; then those that have to write to disk for it."""

    def free_bytes(node: NodeSnapshot) -> int:
        return node.available.get(OBJECT_STORE_MEMORY) // SCALE

    able = sorted((node for node in nodes if free_bytes(node) >= size_bytes), key=lambda node: node.node_id)
    first = zlib.crc32(key) % len(able) if able else 0
    others = [node for node in nodes if free_bytes(node) < size_bytes]
    return able[first:] + able[:first] + sorted(others, key=lambda node: (-free_bytes(node), node.node_id))
