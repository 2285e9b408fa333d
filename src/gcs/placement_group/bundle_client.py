"""Asks raylets for bundles of placement groups: all groups that are looked at together, once per node.

A request may be carried out though its answer is lost. So what a group does not get whole is given back, also
where no answer came; that, and opening what is held, is tried until the raylet answers or its node is dead.

Requests have numbers, and a raylet carries out none of a bundle after a later one: what a broken connection
delivers late would hold bundles that nobody returns, or return some that are in use.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ray_mono.common.ids import NodeID, PlacementGroupID
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.node_manager import NodeManager, raylet_address
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode

logger = logging.getLogger(__name__)

Indices = Mapping[PlacementGroupID, Sequence[int]]
"""Bundles on one node."""


class BundleClient:
    """Of one GCS."""

    def __init__(self, environment: Environment, nodes: NodeManager, on_returned: Callable[[], None]) -> None:
        """on_returned() is told when bundles were."""
        self._on_returned = on_returned
        self._environment = environment
        self._config = environment.config
        self._nodes = nodes
        self._head_number = 0
        self._num_requests = 0
        # How many returns of a group's bundles a node has not answered.
        self._returning: Counter[tuple[PlacementGroupID, NodeID]] = Counter()

    def begin(self, head_number: int) -> None:
        """Requests of this head come after those of all heads before it."""
        self._head_number = head_number

    def next_number(self) -> common_pb2.BundleRequestNumber:
        """Of a request, or of an answer that names bundles."""
        self._num_requests += 1
        return common_pb2.BundleRequestNumber(head_number=self._head_number, number=self._num_requests)

    def returning_from(self, group_id: PlacementGroupID) -> set[NodeID]:
        """The nodes that have not said that bundles of the group are returned: what they were asked for again
        would be returned as well."""
        return {node_id for of_group, node_id in self._returning if of_group == group_id}

    async def prepare(
        self, node_id: NodeID, groups: Sequence[common_pb2.GroupBundles], waited_s: float | None = None
    ) -> list[str]:
        """Why the node does not hold each of them; empty: it does. waited_s: they may wait there, for as long
        as it takes, and have waited so long; whoever cancels that has to give them back."""
        try:
            info = self._nodes.alive(node_id)
            if info is None:
                return [f"node {node_id.hex()[:8]} died"] * len(groups)
            raylet = await self._environment.raylets.client(raylet_address(info))
            request = raylet_pb2.PrepareBundlesRequest(
                groups=groups,
                may_wait=waited_s is not None,
                number=self.next_number(),
                waited_s=waited_s or 0.0,
            )
            timeout_s = self._config.connect_timeout_s if waited_s is None else None
            reply = await raylet.PrepareBundles(request, timeout_s=timeout_s)
            return list(reply.refusals)
        except RpcError as error:
            return [f"node {node_id.hex()[:8]} did not answer: {error.message}"] * len(groups)

    async def commit(self, node_id: NodeID, groups: Indices) -> list[PlacementGroupID]:
        """Opens them. Returns the groups of which the node does not hold these; all where it is dead."""
        request = raylet_pb2.CommitBundlesRequest(groups=_messages(groups), number=self.next_number())
        while (info := self._nodes.alive(node_id)) is not None:
            try:
                raylet = await self._environment.raylets.client(raylet_address(info))
                await raylet.CommitBundles(request, timeout_s=self._config.connect_timeout_s)
                return []
            except RpcError as error:
                if error.code is StatusCode.NOT_FOUND:
                    if len(groups) == 1:
                        return list(groups)
                    missing = [await self.commit(node_id, {each: groups[each]}) for each in groups]
                    return [group_id for ids in missing for group_id in ids]
                logger.info("bundles on node %s are not open yet: %s", node_id.hex(), error)
            await asyncio.sleep(self._config.lease_retry_period_s)
        return list(groups)

    def give_back(self, node_id: NodeID, groups: Indices, is_removed: bool) -> None:
        """Ends them there. is_removed: their groups are gone."""
        self._returning.update((group_id, node_id) for group_id in groups)
        self._environment.tasks.spawn(
            self._until_given_back(node_id, groups, is_removed), f"give bundles back at {node_id.hex()}"
        )

    async def _until_given_back(self, node_id: NodeID, groups: Indices, is_removed: bool) -> None:
        try:
            await self._insist(node_id, groups, is_removed)
        finally:
            self._returning.subtract((group_id, node_id) for group_id in groups)
            self._returning = +self._returning
            self._on_returned()

    async def _insist(self, node_id: NodeID, groups: Indices, is_removed: bool) -> None:
        request = raylet_pb2.ReturnBundlesRequest(
            groups=_messages(groups), is_removed=is_removed, number=self.next_number()
        )
        while (info := self._nodes.alive(node_id)) is not None:
            try:
                raylet = await self._environment.raylets.client(raylet_address(info))
                await raylet.ReturnBundles(request, timeout_s=self._config.connect_timeout_s)
                return
            except RpcError as error:
                logger.info("bundles on node %s are not given back yet: %s", node_id.hex(), error)
            await asyncio.sleep(self._config.lease_retry_period_s)


def _messages(groups: Indices) -> list[common_pb2.BundleIndices]:
    return [
        common_pb2.BundleIndices(placement_group_id=group_id.binary(), indices=indices)
        for group_id, indices in groups.items()
    ]
