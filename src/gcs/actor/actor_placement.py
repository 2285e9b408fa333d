"""Where an actor could go, and what to say when it cannot: pure, over the policies of common/scheduling.

The GCS only chooses the raylet that is asked first. That raylet knows its workers and its queue, may send the
request on, and decides.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ray_mono.common.explanation import WaitCode
from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.bundle_resources import ANY_BUNDLE, is_scattered, plain
from ray_mono.common.scheduling.known_nodes import NodesInOrder
from ray_mono.common.scheduling.labels import any_selects, told, told_values
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import (
    NODES_LOOKED_AT,
    allowed,
    available,
    choose,
    could_give_way,
    drained,
    feasible,
    search,
    stays,
)
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.common.wait_messages import NODES_TOLD_MAX
from ray_mono.protobuf import common_pb2


@dataclass(frozen=True)
class Demand:
    """What an actor wants of its node."""

    resources: ResourceSet
    """Must be free for the actor to be placed."""
    strategy: Strategy = field(default_factory=Strategy)
    preferred_node_id: bytes | None = None
    """Taken when it fits: the owner's."""
    takes_turns: bool = False
    """It holds nothing while it lives, so nobody would see how many are on a node: they go to one after the
    other that has room (Ray draws one by lot). The preferred node is for where none has."""


def moved_to(demand: Demand, node_id: bytes | None) -> Demand:
    """The demand of an actor that had no room for its arguments where it was: they lie on this node (None:
    nowhere else)."""
    if node_id is None or demand.strategy.only_node_id is not None:
        return demand
    strategy = Strategy(
        StrategyKind.NODE_AFFINITY, node_id, is_soft=True, selectors=demand.strategy.selectors
    )
    return replace(demand, strategy=strategy)


@dataclass(frozen=True)
class Shortage:
    """Why there is no place."""

    message: str
    code: WaitCode

    @property
    def is_for_the_driver(self) -> bool:
        """False where it is only a matter of a worker starting."""
        return self.code is not WaitCode.STARTING


def choose_node(demand: Demand, nodes: NodesInOrder, last_node_id: bytes = b"") -> NodeID | None:
    """The node to ask, where the demand fits now or else could ever; None where it could nowhere.

    None of those that are drained is chosen, but the owner's where no other could ever hold it.

    nodes: the living ones, less what is being placed there now. Ties go to the lowest id. last_node_id: where
    the last actor with this strategy went. Of many nodes some are looked at (policy.search), and the
    preferred one.
    """
    required, strategy = demand.resources, demand.strategy
    at_once = _next_with_room(demand, nodes, last_node_id) if demand.takes_turns else None
    own = nodes.at(demand.preferred_node_id or b"")
    able_own = feasible(required, own, strategy.selectors)
    if at_once is None and any(stays(required, strategy, node) for node in available(required, able_own)):
        at_once = own[0].node_id
    if at_once is not None:
        return NodeID(at_once)
    able_of, free_of = partial(nodes.able, required), partial(available, required)
    named = nodes.at(strategy.node_id)
    chosen, able = search(required, strategy, own, named, able_of, free_of, last_node_id)
    if chosen is None and able:
        # There it waits until tasks give way.
        able = could_give_way(required, able) or able
        chosen = choose(required, strategy, able, demand.preferred_node_id, last_node_id)
    if chosen is None:
        # A node that is drained waits for the actor's owner, who may wait for the actor.
        ends = drained(required, own, strategy.selectors)
        chosen = next(iter(allowed(strategy, ends)), None)
    return None if chosen is None else NodeID(chosen.node_id)


def _next_with_room(demand: Demand, nodes: NodesInOrder, last_node_id: bytes) -> bytes | None:
    """The node after the last one that has the demand free, and is not left alone for others; None where
    none of so many as are looked at is such."""
    selector = next(iter(demand.strategy.selectors), ())
    able = nodes.able(demand.resources, selector, False)
    begin = bisect_right(able, last_node_id, key=lambda node: node.node_id)
    for place in range(begin, begin + min(len(able), NODES_LOOKED_AT)):
        node = able[place % len(able)]
        if available(demand.resources, [node]):
            return node.node_id
    return None


