"""The shell that finds places for placement groups: all that wait are looked at together, in rounds.

    look ──bundle_placement.place──► PrepareBundles, once per node ──► the rows are stored ──► CommitBundles

A group whose bundles are not all held gives back those that are, and is looked at again. Groups that come
while a round is under way share the next one. A round that takes longer than LOOK_S delays nobody: a node may
not answer.

It is looked when a group is new, and, not more often than every LOOK_S, when nodes have changed or reported.

Jobs go in turn: each time one of a job's groups gets a place, another job is looked at.

Beside these rounds groups have their turns (group_turns.py): their bundles wait at nodes until tasks have
given way to them. Meanwhile these groups take part in rounds as the others do, for what is free on other
nodes. Where one gets all of its bundles first it has its place, and what it has elsewhere is given back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf

from ray_mono.common.ids import NodeID, PlacementGroupID
from ray_mono.common.our_bug import known
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.lease_client import LeaseClient
from ray_mono.gcs.node_manager import NodeManager
from ray_mono.gcs.placement_group.bundle_client import BundleClient
from ray_mono.gcs.placement_group.group_manager import GroupManager
from ray_mono.gcs.placement_group.group_state import PlacementGroup
from ray_mono.gcs.placement_group.group_table import GroupTable
from ray_mono.gcs.placement_group.group_turns import GroupTurns, Turn
from ray_mono.gcs.placement_group.group_warnings import GroupWarnings
from ray_mono.gcs.placement_group.lasting import Held, Lasting
from ray_mono.gcs.placement_group.wanted_places import WantedPlaces
from ray_mono.protobuf import common_pb2

LOOK_S = 0.05
REFUSED_MAX_S = 2.0
"""How long a group that nodes refuse again and again is left alone: their reports say less than they know."""
NOT_ALL_HELD = "a node died, or the group lost more bundles, while nodes were asked"

Places = dict[int, NodeID]
Round = dict[PlacementGroupID, Places]


class GroupScheduler:
    """Of one GCS."""

    def __init__(
        self,
        environment: Environment,
        nodes: NodeManager,
        leases: LeaseClient,
        bundles: BundleClient,
        groups: GroupManager,
        table: GroupTable,
        held_by_actors: Callable[[], Iterable[Held]],
        warnings: GroupWarnings,
        warn_driver: Callable[[common_pb2.ErrorInfo], None],
    ) -> None:
        self._environment = environment
        self._nodes = nodes
        self._leases = leases
        self._bundles = bundles
        self._groups = groups
        self._table = table
        self._held_by_actors = held_by_actors
        self._warnings = warnings
        self._warn_driver = warn_driver
        # For which nodes are asked, until it is decided whether they have all that they need.
        self._placing: Round = {}
        # Of those that were refused: when they are looked at again, and how long they waited last.
        self._refused: dict[PlacementGroupID, tuple[float, float]] = {}
        self._turns = GroupTurns()
        # Where the last group was placed.
        self._last_node_id = b""
        # Those that are under way, and what is done when they are to end.
        self._turns_under_way: dict[PlacementGroupID, tuple[Turn, asyncio.Future[None]]] = {}
        self._num_rounds = 0
        self._will_look = self._looks_after_round = self._is_paused = False
        self._looks_again: asyncio.TimerHandle | None = None
        self._looks_at_s = 0.0

    def pause(self) -> None:
        """Nothing is placed until `go_on`: nodes may tell where bundles are."""
        self._is_paused = True

    def go_on(self) -> None:
        self._is_paused = False
        self.look_soon()

    def look_soon(self) -> None:
        """Once for all that happens in this turn, or while a round is under way, if that is a short one."""
        if self._num_rounds:
            self._looks_after_round = True
            self.look_again()
        elif not self._will_look:
            self._will_look = True
            asyncio.get_running_loop().call_soon(self._look)

    def look_again(self, after_s: float = LOOK_S) -> None:
        """More may be free than before."""
        loop = asyncio.get_running_loop()
        at_s = loop.time() + after_s
        if not self._groups.waits or (self._looks_again is not None and self._looks_at_s <= at_s):
            return
        if self._looks_again is not None:
            self._looks_again.cancel()
        self._looks_again, self._looks_at_s = loop.call_at(at_s, self._look), at_s

    def awaits(self, group_id: PlacementGroupID, index: int, node_id: NodeID) -> bool:
        """Whether the bundle may be held there for a round, or a turn."""
        asked = (self._placing.get(group_id, {}), self._places_in_turn(group_id))
        return any(places.get(index) == node_id for places in asked)

    def forget(self, group_id: PlacementGroupID) -> None:
        """It waits no more."""
        self._refused.pop(group_id, None)
        self._turns.forget(group_id)
        self._end_turn(group_id)

    def _look(self) -> None:
        self._will_look = self._looks_after_round = False
        if self._looks_again is not None:
            self._looks_again.cancel()
            self._looks_again = None
        now_s = asyncio.get_running_loop().time()
        unplaced = [group for group in self._groups.waiting() if group.group_id not in self._placing]
        later = [self._refused[each.group_id][0] for each in unplaced if self._is_refused(each, now_s)]
        if later:
            self.look_again(min(later) - now_s)
        if self._is_paused or not unplaced:
            return
        chosen = self._choose(_oldest_of(unplaced, lambda group: not self._is_refused(group, now_s)))
        if chosen:
            self._num_rounds += 1
            self._placing |= chosen
            self._environment.tasks.spawn(self._play(chosen), "place groups")
        self._give_turns(now_s)
        for group_id, (turn, _) in self._turns_under_way.items():
            group = self._groups.get(group_id)
            if group is not None and group.unplaced != list(turn.places):
                self._end_turn(group_id)  # it lost more
        self._warn(now_s)

    def _choose(self, waiting: Iterable[PlacementGroup]) -> Round:
        """Places for those that fit into what is free."""
        chosen: Round = {}
        # Less what is given to them.
        changed: dict[bytes, NodeSnapshot] = {}
        nodes = self._leases.in_order(changed)
        # What did not fit does not fit for the next that asks for the same.
        reasons: dict[WantedPlaces, tuple[str, bool]] = {}
        for group in self._turns.in_turn(waiting):
            wanted = self._wanted(group)
            found = None if wanted in reasons else wanted.place_in_turn(nodes, self._last_node_id)
            if found is None:
                if wanted not in reasons:
                    reasons[wanted] = wanted.why_not(nodes)
                if not self._places_in_turn(group.group_id):
                    self._tried(group, *reasons[wanted])
                continue
            for bundle, node_id in zip(wanted.bundles, found, strict=True):
                node = changed.get(node_id) or self._leases.node(node_id)
                changed[node_id] = replace(node, available=node.available - bundle.resources)
            chosen[group.group_id] = dict(zip(group.unplaced, map(NodeID, found), strict=True))
            self._last_node_id = found[-1]
            self._turns.served(group)
        return chosen

    def _wanted(self, group: PlacementGroup) -> WantedPlaces:
        group_id = group.group_id
        asked = self._places_in_turn(group_id).values()
        return WantedPlaces.of(group, self._bundles.returning_from(group_id).union(asked))

    def _places_in_turn(self, group_id: PlacementGroupID) -> Places:
        """Where its bundles wait, if it has its turn."""
        under_way = self._turns_under_way.get(group_id)
        return {} if under_way is None else under_way[0].places

    def _changed(self, group: PlacementGroup | None) -> bool:
        if group is not None:
            self._table.changed(group)
        return group is not None

    def _is_refused(self, group: PlacementGroup, now_s: float) -> bool:
        """Not long ago."""
        return self._refused.get(group.group_id, (now_s, 0.0))[0] > now_s

    def _tried(self, group: PlacementGroup, reason: str, is_infeasible: bool) -> None:
        self._turns.waits(group.group_id, asyncio.get_running_loop().time())
        if group.pending_reason != reason:
            self._changed(self._groups.tried(group.group_id, reason, is_infeasible))

    def _warn(self, now_s: float) -> None:
        """Drivers whose groups have waited for long."""
        nodes = list(self._nodes.placements)
        due, next_s = self._warnings.sweep(
            self._groups.waiting(), nodes, lambda: self._lasting().could_be_free(), now_s
        )
        for warning in due:
            self._warn_driver(warning)
        if next_s < inf:
            self.look_again(next_s - now_s)

    # ---- one round

    async def _play(self, chosen: Round) -> None:
        try:
            prepared = await self._prepare(chosen)
            for group_id in chosen:
                del self._placing[group_id]
            self.look_again()
            await self._open(prepared)
        finally:
            self._num_rounds -= 1
        if self._looks_after_round:
            self._look()

    async def _prepare(self, chosen: Round) -> list[PlacementGroupID]:
        """Returns the groups that have all of their bundles now."""
        by_node: dict[NodeID, list[PlacementGroupID]] = {}
        for group_id, places in chosen.items():
            for node_id in dict.fromkeys(places.values()):
                by_node.setdefault(node_id, []).append(group_id)
        answers = await asyncio.gather(
            *(self._prepare_at(node_id, group_ids, chosen) for node_id, group_ids in by_node.items())
        )
        refusals: dict[PlacementGroupID, dict[NodeID, str]] = {}
        for (node_id, group_ids), told in zip(by_node.items(), answers, strict=True):
            for group_id, why in zip(group_ids, told, strict=True):
                if why:
                    refusals.setdefault(group_id, {})[node_id] = why
        prepared = []
        for group_id, places in chosen.items():
            refused = refusals.get(group_id, {})
            if self._takes(group_id, places, not refused):
                prepared.append(group_id)
            else:
                self._was_refused(group_id, refused, is_turn=False)
        return prepared

    def _takes(self, group_id: PlacementGroupID, places: Places, is_held: bool) -> bool:
        """The group has all of its bundles, if they are held; else they are given back."""
        # A node that has answered may have died while others were waited for.
        is_held = is_held and all(self._nodes.alive(node_id) is not None for node_id in places.values())
        now_s = asyncio.get_running_loop().time()
        if is_held and self._changed(self._groups.prepared(group_id, places, now_s)):
            self.forget(group_id)
            return True
        for node_id in dict.fromkeys(places.values()):
            self._bundles.give_back(node_id, {group_id: _at(places, node_id)}, is_removed=False)
        return False

    def _was_refused(self, group_id: PlacementGroupID, refusals: Mapping[NodeID, str], is_turn: bool) -> None:
        """By these nodes; none: one died, or what the group wants has changed. It is left alone for a
        while."""
        group = self._groups.get(group_id)
        if group is None or not group.is_waiting:
            return
        pause_s = min(2 * self._refused.get(group_id, (0.0, LOOK_S / 2))[1], REFUSED_MAX_S)
        until_s = asyncio.get_running_loop().time() + pause_s
        self._refused[group_id] = until_s, pause_s
        self._tried(group, next(iter(refusals.values()), NOT_ALL_HELD), False)
        self._turns.was_refused(group_id, refusals, until_s if is_turn else 0.0)

    async def _open(self, prepared: Sequence[PlacementGroupID]) -> None:
        if prepared:
            # The next head has to know of bundles before work is in them.
            await self._environment.writes.flushed()
            await self.commit(prepared)

    async def _prepare_at(
        self,
        node_id: NodeID,
        group_ids: Sequence[PlacementGroupID],
        chosen: Round,
        turn: Turn | None = None,
    ) -> Sequence[str]:
        sizes = []
        messages = []
        for group_id in group_ids:
            group, indices = self._groups.get(group_id), _at(chosen[group_id], node_id)
            bundles = () if group is None else group.registration.bundles
            sizes.append(
                ResourceSet.sum_of(bundles[index].resources for index in indices if index < len(bundles))
            )
            info = self._table.current(group_id)
            messages.append(common_pb2.GroupBundles(group=info, indices=indices))
        # What waits takes nothing from others: the node knows best what they may have.
        asked = ResourceSet() if turn is not None else ResourceSet.sum_of(sizes)
        with self._leases.asked(node_id, asked):
            waited_s = None if turn is None else turn.waited_s
            refusals = await self._bundles.prepare(node_id, messages, waited_s)
        held = [size for size, refusal in zip(sizes, refusals, strict=True) if not refusal]
        self._leases.hold(node_id, ResourceSet.sum_of(held))
        return refusals

    async def commit(self, group_ids: Sequence[PlacementGroupID]) -> None:
        """Opens what is held of these groups and not open yet."""
        by_node: dict[NodeID, dict[PlacementGroupID, list[int]]] = {}
        for group_id in group_ids:
            group = self._groups.get(group_id)
            for node_id, indices in ({} if group is None else group.by_node()).items():
                closed = [index for index in indices if group is not None and not group.is_open[index]]
                if closed:
                    by_node.setdefault(node_id, {})[group_id] = closed
        await asyncio.gather(*(self._commit_at(node_id, groups) for node_id, groups in by_node.items()))

    async def _commit_at(self, node_id: NodeID, groups: Mapping[PlacementGroupID, list[int]]) -> None:
        missing = await self._bundles.commit(node_id, groups)
        now_s = self._environment.clock.wall_s()
        for group_id, indices in groups.items():
            if group_id not in missing:
                self._changed(self._groups.opened(group_id, node_id, indices, now_s))
            elif self._changed(self._groups.lost(group_id, node_id, indices)):
                self.look_again()

    # ---- turns

    def _give_turns(self, now_s: float) -> None:
        """To groups that are due, and that nodes could have room for."""
        waiting = [
            group
            for group in self._groups.waiting()
            if not group.is_infeasible
            and self._turns.due_at_s(group.group_id) is not None
            and group.group_id not in self._placing
            and group.group_id not in self._turns_under_way
        ]

        def is_due(group: PlacementGroup) -> bool:
            return self._due_at_s(group) <= now_s

        # Those that had one in vain pause, each for as long.
        fresh = [group for group in waiting if not self._turns.had_one(group.group_id)]
        oldest = {group.group_id for group in _oldest_of(fresh, is_due)}
        due = [
            group
            for group in waiting
            if group.group_id in oldest or (self._turns.had_one(group.group_id) and is_due(group))
        ]
        in_turn = ((group, self._wanted(group)) for group in self._turns.in_turn(due))
        for turn in self._turns.give(in_turn, self._lasting, now_s):
            over = asyncio.get_running_loop().create_future()
            self._turns_under_way[turn.group_id] = turn, over
            self._environment.tasks.spawn(self._play_turn(turn, over), "turn of a group")
        later = [self._due_at_s(group) for group in waiting if group.group_id not in self._turns_under_way]
        if later:
            # Some may be due, and wait for older ones of their kind.
            self.look_again(max(min(later) - now_s, LOOK_S))

    def _due_at_s(self, group: PlacementGroup) -> float:
        return known(self._turns.due_at_s(group.group_id), "when a group that waits is due")

    def _lasting(self) -> Lasting:
        return Lasting(self._nodes.placements, self._groups.living(), self._held_by_actors())

    def _end_turn(self, group_id: PlacementGroupID) -> None:
        """If it has its turn."""
        under_way = self._turns_under_way.get(group_id)
        if under_way is not None and not under_way[1].done():
            under_way[1].set_result(None)

    async def _play_turn(self, turn: Turn, over: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        group_id, places, ends_at_s = turn.group_id, turn.places, loop.time() + turn.lasts_s
        asks = {
            node_id: self._environment.tasks.spawn(
                self._prepare_at(node_id, [group_id], {group_id: places}, turn),
                f"turn of a group at {node_id.hex()}",
            )
            for node_id in dict.fromkeys(places.values())
        }
        while True:
            told = {node_id: ask.result()[0] for node_id, ask in asks.items() if ask.done()}
            refusals = {node_id: why for node_id, why in told.items() if why}
            left_s = ends_at_s - loop.time()
            if refusals or len(told) == len(asks) or over.done() or left_s <= 0:
                break
            pending = [ask for ask in asks.values() if not ask.done()]
            await asyncio.wait([over, *pending], timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        for ask in asks.values():
            ask.cancel()
        del self._turns_under_way[group_id]
        self._turns.is_over(turn, loop.time())
        self.look_again()
        if self._takes(group_id, places, is_held=len(told) == len(asks) and not refusals):
            await self._open([group_id])
        elif refusals or len(told) == len(asks):
            self._was_refused(group_id, refusals, is_turn=True)
        elif not over.done():
            self._turns.was_in_vain(group_id, [each for each in asks if each not in told], loop.time())


def _oldest_of(
    groups: Sequence[PlacementGroup], is_due: Callable[[PlacementGroup], bool]
) -> list[PlacementGroup]:
    """As many as are due of each kind, but the oldest of it: none comes before one that wants the same."""
    due = [group for group in groups if is_due(group)]
    if not due or len(due) == len(groups):
        return due
    left = Counter(group.kind for group in due)
    found = []
    for group in groups:
        if left[group.kind]:
            left[group.kind] -= 1
            found.append(group)
    return found


def _at(places: Places, node_id: NodeID) -> list[int]:
    return [index for index, place_of in places.items() if place_of == node_id]
