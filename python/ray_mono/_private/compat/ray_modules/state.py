"""Names of `ray._private.state`: what each node has, and the object `state`, which libraries ask."""

from __future__ import annotations

from ray_mono._private import state as own
from ray_mono._private.compat import old_functions
from ray_mono._private.state import available_resources_per_node as available_resources_per_node
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.process import current


def total_resources_per_node() -> dict[str, dict[str, float]]:
    """As available_resources_per_node: what each node has in total."""
    return {
        node.node_id.hex(): ResourceSet.from_proto(node.total).to_units()
        for node in current.require().global_state.resources(collect=False)
    }


class GlobalState:
    """Answers for the cluster of this process at the moment it is asked.

    Raises RaySystemError where not connected.
    """

    node_table = staticmethod(own.nodes)
    actor_table = staticmethod(old_functions.actors)
    job_table = staticmethod(old_functions.jobs)
    cluster_resources = staticmethod(own.cluster_resources)
    available_resources = staticmethod(own.available_resources)
    available_resources_per_node = staticmethod(available_resources_per_node)
    _available_resources_per_node = staticmethod(available_resources_per_node)
    total_resources_per_node = staticmethod(total_resources_per_node)

    def get_cluster_config(self) -> None:
        """None: no autoscaler says how the cluster may grow."""

    def get_max_resources_from_cluster_config(self) -> None:
        """None, for the same reason."""

    def get_draining_nodes(self) -> dict[str, int]:
        """Their deadlines by id (hex), in milliseconds since the epoch; 0: none."""
        return own.draining_nodes()


state = GlobalState()
