"""Which of some nodes takes the work: pure functions of snapshots, for the raylet and the GCS alike.

A policy is asked in three steps, and each looks only at what the one before it left:

    feasible      who could ever hold it (asks a node's total), and `allowed`: whom the strategy allows
    available     who can hold it now (asks what is free)
    choose        one of them: `hybrid` (pack, then spread), or `next_in_turn` (spread)

Ties go to the lowest node id, so no choice depends on the order of the nodes.

Who could ever hold it is remembered (known_nodes.py). Of many such nodes only NODES_LOOKED_AT in a row are
asked, beginning where the last one was found; if none of these has it free, the next ones (`search`). So a
decision takes no longer in a large cluster while there is something free, and work still gathers on some
nodes before it spreads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from ray_mono.common.scheduling.bundle_resources import fits, is_in_any
from ray_mono.common.scheduling.labels import LabelSelector, any_selects, selects, told
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import GPU, ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind

PACK_BELOW = 0.5
"""A node that is used less than this attracts work as if it were empty, so that work gathers before it
spreads. Ray's scheduler_spread_threshold."""
NODES_LOOKED_AT = 128


def feasible(
    required: ResourceSet, nodes: Iterable[NodeSnapshot], selectors: Sequence[LabelSelector] = ()
) -> list[NodeSnapshot]:
    """The nodes that take work, have the labels, and could hold it if nothing else ran there."""
    able = [node for node in nodes if node.takes_work and required.fits_in(node.total)]
    able = _in_one_bundle(required, able, lambda node: node.total)
    return [node for node in able if any_selects(selectors, node.labels)] if selectors else able


def available(required: ResourceSet, nodes: Iterable[NodeSnapshot]) -> list[NodeSnapshot]:
    """The nodes that take work and have it free now."""
    free = [node for node in nodes if node.takes_work and required.fits_in(node.available)]
    return _in_one_bundle(required, free, lambda node: node.available)


def could_give_way(required: ResourceSet, nodes: Iterable[NodeSnapshot]) -> list[NodeSnapshot]:
    """The nodes that could hold it beside the actors and bundles that are there."""
    able = [node for node in nodes if required.fits_in(node.without_lasting)]
    return _in_one_bundle(required, able, lambda node: node.without_lasting)


def _in_one_bundle(
    required: ResourceSet, able: list[NodeSnapshot], room_of: Callable[[NodeSnapshot], ResourceSet]
) -> list[NodeSnapshot]:
    """Of nodes that have enough in all: work in any bundle of a group has to find it in one of them."""
    if able and is_in_any(required):
        return [node for node in able if fits(required, room_of(node))]
    return able


def drained(
    required: ResourceSet, nodes: Iterable[NodeSnapshot], selectors: Sequence[LabelSelector] = ()
) -> list[NodeSnapshot]:
    """The nodes that could hold it as well, were they not to end."""
    able = [node for node in nodes if node.is_alive and node.is_draining and fits(required, node.total)]
    return [node for node in able if any_selects(selectors, node.labels)] if selectors else able


def allowed(strategy: Strategy, nodes: Sequence[NodeSnapshot]) -> Sequence[NodeSnapshot]:
    """Those of the feasible nodes that the strategy allows. A soft affinity allows all where its own node is
    not among them, or may be busy."""
    if strategy.kind is not StrategyKind.NODE_AFFINITY or strategy.spills:
        return nodes
    named = [node for node in nodes if node.node_id == strategy.node_id]
    return named or (nodes if strategy.is_soft else [])


def in_turn(
    strategy: Strategy, nodes: Sequence[NodeSnapshot], last_node_id: bytes
) -> Iterator[Sequence[NodeSnapshot]]:
    """All of these, which come in the order of their ids: those first that are looked at first. last_node_id:
    where the last one was found."""
    if len(nodes) <= NODES_LOOKED_AT:
        yield nodes
        return
    place = bisect_right(nodes, last_node_id, key=lambda node: node.node_id)
    yield from windows(nodes, place if strategy.kind is StrategyKind.SPREAD else max(place - 1, 0))


def windows(nodes: Sequence[NodeSnapshot], begin: int) -> Iterator[Sequence[NodeSnapshot]]:
    """All of these from this place on, and around: NODES_LOOKED_AT at a time."""
    num = len(nodes)
    for first in range(begin, begin + num, NODES_LOOKED_AT):
        end = min(first + NODES_LOOKED_AT, begin + num)
        yield [*nodes[first:end], *nodes[max(first - num, 0) : max(end - num, 0)]]


class AbleOf(Protocol):
    """Who could ever hold it, in the order of their ids. spared: only those that are, or only the others."""

    def __call__(self, selector: LabelSelector, spared: bool | None) -> Sequence[NodeSnapshot]: ...


