"""What a placement group wants: places for the bundles that have none. Pure.

Groups that want the same are alike: what does not fit for the one does not fit for the next.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.known_nodes import NodesInOrder
from ray_mono.common.scheduling.labels import EXISTS, LabelRequirement, told, told_values
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import NODES_LOOKED_AT, windows
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.placement_group.bundle_placement import Bundle, BundleStrategy, drained_for, place
from ray_mono.gcs.placement_group.group_state import PlacementGroup

BUNDLES_TOLD_MAX = 4
NODES_TOLD_MAX = 4


class WantedPlaces(NamedTuple):
    """A tuple, since one is made for each group that is looked at."""

    bundles: tuple[Bundle, ...]
    strategy: BundleStrategy
    kept: tuple[bytes, ...]
    """The nodes of its other bundles."""
    target_node_id: bytes
    same_label: str
    shunned: frozenset[NodeID]
    """Nodes that may not be asked: what they get would be returned."""

    @classmethod
    def of(cls, group: PlacementGroup, shunned: Iterable[NodeID]) -> WantedPlaces:
        registration = group.registration
        return cls(
            tuple(registration.bundles[index] for index in group.unplaced),
            registration.strategy,
            tuple(node_id.binary() for node_id in group.places if node_id is not None),
            registration.target_node_id,
            registration.same_label,
            frozenset(shunned),
        )

    def place(
        self, nodes: Iterable[NodeSnapshot], late: frozenset[NodeID] = frozenset(), ever: bool = False
    ) -> list[bytes] | None:
        """The node of each bundle; None where there is no room. late: not on these. ever: if nothing else ran
        there."""
        shunned = self.shunned | late
        able = [node for node in nodes if NodeID(node.node_id) not in shunned] if shunned else list(nodes)
        return place(self.bundles, self.strategy, able, self.kept, self.target_node_id, self.same_label, ever)

    def place_in_turn(self, nodes: NodesInOrder, last_node_id: bytes) -> list[bytes] | None:
        """As place. Of many nodes some are looked at, if they can do: of those that could hold a bundle the
        first that come where the last group was placed."""
        names_some = self.kept or self.target_node_id or self.same_label
        if len(nodes) > NODES_LOOKED_AT and not names_some:
            each_able = [nodes.able(each.resources, each.selector) for each in dict.fromkeys(self.bundles)]
            begins = [bisect_left(able, last_node_id, key=lambda node: node.node_id) for able in each_able]
            for parts in zip_longest(*map(windows, each_able, begins), fillvalue=()):
                some = {node.node_id: node for part in parts for node in part}
                found = self.place(some.values())
                if found is not None:
                    return found
        return self.place(nodes)

    def lacking(self, nodes: Sequence[NodeSnapshot], ever: bool) -> ResourceSet:
        """What a node with room for it would help, where there is no place: all bundles, if they have to be
        together, or the first that has none beside those before it. ever: if nothing else ran there."""
        if self.strategy is BundleStrategy.STRICT_PACK:
            return ResourceSet.sum_of(bundle.resources for bundle in self.bundles)
        numbers = range(1, len(self.bundles))
        first = bisect_left(numbers, True, key=lambda num: self._first(num).place(nodes, ever=ever) is None)
        return self.bundles[first].resources

    def _first(self, num: int) -> WantedPlaces:
        return self._replace(bundles=self.bundles[:num])

    def why_not(self, nodes: Iterable[NodeSnapshot]) -> tuple[str, bool]:
        """For people; and whether no node could hold it if nothing else ran there."""
        nodes = [node for node in nodes if NodeID(node.node_id) not in self.shunned]
        needs = ", ".join(
            f"{bundle.resources} on a node with {told((bundle.selector,))}"
            if bundle.selector
            else f"{bundle.resources}"
            for bundle in self.bundles[:BUNDLES_TOLD_MAX]
        )
        num_more = len(self.bundles) - BUNDLES_TOLD_MAX
        more = f", and {num_more} more" if num_more > 0 else ""
        what = f"it needs {needs}{more} by {self.strategy.value}{self._bounds()}"
        if self.place(nodes, ever=True) is None:
            alive = [node for node in nodes if node.takes_work]
            cluster = "only node" if len(alive) == 1 else f"{len(alive)} nodes"
            never = f"which the {cluster} of the cluster could not hold if nothing else ran there"
            ends = drained_for(self.bundles, nodes)
            never += self._told_of(alive)
            more = f"; node {ends[0].node_id.hex()[:8]} could hold some of it, and is drained" if ends else ""
            return f"{what}, {never}{more}", True
        return f"{what}, which is in use", False

    def _bounds(self) -> str:
        """What else a node has to be right for, in words."""
        label = f", all on nodes with one value of {self.same_label}" if self.same_label else ""
        others = "bundle that has its place" if len(self.kept) == 1 else "bundles that have their places"
        return f"{label}, beside its {len(self.kept)} {others}" if self.kept else label

    def _told_of(self, nodes: Sequence[NodeSnapshot]) -> str:
        """What these nodes have in all, and of the labels that bundles ask for."""
        needs = ResourceSet.sum_of(bundle.resources for bundle in self.bundles)
        have = [
            f"node {node.node_id.hex()[:8]} has {node.total.beside(needs)}" for node in nodes[:NODES_TOLD_MAX]
        ]
        selectors = [bundle.selector for bundle in self.bundles if bundle.selector]
        if self.same_label:
            selectors.append((LabelRequirement(self.same_label, EXISTS),))
        if selectors:
            have.append(f"there {told_values(selectors, [node.labels for node in nodes])}")
        more = len(nodes) - NODES_TOLD_MAX
        have += [f"and {more} more nodes"] if more > 0 else []
        return f" ({'; '.join(have)})" if have else ""


def what_helps(group: PlacementGroup, lacking: ResourceSet, nodes: Sequence[NodeSnapshot]) -> str:
    """One that no node could hold, and that lacks this; for people."""
    registration = group.registration
    is_spread = registration.strategy is BundleStrategy.STRICT_SPREAD
    has_labels = any(bundle.selector for bundle in registration.bundles)
    if is_spread and not has_labels and any(lacking.fits_in(node.total) for node in nodes):
        # Each of its bundles would fit: there are too few nodes for all of them.
        packed = WantedPlaces.of(group, ())._replace(strategy=BundleStrategy.PACK)
        other = " or another strategy" if packed.place(nodes, ever=True) is not None else ""
        return f"start more nodes with {lacking}, give it fewer bundles{other}, or remove it"
    return "start nodes that have it, make its bundles smaller, or remove it"
