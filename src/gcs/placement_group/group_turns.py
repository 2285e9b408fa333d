"""Whose turn it is among placement groups that wait though nodes could have room for them, on which nodes,
and for how long. Pure.

A group that has found no place for GIVE_WAY_AFTER_S is due. The first that is due, and that nodes could have
room for, has its turn: at these nodes its bundles wait for tasks to give way to them
(raylet/scheduling/bundle_demand.py). Jobs go in turn, and of each job the oldest.

    due ──► turn ──all held──► it has its place
     ▲        ├──refused─────► due again soon, elsewhere if that can be
     └─pause──┴──in vain─────► after as long as the turn was; the next turn is TURN_GROWS times as long

Turns of several groups go on at a time. Those of groups that need several nodes each are on different nodes:
so no two groups hold halves and wait for each other. A group whose nodes have others' turns lays claim to
them. As long as it does, no such turn begins there that lasts beyond the end of those: so it is not kept out
for ever by turns on either half of its nodes. Groups that need one node hold no halves. One of them has its
turn on a node if it fits there beside what the first turns of older groups wait for. So there are no more
turns than have a use, and the raylet decides, as it does about leases.

A node gives way to a request for more than half of a turn only if the turn is long (fair_share.py): so turns
grow, and tasks of any length up to TURN_MAX_S / 2 end in one of them. Nodes idle for a group in vain half of
the time at most, and other groups have their turns in its pauses.

What does not give way: bundles of groups, and actors; but where a group has no place otherwise, those that
came since it waits are expected to end (lasting.py). What else holds resources nobody here knows. So nodes
that did not give way in a turn are avoided from then on, until there are no others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ray_mono.common.ids import NodeID, PlacementGroupID
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.turns import Turns
from ray_mono.gcs.placement_group.group_state import PlacementGroup
from ray_mono.gcs.placement_group.lasting import Lasting
from ray_mono.gcs.placement_group.wanted_places import WantedPlaces

GIVE_WAY_AFTER_S = 0.2
TURN_FIRST_S = 8.0
"""Twice what a raylet needs to have all tasks end that take less than 2 s."""
TURN_GROWS = 4
"""So a turn ends with a time in which the raylet keeps what is free, and which is half of the turn."""
TURN_MAX_S = 512.0
"""Other groups may wait so long for one whose turns are in vain, where they want the same nodes."""
PLAN_AGAIN_S = 1.0
"""A group that has no turn is due again after that: each time all actors are counted."""
PLANNED_MAX = 50
"""For so many groups that want different things turns are looked for at a time."""
PLAN_REST_S = 0.05
"""The others are due again after that."""


@dataclass(frozen=True)
class Turn:
    group_id: PlacementGroupID
    places: dict[int, NodeID]
    """Of the bundles that have none."""
    lasts_s: float
    waited_s: float
    """How long the group has, so far."""


class _Nodes(NamedTuple):
    """Nodes that are taken by a turn, or claimed for one."""

    node_ids: frozenset[NodeID]
    time_s: float
    """When the turn ends at the latest; or when it may begin."""


@dataclass
class _Wait:
    since_s: float
    due_at_s: float
    turn_s: float = TURN_FIRST_S
    late: frozenset[NodeID] = frozenset()
    """Nodes that did not give way, or refused."""
    kept_out_of: frozenset[NodeID] = frozenset()
    """Where it would have its turn, were it not for others'."""

    @property
    def had_one(self) -> bool:
        """A turn, in vain."""
        return self.turn_s > TURN_FIRST_S


