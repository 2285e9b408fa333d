"""Asks raylets for bundles of placement groups: all groups that are looked at together, once per node.

A request may be carried out though its answer is lost. So what a group does not get whole is given back, also
where no answer came; that, and opening what is held, is tried until the raylet answers or its node is dead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

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

    def __init__(self, environment: Environment, nodes: NodeManager) -> None:
        self._environment = environment
        self._config = environment.config
        self._nodes = nodes
        # Asked for and not answered yet: group, index, node.
        self._awaited: set[tuple[PlacementGroupID, int, NodeID]] = set()

    def awaits(self, group_id: PlacementGroupID, index: int, node_id: NodeID) -> bool:
        """Whether this GCS asked for the bundle, and has no answer yet."""
        return (group_id, index, node_id) in self._awaited

    async def prepare(self, node_id: NodeID, groups: Sequence[common_pb2.GroupBundles]) -> list[str]:
        """Why the node does not hold each of them; empty: it does."""
        awaited = {
            (PlacementGroupID(each.group.placement_group_id), index, node_id)
            for each in groups
            for index in each.indices
        }
        self._awaited |= awaited
        try:
            info = self._nodes.alive(node_id)
            if info is None:
                return [f"node {node_id.hex()[:8]} died"] * len(groups)
            raylet = await self._environment.raylets.client(raylet_address(info))
            request = raylet_pb2.PrepareBundlesRequest(groups=groups)
            reply = await raylet.PrepareBundles(request, timeout_s=self._config.connect_timeout_s)
            return list(reply.refusals)
        except RpcError as error:
            return [f"node {node_id.hex()[:8]} did not answer: {error.message}"] * len(groups)
        finally:
            self._awaited -= awaited

    async def commit(self, node_id: NodeID, groups: Indices) -> list[PlacementGroupID]:
        """Opens them. Returns the groups of which the node does not hold these; all where it is dead."""
        while (info := self._nodes.alive(node_id)) is not None:
            try:
                raylet = await self._environment.raylets.client(raylet_address(info))
                request = raylet_pb2.CommitBundlesRequest(groups=_messages(groups))
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
        self._environment.tasks.spawn(
            self._until_given_back(node_id, groups, is_removed), f"give bundles back at {node_id.hex()}"
        )

    async def _until_given_back(self, node_id: NodeID, groups: Indices, is_removed: bool) -> None:
        while (info := self._nodes.alive(node_id)) is not None:
            try:
                raylet = await self._environment.raylets.client(raylet_address(info))
                request = raylet_pb2.ReturnBundlesRequest(groups=_messages(groups), is_removed=is_removed)
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
