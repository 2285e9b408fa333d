"""Tells other nodes that objects are freed.

One queue per node, one message under way to each, with everything that has gathered meanwhile. A node that
cannot be reached, by the network or since no GCS says where it is, is tried again until it is dead: what is
not freed there stays as long as its owner lives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ray_mono.common.backoff import Backoff
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.puller import AddressBook
from ray_mono.object_manager.seams import NodeGone, TransferFailed, TransferStreams

_RETRY_FIRST_S = 0.1
_RETRY_LONGEST_S = 5.0

logger = logging.getLogger(__name__)


class FreeForwarder:
    """Belongs to the loop's thread."""

    def __init__(
        self,
        streams: TransferStreams,
        nodes: AddressBook,
        config: ObjectManagerConfig,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self._streams = streams
        self._nodes = nodes
        self._config = config
        self._spawn = spawn
        # A node is a key exactly while a task serves it.
        self._pending: dict[NodeKey, list[ObjectKey]] = {}

    def free(self, node_id: NodeKey, object_id: ObjectKey) -> None:
        """Returns at once."""
        pending = self._pending.get(node_id)
        if pending is None:
            self._pending[node_id] = [object_id]
            self._spawn(self._serve(node_id), f"free on {node_id.hex()}")
        elif len(pending) < self._config.frees_pending_max:
            pending.append(object_id)

    @property
    def num_pending(self) -> int:
        return sum(len(pending) for pending in self._pending.values())

    async def _serve(self, node_id: NodeKey) -> None:
        try:
            while pending := self._pending[node_id]:
                self._pending[node_id] = []
                await self._free(node_id, pending)
        finally:
            del self._pending[node_id]

    async def _free(self, node_id: NodeKey, object_ids: Sequence[ObjectKey]) -> None:
        """Tries until it is done, or the node has nothing left to free."""
        backoff = Backoff(_RETRY_FIRST_S, _RETRY_LONGEST_S)
        while True:
            try:
                peer = await self._nodes.find(node_id, self._config.unknown_node_timeout_s)
                await self._streams.free(peer, object_ids)
                return
            except NodeGone as error:
                logger.info("not freeing %d objects on node %s: %s", len(object_ids), node_id.hex(), error)
                return
            except TransferFailed as error:
                logger.debug("freeing objects on node %s later: %s", node_id.hex(), error)
            await asyncio.sleep(backoff.next_s())
