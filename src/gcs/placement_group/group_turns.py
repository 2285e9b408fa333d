"""Whose turn it is among placement groups that wait though tasks could give way to them, on which nodes, and
for how long. Pure.

A group that has found no place for GIVE_WAY_AFTER_S is due. The oldest that is due, and that nodes could
have room for, has its turn: at these nodes its bundles wait for tasks to give way to them
(raylet/scheduling/bundle_demand.py). There is one turn at a time: so no two groups hold halves and wait for
each other.

    due ──► turn ──all held──► it has its place
     ▲        ├──refused─────► due again soon, elsewhere if that can be
     └─pause──┴──in vain─────► after as long as the turn was; the next turn is TURN_GROWS times as long

A node gives way to a request for more than half of a turn only if the turn is long (fair_share.py): so turns
grow, and tasks of any length up to TURN_MAX_S / 2 end in one of them. Nodes idle for a group in vain half of
the time at most, and other groups have their turns in its pauses.

What does not give way: bundles of groups, and actors. What else holds resources nobody here knows. So nodes
that did not give way in a turn are avoided from then on, until there are no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ray_mono.common.ids import NodeID, PlacementGroupID
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.placement_group.group_state import PlacementGroup
from ray_mono.gcs.placement_group.wanted_places import WantedPlaces

GIVE_WAY_AFTER_S = 0.2
TURN_FIRST_S = 8.0
"""Twice what a raylet needs to have all tasks end that take less than 2 s."""
TURN_GROWS = 4
"""So a turn ends with a time in which the raylet keeps what is free, and which is half of the turn."""
TURN_MAX_S = 512.0
"""Other groups may wait so long for one whose turns are in vain."""
PLAN_AGAIN_S = 1.0
"""A group that nodes could have no room for is due again after that: each time all actors are counted."""


@dataclass(frozen=True)
class Turn:
    group_id: PlacementGroupID
    places: dict[int, NodeID]
    """Of the bundles that have none."""
    lasts_s: float


@dataclass
class _Wait:
    due_at_s: float
    turn_s: float = TURN_FIRST_S
    late: frozenset[NodeID] = frozenset()
    """Nodes that did not give way, or refused."""


class GroupTurns:
    """Of one head."""

    def __init__(self) -> None:
        # Of groups that wait, and that found no place so far.
        self._waits: dict[PlacementGroupID, _Wait] = {}

    def waits(self, group_id: PlacementGroupID, now_s: float) -> None:
        """A place was looked for in vain."""
        self._waits.setdefault(group_id, _Wait(now_s + GIVE_WAY_AFTER_S))

    def forget(self, group_id: PlacementGroupID) -> None:
        """It waits no more."""
        self._waits.pop(group_id, None)

    def due_at_s(self, group_id: PlacementGroupID) -> float | None:
        """None: no place was looked for yet."""
        wait = self._waits.get(group_id)
        return None if wait is None else wait.due_at_s

    def late(self, group_id: PlacementGroupID) -> frozenset[NodeID]:
        wait = self._waits.get(group_id)
        return frozenset() if wait is None else wait.late

    def give(
        self,
        due: Sequence[tuple[PlacementGroup, WantedPlaces]],
        nodes: Callable[[], Sequence[NodeSnapshot]],
        now_s: float,
    ) -> Turn | None:
        """The turn of the first of these that nodes could have room for. nodes(): with what could be free."""
        could_be_free = nodes() if due else ()
        in_vain: set[tuple[WantedPlaces, frozenset[NodeID]]] = set()
        for group, wanted in due:
            wait = self._waits[group.group_id]
            for late in dict.fromkeys((wait.late, frozenset[NodeID]())):
                if (wanted, late) in in_vain:
                    continue
                found = wanted.place(could_be_free, late)
                if found is not None:
                    wait.late = late
                    places = dict(zip(group.unplaced, map(NodeID, found), strict=True))
                    return Turn(group.group_id, places, wait.turn_s)
                in_vain.add((wanted, late))
            wait.due_at_s = now_s + PLAN_AGAIN_S
        return None

    def was_refused(
        self, group_id: PlacementGroupID, node_ids: Iterable[NodeID], due_at_s: float = 0.0
    ) -> None:
        """These nodes refused. due_at_s: not sooner, where it was its turn."""
        wait = self._waits[group_id]
        wait.late |= frozenset(node_ids)
        wait.due_at_s = max(wait.due_at_s, due_at_s)

    def was_in_vain(self, group_id: PlacementGroupID, node_ids: Iterable[NodeID], now_s: float) -> None:
        """Its turn is over, and these nodes have not given way."""
        wait = self._waits[group_id]
        wait.late |= frozenset(node_ids)
        wait.due_at_s = now_s + wait.turn_s
        wait.turn_s = min(TURN_GROWS * wait.turn_s, TURN_MAX_S)


def with_what_could_be_free(
    nodes: Iterable[NodeSnapshot],
    groups: Iterable[PlacementGroup],
    held_by_actors: Mapping[NodeID, ResourceSet],
) -> list[NodeSnapshot]:
    """The nodes as they would be if only these groups' bundles and actors were there."""
    stays = dict(held_by_actors)
    for group in groups:
        bundles = group.registration.bundles
        for node_id, indices in group.by_node().items():
            held = ResourceSet.sum_of(bundles[index].resources for index in indices)
            stays[node_id] = stays.get(node_id, ResourceSet()) + held
    return [
        replace(node, available=node.total - stays.get(NodeID(node.node_id), ResourceSet())) for node in nodes
    ]
