"""The shell that checks on raylets: one task for each living node.

A healthy raylet is asked every health_check_period_s. The end of a connection to or from it proves nothing,
since links break; but it is worth a look at once. From then on it is asked every health_check_hint_period_s
until it answers. So a raylet that died is known in well under a second, and a machine that fell silent when
NodeManager has counted enough failures.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ray_mono.common.ids import NodeID
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.node_manager import NodeManager, raylet_address
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError

logger = logging.getLogger(__name__)


class NodeHealth:
    """Watches nodes, and says which are dead."""

    def __init__(
        self, environment: Environment, nodes: NodeManager, on_dead: Callable[[NodeID, str], None]
    ) -> None:
        """on_dead(node_id, why) runs once for a node whose checks failed too often."""
        self._environment = environment
        self._config = environment.config
        self._nodes = nodes
        self._on_dead = on_dead
        self._hints: dict[NodeID, asyncio.Event] = {}

    def watch(self, node_id: NodeID) -> None:
        """Begins to check on a living node, until it is dead."""
        if node_id not in self._hints:
            self._hints[node_id] = asyncio.Event()
            self._environment.tasks.spawn(self._watch(node_id), f"check node {node_id.hex()}")

    def hint(self, node_id: NodeID) -> None:
        """A connection to or from the node ended."""
        if node_id in self._hints:
            self._hints[node_id].set()

    def hint_address(self, address: str) -> None:
        for node_id in self._hints:
            info = self._nodes.alive(node_id)
            if info is not None and raylet_address(info) == address:
                self.hint(node_id)

    async def _watch(self, node_id: NodeID) -> None:
        hint = self._hints[node_id]
        try:
            while (info := self._nodes.alive(node_id)) is not None:
                was_hinted = hint.is_set()
                hint.clear()
                failure = await self._check(info)
                if failure is None:
                    self._nodes.check_answered(node_id)
                elif self._nodes.check_failed(node_id):
                    self._on_dead(node_id, failure)
                    return
                # While it does not answer after a hint, it is asked in quick succession.
                if was_hinted and failure is not None:
                    await asyncio.sleep(self._config.health_check_hint_period_s)
                    hint.set()
                    continue
                try:
                    async with asyncio.timeout(self._config.health_check_period_s):
                        await hint.wait()
                except TimeoutError:
                    pass
        finally:
            del self._hints[node_id]

    async def _check(self, info: common_pb2.NodeInfo) -> str | None:
        """Asks the raylet once; returns why it counts as not answered."""
        try:
            raylet = await self._environment.raylets.client(raylet_address(info))
            await raylet.CheckAlive(common_pb2.Empty(), timeout_s=self._config.health_check_timeout_s)
        except RpcError as error:
            logger.info("node %s did not answer a health check: %s", info.node_id.hex(), error)
            return str(error)
        return None
