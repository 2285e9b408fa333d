"""What machine this is, to others."""

from __future__ import annotations

from ray_mono._private.node.bootstrap import node_ip_address, parse_address
from ray_mono.core_worker.process import current


def get_node_ip_address(address: str | None = None) -> str:
    """The IP address of this node: where connected, as the cluster knows it.

    address: host:port on the way to which it is looked up where this process is not connected; None: the
    internet's. Raises ValueError for another form.
    """
    core = current.core
    if core is not None and core.node_host:
        return core.node_host
    return node_ip_address() if address is None else node_ip_address(parse_address(address)[0])


def get_node_instance_id() -> str:
    """The cloud provider's name of this machine; the node's id in hex where nobody said one. Raises
    RaySystemError where not connected."""
    core = current.require()
    return core.node_labels.get("ray.io/instance-id") or core.node_id.hex()
