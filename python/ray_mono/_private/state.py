"""What the cluster has, in the form in which Ray's programs read it."""

from __future__ import annotations

from typing import Any

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.process import current
from ray_mono.protobuf import common_pb2


def nodes() -> list[dict[str, Any]]:
    """Every node that the cluster has had, also dead ones (the last 1,000), by start time. Each is a dict
    with Ray's keys: "NodeID" (hex), "Alive", "NodeManagerAddress", "Resources" (in units; empty for dead
    nodes), "Labels" and so on; and with "Draining" and "DrainDeadlineTimestampMs" (0: none).

    Raises RaySystemError where this process is not connected, and RpcError if the GCS does not answer.
    """
    rows = current.require().global_state.nodes()
    return [_node_as_dict(node) for node in sorted(rows, key=lambda node: node.start_time_s)]


def _node_as_dict(node: common_pb2.NodeInfo) -> dict[str, Any]:
    is_alive = node.state == common_pb2.NODE_ALIVE
    return {
        "NodeID": node.node_id.hex(),
        "Alive": is_alive,
        "NodeManagerAddress": node.host,
        "NodeManagerHostname": node.hostname,
        "NodeManagerPort": node.node_manager_port,
        "ObjectManagerPort": node.object_manager_port,
        "ObjectStoreSocketName": node.store_socket,
        "RayletSocketName": node.raylet_socket,
        # Of parts that are not here.
        "MetricsExportPort": 0,
        "MetricsAgentPort": 0,
        "DashboardAgentListenPort": 0,
        "RuntimeEnvAgentPort": 0,
        "NodeName": node.host,
        "DeathReason": node.death_cause.kind,
        "DeathReasonMessage": node.death_cause.message,
        "alive": is_alive,
        "Resources": ResourceSet.from_proto(node.total).to_units() if is_alive else {},
        "Labels": dict(node.labels),
        "Draining": is_alive and node.HasField("drain"),
        "DrainDeadlineTimestampMs": node.drain.deadline_timestamp_ms,
    }


def draining_nodes() -> dict[str, int]:
    """The deadlines of nodes that are drained, by their ids (hex): milliseconds since the epoch; 0: none.
    Raises as `nodes`."""
    return {
        node.node_id.hex(): node.drain.deadline_timestamp_ms
        for node in current.require().global_state.nodes()
        if node.state == common_pb2.NODE_ALIVE and node.HasField("drain")
    }


def cluster_resources() -> dict[str, float]:
    """What the living nodes have in total, by name: CPUs, GPUs, bytes of memory. Raises as `nodes`."""
    return _sum(lambda node: node.total)


def available_resources() -> dict[str, float]:
    """What of cluster_resources() is free now, by name. Raises as `nodes`."""
    return _sum(lambda node: node.available, collect=True)


def _sum(part: Any, collect: bool = False) -> dict[str, float]:
    total = ResourceSet()
    for node in current.require().global_state.resources(collect):
        total = total + ResourceSet.from_proto(part(node))
    return total.to_units()


def available_resources_per_node() -> dict[str, dict[str, float]]:
    """What is free now on each living node, in units: node id -> name -> amount. Raises RaySystemError where
    not connected.
    """
    return {
        node.node_id.hex(): ResourceSet.from_proto(node.available).to_units()
        for node in current.require().global_state.resources(collect=True)
    }
