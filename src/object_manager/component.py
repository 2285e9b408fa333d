"""An object manager without its process: machines, shells and servicer, put together over injected doors.

The binary (object_manager.py) gives it real ones, a simulation its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ray_mono.common.world import Clock
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.free_forwarder import FreeForwarder
from ray_mono.object_manager.keys import NodeKey
from ray_mono.object_manager.node_directory import NodeDirectory
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.puller import Puller
from ray_mono.object_manager.seams import SharedMemory, SpillDisk, TransferStreams
from ray_mono.object_manager.servicer import StoreServicer
from ray_mono.object_manager.wait_reasons import WaitReasons
from ray_mono.protobuf import object_manager_pb2
from ray_mono.protobuf.object_manager_rpc import object_store_service_handlers
from ray_mono.rpc.surface import Handler, Transport

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[Any]]

# DumpState lists so many objects and pulls; the counts are always whole.
_LISTED_MAX = 1000


class ObjectManager:
    """One node's store, and its copies from and to other nodes."""

    def __init__(
        self,
        config: ObjectManagerConfig,
        node_id: NodeKey,
        memory: SharedMemory,
        clock: Clock,
        spawn: Spawn,
        on_raylet_gone: Callable[[str], None],
        disk: SpillDisk | None = None,
    ) -> None:
        """Alone until attach() is called. spawn(coroutine, name): a failure of the task ends the process.
        disk: see NodeStore."""
        self.node_store = NodeStore(config, node_id, memory, clock, spawn, disk)
        self._memory = memory
        self._spawn = spawn
        self._on_raylet_gone = on_raylet_gone
        self._streams: TransferStreams | None = None
        self._forwarder: FreeForwarder | None = None
        self._directory: NodeDirectory | None = None

    def attach(self, transport: Transport, gcs_address: str, streams: TransferStreams) -> None:
        """Makes it part of a cluster: follows the GCS, copies objects from other nodes, frees them there."""
        store = self.node_store.store
        self._streams = streams
        self._directory = NodeDirectory(
            transport, gcs_address, store.owners, self.node_store.free_owned_by, streams.drop
        )
        Puller(self.node_store, self._memory, streams, self._directory, self._spawn)
        self._forwarder = FreeForwarder(streams, self._directory, self.node_store.config, self._spawn)
        self._spawn(self._directory.run(), "follow the GCS")

    def handlers(self) -> Mapping[str, Handler[Any, Any]]:
        """What the store's Unix socket answers."""
        node = self.node_store
        servicer = StoreServicer(
            node,
            self._memory,
            node.pressure,
            self._forwarder,
            self.stats,
            self.dump_state,
            WaitReasons(node.node_id, node.store, node.creates, node.gets, node.pulls),
            self._on_raylet_gone,
            self._follow_head,
        )
        return object_store_service_handlers(servicer)

    def _follow_head(self, address: str) -> None:
        if self._directory is not None:
            self._directory.follow(address)

    def stats(self) -> object_manager_pb2.StoreStats:
        node = self.node_store
        return object_manager_pb2.StoreStats(
            capacity_bytes=node.config.capacity_bytes,
            used_bytes=node.store.used_bytes,
            num_objects=node.store.num_sealed,
            num_unsealed=node.store.num_unsealed,
            num_pins=node.store.num_pins,
            stream_sent_bytes=self._streams.sent_bytes if self._streams else 0,
            stream_received_bytes=self._streams.received_bytes if self._streams else 0,
            num_evicted=node.store.num_evicted,
            num_waiting_creates=len(node.creates),
            num_pulls_active=node.pulls.num_active,
            spilled_bytes_total=node.store.spilled_bytes_total,
            restored_bytes_total=node.store.restored_bytes_total,
            num_spilled_files=len(node.files),
        )

    def dump_state(self) -> dict[str, Any]:
        """The state as JSON carries it, for people."""
        node = self.node_store
        return {
            "node_id": node.node_id.hex(),
            "memory": node.store.describe_memory(),
            "backed_bytes": self._memory.backed_bytes,
            "num_objects": node.store.num_sealed,
            "num_unsealed": node.store.num_unsealed,
            "num_pins": node.store.num_pins,
            "num_evicted": node.store.num_evicted,
            "spilled_bytes_total": node.store.spilled_bytes_total,
            "restored_bytes_total": node.store.restored_bytes_total,
            "on_disk_bytes": node.files.total_bytes,
            "dead_on_disk_bytes": node.files.dead_bytes,
            "num_waiting_creates": len(node.creates),
            "num_waiting_gets": len(node.gets),
            "num_pulls": len(node.pulls),
            "num_frees_pending": self._forwarder.num_pending if self._forwarder else 0,
            "gcs_connected": self._directory.is_connected if self._directory else None,
            "objects": [
                {
                    "object_id": row.object_id.hex(),
                    "state": row.state.value,
                    "size_bytes": row.size_bytes,
                    "offset": row.offset,
                    "owner": row.owner.hex(),
                    "primary": row.is_primary,
                    "pins": row.num_pins,
                }
                for row in node.store.objects()[:_LISTED_MAX]
            ],
            "pulls": [
                {
                    "object_id": pull.object_id.hex(),
                    "state": pull.state.value,
                    "needed_bytes": pull.needed_bytes,
                    "from": pull.current.hex() if pull.current else None,
                    "next": [node_id.hex() for node_id in pull.holders],
                    "failed": {node_id.hex(): reason for node_id, reason in pull.failures.items()},
                }
                for pull in node.pulls.all()[:_LISTED_MAX]
            ],
        }
