"""Where a lease should run, as its raylet decides: pure, over the policies of common/scheduling.

- Default (hybrid): here, while this node is used less than half; else the least used node that has it free,
  here before others; else it waits here for the first of them.
- SPREAD: the nodes in turn, among those that have it free.
- Node affinity: that node and no other. A soft one is as the default where the node is dead, is drained, or
  could never hold it; where it spills, also while the node has it not free. A hard one that fails then is
  refused, and one whose node could never hold it, or has other labels.

Of many nodes some are looked at, and this one (policy.search). The first time it begins at this node's own
place, so that not all nodes send to the same ones.

What waits is decided again whenever anything changes. Where no node could ever hold it, the lease waits for
one to join, and its driver is warned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ray_mono.common.scheduling.known_nodes import NodesInOrder
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import available, search
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind


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
    """Hard affinity to a node that is dead or drained (final), or that nobody has heard of (it may be
    joining)."""

    is_gone: bool


@dataclass(frozen=True)
class NotFree:
    """Hard affinity to a node that has it not free now, and that is an error (final)."""


@dataclass(frozen=True)
class NeverThere:
    """Hard affinity to a node that could never hold it, or has other labels (final)."""

    node: NodeSnapshot


Decision = RunHere | SpillTo | Wait | Infeasible | NoSuchNode | NotFree | NeverThere


def decide(
    required: ResourceSet,
    strategy: Strategy,
    here: NodeSnapshot,
    fits_here_now: bool,
    others: NodesInOrder,
    last_node_id: bytes,
) -> Decision:
    """Chooses for one lease.

    required: what must be free. fits_here_now: as the ledger says, which knows more than the snapshot.
    others: every other node known, dead ones included. last_node_id: where the last lease of this strategy
    went.
    """
    named: list[NodeSnapshot] = []
    if strategy.kind is StrategyKind.NODE_AFFINITY:
        named = [here] if strategy.node_id == here.node_id else others.at(strategy.node_id)
        if not strategy.is_soft and not (named and named[0].takes_work):
            return NoSuchNode(is_gone=bool(named))

    def free_of(nodes: Sequence[NodeSnapshot]) -> list[NodeSnapshot]:
        free = [node for node in nodes if fits_here_now and node is here]
        return free + available(required, [node for node in nodes if node is not here])

    able_of = partial(others.able, required)
    chosen, able = search(required, strategy, [here], named, able_of, free_of, last_node_id)
    if chosen is not None:
        return RunHere() if chosen is here else SpillTo(chosen)
    if not able:
        return Infeasible() if strategy.only_node_id is None else NeverThere(named[0])
    return NotFree() if strategy.fails else Wait(tuple(sorted({node.node_id for node in able})))