class GroupTurns:
    """Of one head."""

    def __init__(self) -> None:
        # Of groups that wait, and that found no place so far.
        self._waits: dict[PlacementGroupID, _Wait] = {}
        # Turns of groups that need several nodes. No node is in two.
        self._on_several: dict[PlacementGroupID, _Nodes] = {}
        # What groups lay claim to that need several nodes, and that others' turns keep out.
        self._claims: dict[PlacementGroupID, _Nodes] = {}
        # What turns wait for that are the first of their groups, by node; and since when these groups wait.
        self._first_turns: dict[bytes, dict[PlacementGroupID, tuple[float, ResourceSet]]] = {}
        self._jobs = Turns()

    def waits(self, group_id: PlacementGroupID, now_s: float) -> None:
        """A place was looked for in vain."""
        self._waits.setdefault(group_id, _Wait(now_s, now_s + GIVE_WAY_AFTER_S))

    def forget(self, group_id: PlacementGroupID) -> None:
        """It waits no more."""
        self._waits.pop(group_id, None)
        self._claims.pop(group_id, None)

    def due_at_s(self, group_id: PlacementGroupID) -> float | None:
        """None: no place was looked for yet."""
        wait = self._waits.get(group_id)
        return None if wait is None else wait.due_at_s

    def had_one(self, group_id: PlacementGroupID) -> bool:
        """Whether it has had a turn in vain."""
        return group_id in self._waits and self._waits[group_id].had_one

    def late(self, group_id: PlacementGroupID) -> frozenset[NodeID]:
        wait = self._waits.get(group_id)
        return frozenset() if wait is None else wait.late

    def in_turn(self, groups: Iterable[PlacementGroup]) -> Iterator[PlacementGroup]:
        """Jobs in turn, those of each in their order: a job goes on until one of its groups was served."""
        lines: dict[bytes, deque[PlacementGroup]] = {}
        for group in groups:
            lines.setdefault(group.registration.job_id.binary(), deque()).append(group)
        jobs = deque(sorted(lines, key=self._jobs.rank))
        while jobs:
            job_id, rank = jobs[0], self._jobs.rank(jobs[0])
            yield lines[job_id].popleft()
            if not lines[job_id]:
                jobs.popleft()
            elif self._jobs.rank(job_id) != rank:
                jobs.rotate(-1)

    def served(self, group: PlacementGroup) -> None:
        """It has a place, or a turn: now it is for other jobs."""
        self._jobs.served(group.registration.job_id.binary())

    def give(
        self,
        due: Iterable[tuple[PlacementGroup, WantedPlaces]],
        lasting: Callable[[], Lasting],
        now_s: float,
    ) -> list[Turn]:
        """Turns for those of these that nodes could have room for; they are under way from now on. due: the
        first comes first."""
        could_be_free = None
        in_vain: dict[tuple[WantedPlaces, frozenset[NodeID], float], _Wait] = {}
        turns = []
        for group, wanted in due:
            wait = self._waits[group.group_id]
            self._claims.pop(group.group_id, None)
            key = wanted, wait.late, wait.turn_s
            alike = in_vain.get(key)
            if alike is not None and alike.since_s <= wait.since_s:
                wait.due_at_s = now_s + PLAN_AGAIN_S
                continue
            if len(in_vain) >= PLANNED_MAX:
                wait.due_at_s = now_s + PLAN_REST_S
                continue
            wait.kept_out_of = frozenset()
            if could_be_free is None:
                could_be_free = lasting().could_be_free
            # Those that came since it waits, where there is no other way.
            for found_by_s in (math.inf, max(wait.since_s, now_s - TURN_MAX_S / 2)):
                found = self._places_for(group.group_id, wanted, could_be_free(found_by_s), now_s)
                if found is not None:
                    turns.append(self._begin(group, wanted, found, now_s))
                    break
            else:
                in_vain[key], wait.due_at_s = wait, now_s + PLAN_AGAIN_S
        return turns

    def _places_for(
        self, group_id: PlacementGroupID, wanted: WantedPlaces, nodes: Sequence[NodeSnapshot], now_s: float
    ) -> list[bytes] | None:
        """Where it may have its turn now. Where it may not yet it lays claim."""
        wait = self._waits[group_id]
        beside_others = [self._beside_first_turns(node, wait.since_s) for node in nodes]
        taken = self._taken(wait, now_s)
        for late in dict.fromkeys((wait.late, frozenset[NodeID]())):
            found = wanted.place(beside_others, late)
            if found is None or len(set(found)) > 1:
                found = wanted.place(nodes, late | taken.keys())
                found = found if found is not None and len(set(found)) > 1 else None
            if found is not None:
                wait.late = late
                return found
        later = None if wait.kept_out_of else wanted.place(nodes)
        if later is not None:
            wait.kept_out_of = node_ids = frozenset(map(NodeID, later))
            if len(node_ids) > 1:
                begins_s = max(taken.get(node_id, now_s) for node_id in node_ids)
                self._claims[group_id] = _Nodes(node_ids, begins_s)
        return None

    def _beside_first_turns(self, node: NodeSnapshot, since_s: float) -> NodeSnapshot:
        """Those of groups that have waited for longer."""
        first_turns = self._first_turns.get(node.node_id)
        if first_turns is None:
            return node
        wanted = ResourceSet.sum_of(amount for since, amount in first_turns.values() if since <= since_s)
        return replace(node, available=node.available - wanted)

    def _taken(self, wait: _Wait, now_s: float) -> dict[NodeID, float]:
        """Nodes where it may have no turn beside other nodes now, and when it may: others have theirs, or
        have waited for longer for these nodes, and it would last too long."""
        ends_at_s = now_s + wait.turn_s
        taken: dict[NodeID, float] = {}
        claims = [
            claim
            for group_id, claim in self._claims.items()
            if claim.time_s < ends_at_s and self._waits[group_id].since_s <= wait.since_s
        ]
        for node_ids, time_s in [*self._on_several.values(), *claims]:
            for node_id in node_ids:
                taken[node_id] = max(time_s, taken.get(node_id, now_s))
        return taken

    def _begin(self, group: PlacementGroup, wanted: WantedPlaces, found: list[bytes], now_s: float) -> Turn:
        wait, node_ids = self._waits[group.group_id], frozenset(map(NodeID, found))
        if len(node_ids) > 1:
            self._on_several[group.group_id] = _Nodes(node_ids, now_s + wait.turn_s)
        if not wait.had_one:
            amounts: dict[bytes, ResourceSet] = {}
            for bundle, node_id in zip(wanted.bundles, found, strict=True):
                amounts[node_id] = amounts.get(node_id, ResourceSet()) + bundle.resources
            for node_id, amount in amounts.items():
                self._first_turns.setdefault(node_id, {})[group.group_id] = wait.since_s, amount
        self.served(group)
        places = dict(zip(group.unplaced, map(NodeID, found), strict=True))
        return Turn(group.group_id, places, wait.turn_s, now_s - wait.since_s)

    def is_over(self, turn: Turn, now_s: float) -> None:
        """Those that were kept out of its nodes are due."""
        self._on_several.pop(turn.group_id, None)
        node_ids = frozenset(turn.places.values())
        for node_id in map(NodeID.binary, node_ids):
            first_turns = self._first_turns.get(node_id, {})
            if first_turns.pop(turn.group_id, None) is not None and not first_turns:
                del self._first_turns[node_id]
        for wait in self._waits.values():
            if not wait.kept_out_of.isdisjoint(node_ids):
                wait.due_at_s = now_s

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
