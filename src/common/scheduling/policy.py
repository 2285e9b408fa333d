"""Which of some nodes takes the work: pure functions of snapshots, for the raylet and the GCS alike.

A policy is asked in three steps, and each looks only at what the one before it left:

    feasible      who could ever hold it (asks a node's total), and `allowed`: whom the strategy allows
    available     who can hold it now (asks what is free)
    a choice      `hybrid` (pack, then spread), `next_in_turn` or `least_used` (spread)

Ties go to the lowest node id, so no choice depends on the order of the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind

Use = Callable[[NodeSnapshot], float]
"""How much a node is used: 0 idle, 1 full."""


def feasible(required: ResourceSet, nodes: Iterable[NodeSnapshot]) -> list[NodeSnapshot]:
    """The nodes that take work and could hold it if nothing else ran there."""
    return [node for node in nodes if node.takes_work and required.fits_in(node.total)]


def available(required: ResourceSet, nodes: Iterable[NodeSnapshot]) -> list[NodeSnapshot]:
    """The nodes that take work and have it free now."""
    return [node for node in nodes if node.takes_work and required.fits_in(node.available)]


def allowed(strategy: Strategy, nodes: Sequence[NodeSnapshot]) -> Sequence[NodeSnapshot]:
    """Those of the feasible nodes that the strategy allows. A soft affinity allows all where its own node is
    not among them."""
    if strategy.kind is not StrategyKind.NODE_AFFINITY:
        return nodes
    named = [node for node in nodes if node.node_id == strategy.node_id]
    return named or (nodes if strategy.is_soft else [])


def hybrid(
    nodes: Sequence[NodeSnapshot], use: Use, preferred_node_id: bytes | None = None, pack_below: float = 0.0
) -> NodeSnapshot:
    """Packs, then spreads: the preferred node if it is there, else the one that is used least.

    Nodes used less than `pack_below` count as idle, so work gathers on the first of them. There has to be a
    node.
    """
    for node in nodes:
        if node.node_id == preferred_node_id:
            return node

    def score(node: NodeSnapshot) -> tuple[float, bytes]:
        used = use(node)
        return used if used >= pack_below else 0.0, node.node_id

    return min(nodes, key=score)


def least_used(nodes: Sequence[NodeSnapshot], use: Use) -> NodeSnapshot:
    """Spreads by use. There has to be a node."""
    return hybrid(nodes, use)


def next_in_turn(nodes: Iterable[NodeSnapshot], last_node_id: bytes) -> NodeSnapshot:
    """Spreads in turn: the node that follows the last one, in the order of their ids. There has to be one."""
    return min(nodes, key=lambda node: (node.node_id <= last_node_id, node.node_id))


def utilization(node: NodeSnapshot, of: ResourceSet) -> float:
    """How much is in use of the scarcest of these resources of a node: 0 idle, 1 full."""
    shares = [
        1 - node.available.get(name) / node.total.get(name) for name, _ in of.items() if node.total.get(name)
    ]
    return max(shares, default=0.0)
