"""Where a lease should run: pure functions of a snapshot of the cluster.

Default (hybrid): here, while it fits here; else the least used other node where it is free now; else wait
here for the first of both. SPREAD: the nodes in turn, among those where it is free. Node affinity: that node
and no other; a soft one falls back to the default when the node is dead or could never hold it. What waits is
decided again whenever anything changes.

*Feasible* asks a node's total (could it ever?), *available* asks what is free (can it now?). No node
feasible: the lease waits for a node to join, and its driver is warned.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ray_mono.common.scheduling.resources import ResourceSet


class StrategyKind(enum.Enum):
    DEFAULT = "default"
    SPREAD = "spread"
    NODE_AFFINITY = "node affinity"


@dataclass(frozen=True)
class Strategy:
    kind: StrategyKind = StrategyKind.DEFAULT
    node_id: bytes = b""
    """For NODE_AFFINITY."""
    is_soft: bool = False


@dataclass(frozen=True)
class NodeSnapshot:
    """One node as this raylet knows it. Only this node's own `available` is exact."""

    node_id: bytes
    host: str
    port: int
    total: ResourceSet
    available: ResourceSet
    is_alive: bool = True


@dataclass(frozen=True)
class RunHere:
    pass


@dataclass(frozen=True)
class SpillTo:
    node: NodeSnapshot


@dataclass(frozen=True)
class Wait:
    """Some node could hold it, and none can now. `feasible_node_ids` says which could."""

    feasible_node_ids: tuple[bytes, ...]


@dataclass(frozen=True)
class Infeasible:
    """No node that the strategy allows could ever hold it."""


@dataclass(frozen=True)
class NoSuchNode:
    """Hard affinity to a node that is dead (final) or that nobody has heard of (it may be joining)."""

    is_dead: bool


Decision = RunHere | SpillTo | Wait | Infeasible | NoSuchNode


def decide(
    required: ResourceSet,
    strategy: Strategy,
    here: NodeSnapshot,
    fits_here_now: bool,
    others: Sequence[NodeSnapshot],
    last_spread_node_id: bytes,
) -> Decision:
    """Chooses for one lease.

    required: what must be free. others: every other node known, dead ones included, in any order (ties break
    on the node id). last_spread_node_id: where the last SPREAD lease went.
    """
    if strategy.kind is StrategyKind.NODE_AFFINITY:
        decision = _affinity(required, strategy.node_id, here, fits_here_now, others)
        if not strategy.is_soft or isinstance(decision, RunHere | SpillTo | Wait):
            return decision
    if fits_here_now and strategy.kind is not StrategyKind.SPREAD:
        return RunHere()
    alive = [node for node in others if node.is_alive]
    free = [node for node in alive if required.fits_in(node.available)]
    if strategy.kind is StrategyKind.SPREAD:
        return _spread(required, here, fits_here_now, alive, free, last_spread_node_id)
    if free:
        return SpillTo(min(free, key=lambda node: (utilization(node, required), node.node_id)))
    return _wait(required, [here, *alive])


def _affinity(
    required: ResourceSet,
    node_id: bytes,
    here: NodeSnapshot,
    fits_here_now: bool,
    others: Sequence[NodeSnapshot],
) -> Decision:
    if node_id == here.node_id:
        return RunHere() if fits_here_now else _wait(required, [here])
    named = [node for node in others if node.node_id == node_id]
    if not named or not named[0].is_alive:
        return NoSuchNode(is_dead=bool(named))
    return SpillTo(named[0]) if required.fits_in(named[0].available) else _wait(required, named)


def _spread(
    required: ResourceSet,
    here: NodeSnapshot,
    fits_here_now: bool,
    alive: Sequence[NodeSnapshot],
    free: Sequence[NodeSnapshot],
    last_node_id: bytes,
) -> Decision:
    candidates = sorted([*free, *([here] if fits_here_now else [])], key=lambda node: node.node_id)
    if not candidates:
        return _wait(required, [here, *alive])
    following = [node for node in candidates if node.node_id > last_node_id]
    chosen = (following or candidates)[0]
    return RunHere() if chosen.node_id == here.node_id else SpillTo(chosen)


def _wait(required: ResourceSet, nodes: Iterable[NodeSnapshot]) -> Decision:
    feasible = tuple(sorted(node.node_id for node in nodes if required.fits_in(node.total)))
    return Wait(feasible) if feasible else Infeasible()


def utilization(node: NodeSnapshot, required: ResourceSet) -> float:
    """How much of the scarcest of the resources asked for is in use on a node: 0 idle, 1 full."""
    shares = [
        1 - node.available.get(name) / node.total.get(name)
        for name, _ in required.items()
        if node.total.get(name)
    ]
    return max(shares, default=0.0)


def best_node(required: ResourceSet, nodes: Iterable[NodeSnapshot]) -> NodeSnapshot | None:
    """The living node whose total comes closest to `required`: for messages."""

    def distance(node: NodeSnapshot) -> tuple[float, bytes]:
        missing = required.missing_from(node.total)
        return sum(amount / max(required.get(name), 1) for name, amount in missing.items()), node.node_id

    return min((node for node in nodes if node.is_alive), key=distance, default=None)
