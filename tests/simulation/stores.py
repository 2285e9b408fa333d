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
from ray_mono.object_manager.get_queue import Found
from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.memory_file import MemoryFile
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.outgoing import Asked, Outgoing, Parcel
from ray_mono.object_manager.seams import Fetch, Landing, PeerAddress, SentOn, TransferFailed
from tests.simulation.process import SimProcess
from tests.simulation.spill_disk import SimSpillDisk
from tests.simulation.world import World

CAPACITY_BYTES = 4 << 20
SPILLING_PROBABILITY = 0.5
"""Of a node whose store is small, and which writes to disk what it can."""
SMALL_CAPACITY_BYTES = 256 << 10
SPARSE_SHARE = 0.4
"""So that a file of two objects of which one is dead is compacted."""
TRANSFER_DELAY_S = (0.0002, 0.02)
PART_BYTES = 10_000
"""So much of an object arrives at a time."""
SILENCE_S = 30.0
"""After which a stream to a host that does not answer is given up."""


class SimStore:
    """One node's."""

    def __init__(
        self,
        world: World,
        host_name: str,
        node_id: bytes,
        gcs_address: str,
        unreadable_probability: float = 0.0,
    ) -> None:
        self.world = world
        self.process = world.network.start_process(host_name, f"store {node_id.hex()[:8]}")
        self.path = f"/sim/memory.{self.process.pid}"
        self.port = self.process.pid
        self.socket = f"/sim/store.{self.process.pid}"
        self._peer_address = PeerAddress(world.network.ip_of(host_name), self.port)
        self._gcs_address = gcs_address
        rng = world.rng(f"{self.process.name} disk")
        self.has_disk = rng.random() < SPILLING_PROBABILITY
        self._capacity_bytes = SMALL_CAPACITY_BYTES if self.has_disk else CAPACITY_BYTES
        real_path = os.path.join(world.folder, os.path.basename(self.path))
        self._memory = MemoryFile(real_path, self._capacity_bytes)
        self.disk = SimSpillDisk(rng, world.folder, str(self.process.pid), unreadable_probability)
        self._node_id = node_id
        # The same name in all runs: see Machine.open_file.
        self._memory.path = self.path
        self.sent_bytes = 0
        self.pause_s = 0.0
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
            sent_on_bytes_min=100_000,
            range_bytes=20_000,
            slow_range_s=0.5,
            sparse_share=SPARSE_SHARE,
        )
        manager = ObjectManager(
            config,
            NodeKey(self._node_id),
            self._memory,
            world.clock,
            self._tasks.spawn,
            process.kill,
            self.disk if self.has_disk else None,
        )
        self.node_store: NodeStore = manager.node_store
        self.outgoing = Outgoing(self.node_store, config)
        world.stores[self._peer_address] = self
        transport = world.transport(process)
        manager.attach(transport, self._gcs_address, SimStreams(world, process, NodeKey(self._node_id)))
        await transport.serve(f"unix:{self.socket}", manager.handlers())

    def read(self, found: Found) -> bytes:
        """As a client that maps it."""
        if found.extent is None:
            return bytes(self._memory.view(found.offset, found.size_bytes))
        content = self.disk.map(found.extent.file, found.extent.offset + found.size_bytes)
        return bytes(content[found.extent.offset :])

    def slow_down(self, pause_s: float) -> None:
        """It sends each part of an object so much later from now on."""
        self.pause_s = pause_s

    def _died(self) -> None:
        self.world.stores.pop(self._peer_address, None)
        self._memory.close()
        self.disk.close()


class SimStreams:
    """TransferStreams of one node's."""

    def __init__(self, world: World, process: SimProcess, node_id: NodeKey) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self._world = world
        self._process = process
        self._node_id = node_id
        self._rng = world.rng(f"{process.name} streams")

    async def fetch(self, peer: PeerAddress, fetch: Fetch, landing: Landing) -> bool:
        holder = await self._reach(peer)
        asked = Asked(
            fetch.object_id,
            self._node_id,
            landing.at,
            0 if landing.end is None else landing.end - landing.at,
            fetch.max_bytes,
            fetch.avoided,
            fetch.is_sent_on,
            fetch.goes_on,
        )
        sent: asyncio.Queue[Parcel | bytes | Exception] = asyncio.Queue()
        sending = holder.process.spawn(self._send(holder, asked, sent), name="send an object")
        holder.process.on_death(lambda reason: sent.put_nowait(TransferFailed(reason)))
        self._process.on_death(lambda reason: sending.cancel())
        try:
            parcel = await _next(sent)
            assert isinstance(parcel, Parcel)
            sent.task_done()
            memory = landing.place(parcel.header)
            end = parcel.offset + parcel.length
            if memory is None or end < (landing.end or 0):
                return False
            while landing.at < end:
                part = await _next(sent)
                assert isinstance(part, bytes)
                await self._reach(peer)
                await asyncio.sleep(holder.pause_s)
                start = landing.at
                memory[start : start + len(part)] = part
                landing.arrived(len(part))
                sent.task_done()
                self.received_bytes += len(part)
                holder.sent_bytes += len(part)
        finally:
            sending.cancel()
        return True

    async def free(self, peer: PeerAddress, object_ids: Sequence[ObjectKey]) -> None:
        holder = await self._reach(peer)
        # There, where what follows goes on when this process has been killed.
        holder.process.run(holder.node_store.free, object_ids)

    async def _send(
        self, holder: SimStore, asked: Asked, sent: asyncio.Queue[Parcel | bytes | Exception]
    ) -> None:
        """The holder reads and pins in its own process: ours may be killed meanwhile."""
        try:
            parcel = await holder.outgoing.open(asked)
            if parcel is None:
                raise TransferFailed("it holds no copy")
        except (TransferFailed, SentOn) as answer:
            sent.put_nowait(answer)
            return
        try:
            sent.put_nowait(parcel)
            async for part in parcel.parts():
                for at in range(0, len(part), PART_BYTES):
                    sent.put_nowait(bytes(part[at : at + PART_BYTES]))
                    await sent.join()
        except TransferFailed as error:
            sent.put_nowait(error)
        except OSError as error:
            sent.put_nowait(TransferFailed(f"the copy there could not be read: {error}"))
        finally:
            parcel.close()

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


async def _next(sent: asyncio.Queue[Parcel | bytes | Exception]) -> Parcel | bytes:
    item = await sent.get()
    if isinstance(item, Exception):
        raise item
    return item


def _fail(error: BaseException, name: str) -> None:
    raise error
