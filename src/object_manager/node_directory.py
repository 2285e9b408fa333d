"""What this node knows of the others: where they are, and who died. The GCS tells it.

There is one subscription to the channels NODE and WORKER_DEATH. When it breaks it is made again, for ever: a
node without a GCS goes on with what it knows. Deaths that were published meanwhile are not in the rows that a
subscription begins with. So the table of workers is compared with the owners of the objects here after each
start, and whenever a node dies, since its workers die with it.

The head may not have an owner in its table at all: its store was lost and the owner's node with it, or the
death is so long ago that it was forgotten. Nor may it have one yet whose start is just being told. So who is
missing is asked for again, and counts as dead when it was missing for as long as the head says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from ray_mono.common.backoff import Backoff
from ray_mono.common.missing_workers import MissingWorkers
from ray_mono.object_manager.keys import NodeKey, WorkerKey
from ray_mono.object_manager.seams import NodeGone, PeerAddress, TransferFailed
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.rpc.surface import AsyncChannel, RpcError, Transport

_CONNECT_TIMEOUT_S = 5.0
_CALL_TIMEOUT_S = 30.0
# Between two attempts to reach the GCS: doubles up to the second.
_RETRY_FIRST_S = 0.1
_RETRY_LONGEST_S = 2.0
# As many as the GCS keeps (gcs/config.py). Who asks for a node that died before them waits in vain as for one
# that never was.
_DEAD_NODES_MAX = 1_000
_MISSING_PERIOD_S = 30.0
"""Between two questions for owners that the GCS does not have."""

logger = logging.getLogger(__name__)


class NodeDirectory:
    """Implements puller.AddressBook."""

    def __init__(
        self,
        transport: Transport,
        gcs_address: str,
        owners_here: Callable[[], Iterable[WorkerKey]],
        on_owner_dead: Callable[[WorkerKey], None],
        on_node_dead: Callable[[PeerAddress], None],
    ) -> None:
        """owners_here() gives the workers whose deaths matter; on_owner_dead may run twice for one."""
        self.is_connected = False
        self._transport = transport
        self._gcs_address = gcs_address
        self._channel: AsyncChannel | None = None
        self._owners_here = owners_here
        self._on_owner_dead = on_owner_dead
        self._on_node_dead = on_node_dead
        self._addresses: dict[NodeKey, PeerAddress] = {}
        self._dead: dict[NodeKey, str] = {}
        self._missing = MissingWorkers[WorkerKey]()
        # Set when owners may have died of whom nobody told.
        self._may_be_dead = asyncio.Event()
        # Set, and replaced, whenever a node becomes known.
        self._changed = asyncio.Event()

    async def find(self, node_id: NodeKey, timeout_s: float) -> PeerAddress:
        """Where the node's object manager answers.

        Waits up to timeout_s for a node that is unknown. Raises NodeGone, and TransferFailed where a GCS that
        cannot be reached may know it.
        """
        was_connected = self.is_connected
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if node_id in self._dead:
                        raise NodeGone(f"the node is dead ({self._dead[node_id]})")
                    if node_id in self._addresses:
                        return self._addresses[node_id]
                    await self._changed.wait()
        except TimeoutError:
            told = f"the GCS did not tell of such a node within {timeout_s:g} s"
            if was_connected and self.is_connected:
                raise NodeGone(told) from None
            raise TransferFailed(f"{told}; the GCS cannot be reached") from None

    def follow(self, gcs_address: str) -> None:
        """The GCS is there. A connection to another place leads to one that was stopped."""
        if gcs_address != self._gcs_address:
            self._gcs_address = gcs_address
            if self._channel is not None:
                self._channel.close()

    async def run(self) -> None:
        """Follows the GCS until cancelled."""
        backoff = Backoff(_RETRY_FIRST_S, _RETRY_LONGEST_S)
        while True:
            try:
                channel = await self._transport.connect(self._gcs_address, _CONNECT_TIMEOUT_S)
                self._channel = channel
                try:
                    backoff.reset()
                    await self._follow(channel)
                finally:
                    self.is_connected = False
                    self._channel = None
                    channel.close()
                why = "it ended the subscription"
            except RpcError as error:
                why = str(error)
            pause_s = backoff.next_s()
            logger.warning("the GCS at %s: %s; trying again in %g s", self._gcs_address, why, pause_s)
            await asyncio.sleep(pause_s)

    async def _follow(self, channel: AsyncChannel) -> None:
        gcs = GcsServiceAsyncStub(channel)
        channels = [gcs_pb2.ChannelFilter(channel=name) for name in (gcs_pb2.NODE, gcs_pb2.WORKER_DEATH)]
        messages = gcs.Subscribe(gcs_pb2.SubscribeRequest(channels=channels))
        self.is_connected = True
        self._missing.clear()
        self._may_be_dead.set()
        asking = asyncio.create_task(self._ask_for_owners(gcs))
        try:
            async for message in messages:
                if message.channel == gcs_pb2.NODE:
                    for node in gcs_pb2.NodeNews.FromString(message.payload).nodes:
                        if self._learn_node(node):
                            self._may_be_dead.set()
                elif message.channel == gcs_pb2.WORKER_DEATH:
                    for worker_id in gcs_pb2.WorkerDeaths.FromString(message.payload).worker_ids:
                        self._on_owner_dead(WorkerKey(worker_id))
        finally:
            asking.cancel()

    async def _ask_for_owners(self, gcs: GcsServiceAsyncStub) -> None:
        """Nodes do not wait for the answer: a head on an empty store gives it when it has heard all."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MISSING_PERIOD_S if self._missing else None):
                    await self._may_be_dead.wait()
            self._may_be_dead.clear()
            try:
                await self._find_dead_owners(gcs)
            except RpcError:
                # Where the connection has ended the subscription says so.
                await asyncio.sleep(_RETRY_LONGEST_S)
                self._may_be_dead.set()

    def _learn_node(self, node: common_pb2.NodeInfo) -> bool:
        """True where it is dead, and was not known to be."""
        node_id = NodeKey(node.node_id)
        is_news = False
        if node.state == common_pb2.NODE_DEAD:
            is_news = node_id not in self._dead
            self._dead[node_id] = node.death_cause.message or "no cause was given"
            if len(self._dead) > _DEAD_NODES_MAX:
                del self._dead[next(iter(self._dead))]
            address = self._addresses.pop(node_id, None)
            if address is not None:
                self._on_node_dead(address)
        else:
            self._dead.pop(node_id, None)
            self._addresses[node_id] = PeerAddress(node.host, node.object_manager_port)
        self._changed.set()
        self._changed = asyncio.Event()
        return is_news

    async def _find_dead_owners(self, gcs: GcsServiceAsyncStub) -> None:
        if not list(self._owners_here()):
            self._missing.clear()
            return
        reply = await gcs.GetAllWorkers(common_pb2.Empty(), timeout_s=_CALL_TIMEOUT_S)
        is_alive = {
            WorkerKey(worker.worker_id): worker.is_alive and NodeKey(worker.node_id) not in self._dead
            for worker in reply.workers
        }
        now_s = asyncio.get_running_loop().time()
        for owner in self._missing.dead(self._owners_here(), is_alive, reply.missing_dead_after_s, now_s):
            self._on_owner_dead(owner)
