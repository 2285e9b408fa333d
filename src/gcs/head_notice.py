"""A head that took over tells the nodes that it knows where it is, until they have registered.

Most find it by themselves: it was started again in its old place. The others may hold a connection to a head
that was stopped, or look for it where it is no more.
"""

from __future__ import annotations

import asyncio
import logging

from ray_mono.gcs.environment import Environment
from ray_mono.gcs.node_manager import NodeManager, raylet_address
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError

logger = logging.getLogger(__name__)


async def tell_missing_nodes(
    environment: Environment, nodes: NodeManager, place: common_pb2.HeadPlace
) -> None:
    """place: of this head."""
    period_s = environment.config.head_notice_period_s
    while True:
        await asyncio.sleep(period_s)
        missing = [info for node_id in nodes.unregistered() if (info := nodes.alive(node_id)) is not None]
        if not missing:
            return
        await asyncio.gather(*(_tell(environment, info, place) for info in missing))


async def _tell(environment: Environment, info: common_pb2.NodeInfo, place: common_pb2.HeadPlace) -> None:
    try:
        raylet = await environment.raylets.client(raylet_address(info))
        await raylet.FollowHead(place, timeout_s=environment.config.connect_timeout_s)
    except RpcError as error:
        logger.info("node %s was not told of this head: %s", info.node_id.hex(), error)
