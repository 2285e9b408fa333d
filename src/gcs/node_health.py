"""The shell that checks on raylets: one task for each living node.

A healthy raylet is asked every health_check_period_s. The end of a connection to or from it proves nothing,
since links break; but it is worth a look at once. From then on it is asked every health_check_hint_period_s
until it answers. So it is where a check finds that nobody listens: to a head that has just started, no
connection ends. So a raylet that died is known in well under a second, and a machine that fell silent when
NodeManager has counted enough failures.

A raylet that is held to be dead may live. Until its lease is over it is looked whether anybody listens at its
address: a raylet listens for as long as it has workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ray_mono.common.ids import NodeID
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.node_fences import NodeFences
from ray_mono.gcs.node_manager import NodeManager, raylet_address
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import NobodyListens, RpcError

logger = logging.getLogger(__name__)


class NodeHealth:
    """Watches nodes, and says which are dead."""

    def __init__(
        self,
        environment: Environment,
        nodes: NodeManager,
        fences: NodeFences,
        on_dead: Callable[[NodeID, str], None],
        on_ended: Callable[[NodeID], None],
    ) -> None:
        """on_dead(node_id, why) runs once for a node whose checks failed too often. on_ended(node_id): the
        processes of one that was held to be dead have ended, or their time is over."""
        self._environment = environment
        self._config = environment.config
        self._nodes = nodes
        self._fences = fences
        self._on_dead = on_dead
        self._on_ended = on_ended
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
                elif self._nodes.check_failed(node_id, isinstance(failure, NobodyListens)):
                    self._on_dead(node_id, str(failure))
                    return
                # While it does not answer after a hint, or refuses, it is asked in quick succession.
                if failure is not None and (was_hinted or isinstance(failure, NobodyListens)):
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

    def watch_end(self, row: common_pb2.NodeInfo) -> None:
        """Begins to look whether a node that is held to be dead has ended."""
        self._environment.tasks.spawn(self._watch_end(row), f"await the end of node {row.node_id.hex()}")

    async def _watch_end(self, row: common_pb2.NodeInfo) -> None:
        node_id, clock = NodeID(row.node_id), self._environment.clock
        num_refused = 0
        while num_refused < self._config.health_check_failures_max:
            if not self._fences.left_s(node_id, clock.time_s()):
                logger.info("node %s: its time is over", node_id.hex())
                break
            num_refused = num_refused + 1 if await self._is_refused(raylet_address(row)) else 0
            await asyncio.sleep(self._config.health_check_hint_period_s)
        else:
            logger.info("node %s has ended: nobody listens at its address", node_id.hex())
        self._on_ended(node_id)

    async def _is_refused(self, address: str) -> bool:
        try:
            channel = await self._environment.transport.connect(address, self._config.health_check_timeout_s)
        except RpcError as error:
            return isinstance(error, NobodyListens)
        channel.close()
        return False

    async def _check(self, info: common_pb2.NodeInfo) -> RpcError | None:
        """Asks the raylet once; returns why it counts as not answered."""
        try:
            raylet = await self._environment.raylets.client(raylet_address(info))
            await raylet.CheckAlive(common_pb2.Empty(), timeout_s=self._config.health_check_timeout_s)
        except RpcError as error:
            logger.info("node %s did not answer a health check: %s", info.node_id.hex(), error)
            return error
        return None