def search(
    required: ResourceSet,
    strategy: Strategy,
    preferred: Sequence[NodeSnapshot],
    named: Sequence[NodeSnapshot],
    able_of: AbleOf,
    free_of: Callable[[Sequence[NodeSnapshot]], list[NodeSnapshot]],
    last_node_id: bytes,
) -> tuple[NodeSnapshot | None, list[NodeSnapshot]]:
    """The node that `choose` takes of the first that are looked at and have it free, those that are spared
    after all others; and where it is free nowhere, all that could ever hold it.

    preferred: the preferred node, which is looked at each time. named: the one of an affinity.
    free_of(nodes): those that have it free. last_node_id: where the last one was found.
    """
    if strategy.kind is StrategyKind.NODE_AFFINITY:
        found = feasible(required, named, strategy.selectors)
        free = free_of(found)
        if free or strategy.only_node_id is not None or (found and not strategy.spills):
            return next(iter(free), None), found
    preferred_node_id = preferred[0].node_id if preferred else None
    found = []
    # Nodes with GPUs are a matter of hybrid alone.
    is_packed = strategy.kind in (StrategyKind.DEFAULT, StrategyKind.NODE_AFFINITY) and not required.get(GPU)
    for selector in strategy.selectors or ((),):
        own = feasible(required, preferred, (selector,) if selector else ())
        for spared in (False, True) if is_packed else (None,):
            mine = own if spared is None else [node for node in own if is_spared(required, node) == spared]
            able = able_of(selector, spared)
            for some in in_turn(strategy, able, last_node_id):
                if free := free_of([*mine, *some]):
                    return choose(required, strategy, free, preferred_node_id, last_node_id), found
            found += mine
            found += able
    return None, found


def why_never_there(required: ResourceSet, strategy: Strategy, node: NodeSnapshot) -> str:
    """Why a node that takes work is none of the feasible ones, although an affinity names it: a clause."""
    which = f"node {node.node_id.hex()}"
    if fits(required, node.total):
        clause = f"has to run on {which} with {told(strategy.selectors)}, and that has other labels"
    else:
        clause = f"needs {required} on {which}, which has {node.total.beside(required)} in all"
    return f"{clause} (node affinity without soft=True)"


def choose(
    required: ResourceSet,
    strategy: Strategy,
    nodes: Sequence[NodeSnapshot],
    preferred_node_id: bytes | None,
    last_in_turn: bytes,
) -> NodeSnapshot:
    """One of these, which are allowed. There has to be one. last_in_turn: the node that the last work with
    SPREAD went to."""
    for selector in strategy.selectors:
        if selected := [node for node in nodes if selects(selector, node.labels)]:
            nodes = selected
            break
    if strategy.kind is StrategyKind.SPREAD:
        return next_in_turn(nodes, last_in_turn)
    if strategy.kind in (StrategyKind.NODE_AFFINITY, StrategyKind.PLACEMENT_GROUP):
        wanted = strategy.node_id or preferred_node_id
        for node in nodes:
            if node.node_id == wanted:
                return node
    return hybrid(required, nodes, preferred_node_id)


def hybrid(
    required: ResourceSet, nodes: Iterable[NodeSnapshot], preferred_node_id: bytes | None = None
) -> NodeSnapshot:
    """Packs, then spreads: the node that is used least, where all that are used less than PACK_BELOW count as
    idle, and the preferred one comes first of equals. Work that needs no GPU leaves nodes with GPUs alone as
    long as others are there (Ray's scheduler_avoid_gpu_nodes). There has to be a node."""

    def score(node: NodeSnapshot) -> tuple[bool, float, bool, bytes]:
        is_other = node.node_id != preferred_node_id
        return is_spared(required, node), packed_use(node), is_other, node.node_id

    return min(nodes, key=score)


def is_spared(required: ResourceSet, node: NodeSnapshot) -> bool:
    """Whether the node is left alone, as long as there are others."""
    return not required.get(GPU) and node.total.get(GPU) > 0


def stays(required: ResourceSet, strategy: Strategy, preferred: NodeSnapshot) -> bool:
    """Whether `choose` takes the preferred node, whatever the others are like. It has the resources free."""
    if strategy.selectors and not selects(strategy.selectors[0], preferred.labels):
        return False
    if strategy.kind is StrategyKind.PLACEMENT_GROUP:
        return True
    if strategy.kind is not StrategyKind.DEFAULT:
        return strategy.kind is StrategyKind.NODE_AFFINITY and strategy.node_id == preferred.node_id
    return not packed_use(preferred) and not is_spared(required, preferred)


def packed_use(node: NodeSnapshot) -> float:
    """The share in use, as the hybrid policy counts it: 0.0 below PACK_BELOW."""
    used = node.used_share
    return used if used >= PACK_BELOW else 0.0


def next_in_turn(nodes: Iterable[NodeSnapshot], last_node_id: bytes) -> NodeSnapshot:
    """Spreads in turn: the node that follows the last one, in the order of their ids. There has to be one."""
    return min(nodes, key=lambda node: (node.node_id <= last_node_id, node.node_id))
