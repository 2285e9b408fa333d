"""The object managers of simulated nodes: the real ones, over a file for the node's memory and streams of the
simulation's between nodes.

Each is a process of its own, which ends with its raylet. A copy between nodes takes its time, and fails where
the network does not carry it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from ray_mono.common.background import BackgroundTasks
from ray_mono.object_manager.component import ObjectManager
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import TRANSFERS, NodeKey, ObjectKey
from ray_mono.object_manager.memory_file import MemoryFile
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.seams import Landing, ObjectHeader, PeerAddress, TransferFailed
from tests.simulation.process import SimProcess
from tests.simulation.spill_disk import SimSpillDisk
from tests.simulation.world import World

CAPACITY_BYTES = 4 << 20
SPILLING_PROBABILITY = 0.5
"""Of a node whose store is small, and which writes to disk what it can."""
SMALL_CAPACITY_BYTES = 256 << 10
TRANSFER_DELAY_S = (0.0002, 0.02)
SILENCE_S = 30.0
"""After which a stream to a host that does not answer is given up."""


class SimStore:
    """One node's."""

    def __init__(self, world: World, host_name: str, node_id: bytes, gcs_address: str) -> None:
        self.world = world
        self.process = world.network.start_process(host_name, f"store {node_id.hex()[:8]}")
        self.path = f"/sim/memory.{self.process.pid}"
        self.port = self.process.pid
        self.socket = f"/sim/store.{self.process.pid}"
        self._peer_address = PeerAddress(world.network.ip_of(host_name), self.port)
        self._gcs_address = gcs_address
        rng = world.rng(f"{self.process.name} disk")
        self._spills = rng.random() < SPILLING_PROBABILITY
        self._capacity_bytes = SMALL_CAPACITY_BYTES if self._spills else CAPACITY_BYTES
        real_path = os.path.join(world.folder, os.path.basename(self.path))
        self._memory = MemoryFile(real_path, self._capacity_bytes)
        self._disk = SimSpillDisk(rng, world.folder, str(self.process.pid))
        self._node_id = node_id
        # The same name in all runs: see Machine.open_file.
        self._memory.path = self.path
        self.process.on_death(lambda reason: self._died())
        self._tasks = BackgroundTasks(_fail)

    async def run(self) -> None:
        """Serves; ends with its raylet."""
        world, process = self.world, self.process
        config = ObjectManagerConfig(
            self._capacity_bytes,
            backing_step_bytes=CAPACITY_BYTES,
            backing_ahead_bytes=0,
            create_timeout_s=2.0,
            min_spilling_size_bytes=250_000,
            object_spilling_threshold=0.1,
            spill_retry_s=0.05,
        )
        manager = ObjectManager(
            config,
            NodeKey(self._node_id),
            self._memory,
            world.clock,
            self._tasks.spawn,
            process.kill,
            self._disk if self._spills else None,
        )
        self.node_store: NodeStore = manager.node_store
        world.stores[self._peer_address] = self
        transport = world.transport(process)
        manager.attach(transport, self._gcs_address, SimStreams(world, process))
        await transport.serve(f"unix:{self.socket}", manager.handlers())

    def _died(self) -> None:
        self.world.stores.pop(self._peer_address, None)
        self._memory.close()
        self._disk.close()


class SimStreams:
    """TransferStreams of one node's."""

    def __init__(self, world: World, process: SimProcess) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self._world = world
        self._process = process
        self._rng = world.rng(f"{process.name} streams")

    async def fetch(self, peer: PeerAddress, object_id: ObjectKey, max_bytes: int, landing: Landing) -> bool:
        header, content = await self._sent_by(await self._reach(peer), object_id)
        memory = landing.place(header)
        if memory is None or (max_bytes and header.size_bytes > max_bytes):
            return False
        await self._reach(peer)
        start = landing.received_bytes
        memory[start:] = content[start:]
        landing.received_bytes += len(content) - start
        self.received_bytes += len(content) - start
        return True

    async def free(self, peer: PeerAddress, object_ids: Sequence[ObjectKey]) -> None:
        holder = await self._reach(peer)
        holder.node_store.free(object_ids)

    async def _sent_by(self, holder: SimStore, object_id: ObjectKey) -> tuple[ObjectHeader, bytes]:
        """What the holder sends. It reads and pins in its own process: ours may be killed meanwhile."""
        sent: asyncio.Future[tuple[ObjectHeader, bytes]] = asyncio.get_running_loop().create_future()

        def fail(reason: str) -> None:
            if not sent.done():
                sent.set_exception(TransferFailed(reason))

        async def send() -> None:
            store = holder.node_store
            entry = await store.read_for_transfer(object_id)
            if entry is None:
                fail("it holds no copy")
                return
            try:
                content = bytes(await store.content(entry, 0, entry.size_bytes))
            finally:
                store.release(object_id, TRANSFERS)
            if not sent.done():
                sent.set_result((ObjectHeader(entry.size_bytes, entry.metadata, entry.owner), content))

        holder.process.on_death(fail)
        holder.process.spawn(send(), name="send an object")
        return await sent

    async def _reach(self, peer: PeerAddress) -> SimStore:
        await asyncio.sleep(self._rng.uniform(*TRANSFER_DELAY_S))
        store = self._world.stores.get(peer)
        network, host_name = self._world.network, self._process.host_name
        if store is None:
            raise TransferFailed(f"{peer.host}:{peer.port}: connection refused")
        if not network.reaches(host_name, store.process.host_name):
            await asyncio.sleep(SILENCE_S)
            raise TransferFailed(f"{peer.host}:{peer.port}: no answer")
        return store

    def drop(self, peer: PeerAddress) -> None:
        """There are no connections to close."""

    async def close(self) -> None:
        """Likewise."""


def _fail(error: BaseException, name: str) -> None:
    raise error
