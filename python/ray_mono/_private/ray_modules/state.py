"""Names of `ray._private.state` that say what each node has."""

from __future__ import annotations

from ray_mono._private import state
from ray_mono.common.resources import ResourceSet
from ray_mono.core_worker import current
from ray_mono.protobuf import common_pb2, gcs_pb2


def available_resources_per_node() -> dict[str, dict[str, float]]:
    """What is free now of the living nodes, in units: node id -> name -> amount. Raises RaySystemError where not connected."""
    return {
        node.node_id.hex(): ResourceSet.from_proto(node.available).to_units() for node in _nodes(collect=True)
    }


def total_resources_per_node() -> dict[str, dict[str, float]]:
    """The same of what they have in total."""
    return {
        node.node_id.hex(): ResourceSet.from_proto(node.total).to_units() for node in _nodes(collect=False)
    }


def _nodes(collect: bool) -> list[common_pb2.NodeResources]:
    request = gcs_pb2.GetAllResourcesRequest(collect=collect)
    return list(current.require().gcs.GetAllResources(request, timeout_s=state.GCS_TIMEOUT_S).nodes)
