"""Where an actor could go, and what to say when it cannot: pure functions of a snapshot of the cluster.

The GCS only chooses the raylet that is asked first. That raylet knows its workers and its queue, may send the request on, and decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.resources import ResourceSet

# A node used less than this attracts actors as if it were empty, so that they gather before they spread (Ray's hybrid policy).
PACK_BELOW_UTILIZATION = 0.5
# Nodes named in one explanation.
NODES_TOLD_MAX = 8


@dataclass(frozen=True)
class PlacementNode:
    """A living node, as far as its reports have arrived, less what is being placed there now."""

    node_id: NodeID
    host: str
    total: ResourceSet
    available: ResourceSet


@dataclass(frozen=True)
class Demand:
    """What an actor wants of its node."""

    resources: ResourceSet
    """Must be free for the actor to be placed."""
    preferred_node_id: NodeID | None = None
    """Taken when it fits: the owner's."""
    affinity_node_id: NodeID | None = None
    affinity_is_soft: bool = False
    is_spread: bool = False


def moved_to(demand: Demand, node_id: bytes | None) -> Demand:
    """The demand of an actor whose arguments lie on this node (None: nowhere else) and had no room where it was."""
    if node_id is None or (demand.affinity_node_id is not None and not demand.affinity_is_soft):
        return demand
    return replace(demand, affinity_node_id=NodeID(node_id), affinity_is_soft=True, is_spread=False)


@dataclass(frozen=True)
class Shortage:
    """Why there is no place."""

    message: str
    is_for_the_driver: bool
    """False where it is only a matter of a worker starting."""


def choose_node(demand: Demand, nodes: Sequence[PlacementNode]) -> NodeID | None:
    """The node to ask, where the demand fits now or else could ever; None where it could nowhere. Ties go to the lowest id."""
    able = _able(demand, nodes)
    free = [node for node in able if demand.resources.fits_in(node.available)]
    candidates = free or able
    if not candidates:
        return None
    if not demand.is_spread and any(node.node_id == demand.preferred_node_id for node in candidates):
        return demand.preferred_node_id

    def score(node: PlacementNode) -> tuple[float, NodeID]:
        used = utilization(node)
        return (used if demand.is_spread or used >= PACK_BELOW_UTILIZATION else 0.0, node.node_id)

    return min(candidates, key=score).node_id


def utilization(node: PlacementNode) -> float:
    """Of the node's scarcest resource, 0 to 1."""
    return max(
        (1 - node.available.get(name) / amount for name, amount in node.total.items() if amount > 0),
        default=0.0,
    )


def explain(class_name: str, demand: Demand, nodes: Sequence[PlacementNode]) -> Shortage:
    """Why an actor of this class is not placed yet."""
    needs = f"Actor {class_name} needs {demand.resources}"
    if not nodes:
        return Shortage(f"{needs}, and no node has joined the cluster.", is_for_the_driver=True)
    able = _able(demand, nodes)
    if not able:
        if demand.affinity_node_id is not None and not demand.affinity_is_soft:
            needs += f" on node {demand.affinity_node_id.hex()}"
        return Shortage(
            f"{needs}, which no node has; the cluster has {_told(nodes, demand, False)}.",
            is_for_the_driver=True,
        )
    if any(demand.resources.fits_in(node.available) for node in able):
        return Shortage(
            f"{needs}, which is there: a worker is being started for it.", is_for_the_driver=False
        )
    return Shortage(
        f"{needs}, which is in use; the cluster has {_told(nodes, demand, True)}.", is_for_the_driver=True
    )


def _able(demand: Demand, nodes: Sequence[PlacementNode]) -> list[PlacementNode]:
    """The nodes that have enough in total and are allowed."""
    able = [node for node in nodes if demand.resources.fits_in(node.total)]
    if demand.affinity_node_id is None:
        return able
    wanted = [node for node in able if node.node_id == demand.affinity_node_id]
    return wanted or (able if demand.affinity_is_soft else [])


def _told(nodes: Sequence[PlacementNode], demand: Demand, with_free: bool) -> str:
    asked_for = demand.resources
    told = [
        f"node {node.node_id.hex()[:8]} ({node.host}) {node.total.beside(asked_for)}"
        + (f" with {node.available.beside(asked_for)} free" if with_free else "")
        for node in sorted(nodes, key=lambda node: node.node_id)[:NODES_TOLD_MAX]
    ]
    more = len(nodes) - NODES_TOLD_MAX
    return ", ".join(told) + (f", and {more} more nodes" if more > 0 else "")
