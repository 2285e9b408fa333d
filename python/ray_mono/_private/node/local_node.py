"""The nodes of a cluster as its GCS knows them, and which of them is on this machine."""

from __future__ import annotations

import os
import stat

from ray_mono._private.node.gcs_query import query_gcs
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub


def get_cluster_info(gcs_address: str, secret: str, timeout_s: float = 10.0) -> gcs_pb2.ClusterInfo:
    """What the GCS says of itself. Raises as query_gcs does."""

    async def ask(gcs: GcsServiceAsyncStub) -> gcs_pb2.ClusterInfo:
        return await gcs.GetClusterInfo(common_pb2.Empty())

    return query_gcs(gcs_address, secret, ask, timeout_s)


def find_local_node(gcs_address: str, secret: str, timeout_s: float = 10.0) -> common_pb2.NodeInfo:
    """A living node of the cluster that a driver on this machine can connect to, the head rather than
    another.

    Raises ConnectionError where there is none here.
    """

    async def ask(gcs: GcsServiceAsyncStub) -> gcs_pb2.GetAllNodesReply:
        return await gcs.GetAllNodes(common_pb2.Empty())

    nodes = query_gcs(gcs_address, secret, ask, timeout_s).nodes
    here = [
        node for node in nodes if node.state == common_pb2.NODE_ALIVE and _is_our_socket(node.raylet_socket)
    ]
    if not here:
        raise ConnectionError(
            f"the cluster at {gcs_address} has no node of this user's on this machine, and a driver needs"
            f" one: run `ray-mono start --address={gcs_address}` here first"
        )
    return min(here, key=lambda node: (not node.is_head, node.node_id))


def _is_our_socket(path: str) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISSOCK(status.st_mode) and status.st_uid in (os.getuid(), 0)
