"""What does not give way to groups that wait: bundles of other groups, and actors. Pure.

Tasks give way. Bundles and actors stay as long as those want who made them. But what has come since a group
waits has overtaken it: a stream of such things would do so for ever. So for that group they are expected to
end, where it has no place otherwise.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace
from operator import itemgetter

from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.placement_group.group_state import PlacementGroup

Held = tuple[NodeID, float, ResourceSet]
"""Where, since when, and what."""


class Lasting:
    """At one moment."""

    def __init__(
        self, nodes: Iterable[NodeSnapshot], groups: Iterable[PlacementGroup], held_by_actors: Iterable[Held]
    ) -> None:
        self._nodes = list(nodes)
        # By node: when something was held first, and what was held by then in all.
        self._sums: dict[bytes, tuple[list[float], list[ResourceSet]]] = {}
        for node_id, since_s, held in sorted([*_of_groups(groups), *held_by_actors], key=itemgetter(1)):
            times, sums = self._sums.setdefault(node_id.binary(), ([], [ResourceSet()]))
            times.append(since_s)
            sums.append(sums[-1] + held)

    def could_be_free(self, found_by_s: float = math.inf) -> list[NodeSnapshot]:
        """The nodes as they would be if there were only what lasts, and of that only what was there by
        then."""
        return [replace(node, available=node.total - self._held(node, found_by_s)) for node in self._nodes]

    def _held(self, node: NodeSnapshot, by_s: float) -> ResourceSet:
        times, sums = self._sums.get(node.node_id, ([], [ResourceSet()]))
        return sums[bisect_right(times, by_s)]


def _of_groups(groups: Iterable[PlacementGroup]) -> Iterable[Held]:
    for group in groups:
        bundles = group.registration.bundles
        for node_id, indices in group.by_node().items():
            held = ResourceSet.sum_of(bundles[index].resources for index in indices)
            yield node_id, group.placed_at_s, held
