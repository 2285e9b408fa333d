"""Slices of TPUs: hosts that are connected with each other, reserved together as placement groups.

Nothing here looks at hardware, and nodes do not recognise their TPUs. Whoever starts them tells their
resources and labels, as Ray's nodes tell by themselves: each host of a slice has the resource "TPU", and the
labels of its slice's name, its own number in it, the topology and the pod type (nodes.py). Host 0 has 1 of
"TPU-<pod type>-head" as well. Whoever reserves that has the slice: all its hosts are then asked for by the
slice's name. A slice that is one host is a bundle like any other, and has no head.
"""

from ray_mono.util.tpu.nodes import get_current_pod_name as get_current_pod_name
from ray_mono.util.tpu.nodes import get_current_pod_worker_count as get_current_pod_worker_count
from ray_mono.util.tpu.nodes import get_num_ready_tpu_slices as get_num_ready_tpu_slices
from ray_mono.util.tpu.nodes import get_num_tpu_chips_on_node as get_num_tpu_chips_on_node
from ray_mono.util.tpu.nodes import get_num_tpu_slices as get_num_tpu_slices
from ray_mono.util.tpu.nodes import get_tpu_nodes_for_slice as get_tpu_nodes_for_slice
from ray_mono.util.tpu.nodes import get_tpu_slice_name_from_node as get_tpu_slice_name_from_node
from ray_mono.util.tpu.slices import (
    DEFAULT_TPU_HEAD_RESERVATION_TIMEOUT_S as DEFAULT_TPU_HEAD_RESERVATION_TIMEOUT_S,
)
from ray_mono.util.tpu.slices import TPU_SUBSLICE_LABEL_PREFIX as TPU_SUBSLICE_LABEL_PREFIX
from ray_mono.util.tpu.slices import SlicePlacementGroup as SlicePlacementGroup
from ray_mono.util.tpu.slices import init_jax_profiler as init_jax_profiler
from ray_mono.util.tpu.slices import reserve_tpu_slice as reserve_tpu_slice
from ray_mono.util.tpu.slices import run_on_slice as run_on_slice
from ray_mono.util.tpu.slices import slice_placement_group as slice_placement_group
from ray_mono.util.tpu.slices import subslice_placement_group as subslice_placement_group
from ray_mono.util.tpu.topology import DEFAULT_MEGASCALE_PORT as DEFAULT_MEGASCALE_PORT
from ray_mono.util.tpu.topology import VALID_TPU_TYPES as VALID_TPU_TYPES
from ray_mono.util.tpu.topology import get_chips_per_host as get_chips_per_host
from ray_mono.util.tpu.topology import get_num_chips_from_topology as get_num_chips_from_topology
from ray_mono.util.tpu.topology import get_tpu_coordinator_env_vars as get_tpu_coordinator_env_vars
from ray_mono.util.tpu.topology import get_tpu_num_slices_for_workers as get_tpu_num_slices_for_workers
from ray_mono.util.tpu.topology import get_tpu_resource_per_chip as get_tpu_resource_per_chip
from ray_mono.util.tpu.topology import get_tpu_version_from_type as get_tpu_version_from_type
from ray_mono.util.tpu.topology import get_tpu_worker_resources as get_tpu_worker_resources
from ray_mono.util.tpu.topology import infer_tpu_pod_type_from_topology as infer_tpu_pod_type_from_topology

__all__ = [
    "DEFAULT_MEGASCALE_PORT",
    "DEFAULT_TPU_HEAD_RESERVATION_TIMEOUT_S",
    "TPU_SUBSLICE_LABEL_PREFIX",
    "VALID_TPU_TYPES",
    "SlicePlacementGroup",
    "get_chips_per_host",
    "get_current_pod_name",
    "get_current_pod_worker_count",
    "get_num_chips_from_topology",
    "get_num_ready_tpu_slices",
    "get_num_tpu_chips_on_node",
    "get_num_tpu_slices",
    "get_tpu_coordinator_env_vars",
    "get_tpu_nodes_for_slice",
    "get_tpu_num_slices_for_workers",
    "get_tpu_resource_per_chip",
    "get_tpu_slice_name_from_node",
    "get_tpu_version_from_type",
    "get_tpu_worker_resources",
    "infer_tpu_pod_type_from_topology",
    "init_jax_profiler",
    "reserve_tpu_slice",
    "run_on_slice",
    "slice_placement_group",
    "subslice_placement_group",
]