def strategy_at(demand: Demand, node_id: NodeID) -> common_pb2.SchedulingStrategy:
    """For the raylet of the chosen node: it takes the actor as long as it has room, and else sends it on to
    where the demand allows."""
    strategy = demand.strategy
    if strategy.kind not in (StrategyKind.NODE_AFFINITY, StrategyKind.PLACEMENT_GROUP):
        strategy = strategy._replace(
            kind=StrategyKind.NODE_AFFINITY, node_id=node_id.binary(), is_soft=True, spills=True
        )
    return strategy.to_proto()


def explain(class_name: str, demand: Demand, nodes: Sequence[NodeSnapshot]) -> Shortage:
    """Why an actor of this class is not placed yet."""
    if demand.strategy.kind is StrategyKind.PLACEMENT_GROUP:
        return _explain_in_group(class_name, demand, nodes)
    needs = f"Actor {class_name} needs {demand.resources}"
    if not nodes:
        return Shortage(f"{needs}, and no node has joined the cluster.", WaitCode.INFEASIBLE)
    able = _able(demand, nodes)
    if not able:
        only = demand.strategy.only_node_id
        if only is not None:
            needs += f" on node {only.hex()}"
        if selectors := demand.strategy.selectors:
            needs += f" on a node with {told(selectors)}"
        ends = drained(demand.resources, nodes, demand.strategy.selectors)
        which = f"which only node {ends[0].node_id.hex()[:8]} has, and that is drained" if ends else ""
        alive = [node for node in nodes if node.takes_work]
        if not ends and not any(any_selects(selectors, node.labels) for node in alive):
            which = f"which no node has (there {told_values(selectors, [node.labels for node in alive])})"
        return Shortage(
            f"{needs}, {which or 'which no node has'}; the cluster has {_told(alive, demand, False)}.",
            WaitCode.NODE_DRAINED if ends else WaitCode.INFEASIBLE,
        )
    if available(demand.resources, able):
        return Shortage(f"{needs}, which is there: a worker is being started for it.", WaitCode.STARTING)
    return Shortage(
        f"{needs}, which is in use; the cluster has {_told(able, demand, True)}.", WaitCode.RESOURCES
    )


def told_held(held: ResourceSet, demand: Demand) -> str:
    """For people, what living actors have, beside what another wants; empty: nothing."""
    if not demand.strategy.group_id:
        return held.beside(demand.resources) if held else ""
    # Only what is of that group, which has it under names of its own.
    there = plain(held.only(*(name for name, _ in demand.resources.items())))
    return f"{there}" if there else ""


def _explain_in_group(class_name: str, demand: Demand, nodes: Sequence[NodeSnapshot]) -> Shortage:
    index, group = demand.strategy.bundle_index, demand.strategy.group_id.hex()
    bundle = "" if index == ANY_BUNDLE else f"bundle {index} of "
    needs = f"Actor {class_name} needs {plain(demand.resources)} in {bundle}placement group {group}"
    able = _able(demand, nodes)
    if not able:
        return Shortage(f"{needs}, which is not placed yet, or has no such bundle.", WaitCode.INFEASIBLE)
    if available(demand.resources, able):
        return Shortage(f"{needs}, which is there: a worker is being started for it.", WaitCode.STARTING)
    if is_scattered(demand.resources, (node.available for node in able)):
        return Shortage(f"{needs}, of which no bundle has so much free.", WaitCode.RESOURCES)
    return Shortage(f"{needs}, which is in use there.", WaitCode.RESOURCES)


def _able(demand: Demand, nodes: Sequence[NodeSnapshot]) -> Sequence[NodeSnapshot]:
    """The nodes that have enough in total and are allowed."""
    return allowed(demand.strategy, feasible(demand.resources, nodes, demand.strategy.selectors))


def _told(nodes: Sequence[NodeSnapshot], demand: Demand, with_free: bool) -> str:
    asked_for = demand.resources
    told = [
        f"node {node.node_id.hex()[:8]} ({node.host}) {node.total.beside(asked_for)}"
        + (f" with {node.available.beside(asked_for)} free" if with_free else "")
        for node in sorted(nodes, key=lambda node: node.node_id)[:NODES_TOLD_MAX]
    ]
    more = len(nodes) - NODES_TOLD_MAX
    return ", ".join(told) + (f", and {more} more nodes" if more > 0 else "")
