"""Slices as nodes' resources and labels tell them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ray_mono._private.state import available_resources_per_node
from ray_mono._private.state import nodes as nodes_of_cluster
from ray_mono.runtime_context import get_runtime_context
from ray_mono.util.tpu.topology import (
    get_num_chips_from_topology,
    get_tpu_resource_per_chip,
    infer_tpu_pod_type_from_topology,
)

SLICE_NAME_LABEL = "ray.io/tpu-slice-name"
WORKER_ID_LABEL = "ray.io/tpu-worker-id"
POD_TYPE_LABEL = "ray.io/tpu-pod-type"
TOPOLOGY_LABEL = "ray.io/tpu-topology"


def get_tpu_slice_name_from_node(node: Mapping[str, Any]) -> str | None:
    """Of a node as `ray_mono.nodes()` tells it; None outside of slices."""
    name: str | None = node.get("Labels", {}).get(SLICE_NAME_LABEL)
    return name


def get_tpu_nodes_for_slice(
    slice_name: str, nodes: Sequence[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The nodes of it that are alive, of these or of the cluster's."""
    all_nodes = nodes_of_cluster() if nodes is None else nodes
    return [node for node in all_nodes if node["Alive"] and get_tpu_slice_name_from_node(node) == slice_name]


def get_num_tpu_slices(topology: str, accelerator_type: str, tpu_resource_per_chip: int | None = None) -> int:
    """How many slices there are of that kind with all of their hosts alive; 0 for a kind that is none."""
    return len(_whole_slices(topology, accelerator_type, tpu_resource_per_chip))


def get_num_ready_tpu_slices(
    topology: str, accelerator_type: str, tpu_resource_per_chip: int | None = None
) -> int:
    """How many of them nobody uses."""
    whole = _whole_slices(topology, accelerator_type, tpu_resource_per_chip)
    free = available_resources_per_node()
    return sum(
        all(
            free.get(node["NodeID"], {}).get(name, 0) >= amount
            for node in nodes
            for name, amount in node["Resources"].items()
            if name == "TPU" or name.startswith("TPU-")
        )
        for nodes in whole.values()
    )


def get_current_pod_name() -> str | None:
    """The slice that this process is told to be in, by TPU_NAME; None for none."""
    return os.environ.get("TPU_NAME") or None


def get_current_pod_worker_count() -> int | None:
    """How many hosts that slice has, by TPU_WORKER_HOSTNAMES; None where it does not tell."""
    names = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return len(names.split(",")) if names else None


def get_num_tpu_chips_on_node() -> int:
    """The TPUs of this process's node, as it was told to have them."""
    node_id = get_runtime_context().get_node_id()
    return next(
        int(node["Resources"].get("TPU", 0)) for node in nodes_of_cluster() if node["NodeID"] == node_id
    )


def _whole_slices(
    topology: Any, accelerator_type: Any, per_chip: int | None
) -> dict[str, list[dict[str, Any]]]:
    try:
        pod_type = infer_tpu_pod_type_from_topology(topology, accelerator_type)
        total = get_num_chips_from_topology(topology) * get_tpu_resource_per_chip(per_chip)
    except ValueError:
        return {}
    nodes = [node for node in nodes_of_cluster() if node["Alive"]]
    wanted = {TOPOLOGY_LABEL: topology, POD_TYPE_LABEL: pod_type}
    fitting = [node for node in nodes if wanted.items() <= node["Labels"].items()]
    slices = {
        name: get_tpu_nodes_for_slice(name, fitting)
        for name in map(get_tpu_slice_name_from_node, fitting)
        if name
    }
    return {
        name: hosts
        for name, hosts in slices.items()
        if sum(host["Resources"].get("TPU", 0) for host in hosts) == total
        and any(host["Labels"].get(WORKER_ID_LABEL) == "0" for host in hosts)
    }
