"""The shell that finds places for placement groups: all that wait are looked at together, in rounds.

    look ──bundle_placement.place──► PrepareBundles, once per node ──► the rows are stored ──► CommitBundles

A group whose bundles are not all held gives back those that are, and is looked at again. Groups that come
while a round is under way share the next one. A round that takes longer than LOOK_S delays nobody: a node may
not answer.

It is looked when a group is new, and, not more often than every LOOK_S, when nodes have changed or reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ray_mono.common.ids import NodeID, PlacementGroupID
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.lease_client import LeaseClient
from ray_mono.gcs.node_manager import NodeManager
from ray_mono.gcs.placement_group.bundle_client import BundleClient
from ray_mono.gcs.placement_group.bundle_placement import Bundle, drained_for, place
from ray_mono.gcs.placement_group.group_manager import GroupManager
from ray_mono.gcs.placement_group.group_state import PlacementGroup
from ray_mono.gcs.placement_group.group_table import GroupTable
from ray_mono.protobuf import common_pb2

LOOK_S = 0.05
REFUSED_MAX_S = 2.0
"""How long a group that nodes refuse again and again is left alone: their reports say less than they know."""
BUNDLES_TOLD_MAX = 4

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
    ) -> None:
        self._environment = environment
        self._nodes = nodes
        self._leases = leases
        self._bundles = bundles
        self._groups = groups
        self._table = table
        # For which nodes are asked, until it is decided whether they have all that they need.
        self._placing: Round = {}
        # Of those that were refused: when they are looked at again, and how long they waited last.
        self._refused: dict[PlacementGroupID, tuple[float, float]] = {}
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
        """Whether the bundle may be held there for a round."""
        return self._placing.get(group_id, {}).get(index) == node_id

    def forget(self, group_id: PlacementGroupID) -> None:
        """It is removed."""
        self._refused.pop(group_id, None)

    def _look(self) -> None:
        self._will_look = self._looks_after_round = False
        if self._looks_again is not None:
            self._looks_again.cancel()
            self._looks_again = None
        now_s = asyncio.get_running_loop().time()
        waiting = [group for group in self._groups.waiting() if group.group_id not in self._placing]
        later = [self._refused[each.group_id][0] for each in waiting if self._is_refused(each, now_s)]
        waiting = [group for group in waiting if not self._is_refused(group, now_s)]
        if later:
            self.look_again(min(later) - now_s)
        if self._is_paused or not waiting:
            return
        view = {node.node_id: node for node in self._leases.view()}
        chosen: Round = {}
        # What did not fit does not fit for the next that asks for the same.
        reasons: dict[object, tuple[str, bool]] = {}
        for group in waiting:
            registration = group.registration
            bundles = [registration.bundles[index] for index in group.unplaced]
            kept = [node_id.binary() for node_id in group.places if node_id is not None]
            returning = self._bundles.returning_from(group.group_id)
            nodes = [node for node in view.values() if NodeID(node.node_id) not in returning]
            target, label = registration.target_node_id, registration.same_label
            shape = (tuple(bundles), registration.strategy, *kept, label, target, *sorted(returning))
            found = None if shape in reasons else _place(group, bundles, nodes, kept)
            if found is None:
                if shape not in reasons:
                    reasons[shape] = _why_not(group, bundles, nodes, kept)
                self._tried(group, *reasons[shape])
                continue
            for bundle, node_id in zip(bundles, found, strict=True):
                node = view[node_id]
                view[node_id] = replace(node, available=node.available - bundle.resources)
            chosen[group.group_id] = dict(zip(group.unplaced, map(NodeID, found), strict=True))
        if chosen:
            self._num_rounds += 1
            self._placing |= chosen
            self._environment.tasks.spawn(self._play(chosen), "place groups")

    def _changed(self, group: PlacementGroup | None) -> bool:
        if group is not None:
            self._table.changed(group)
        return group is not None

    def _is_refused(self, group: PlacementGroup, now_s: float) -> bool:
        """Not long ago."""
        return self._refused.get(group.group_id, (now_s, 0.0))[0] > now_s

    def _tried(self, group: PlacementGroup, reason: str, is_infeasible: bool) -> None:
        if group.pending_reason != reason:
            self._changed(self._groups.tried(group.group_id, reason, is_infeasible))

    # ---- one round

    async def _play(self, chosen: Round) -> None:
        try:
            prepared = await self._prepare(chosen)
            for group_id in chosen:
                del self._placing[group_id]
            self.look_again()
            if prepared:
                # The next head has to know of bundles before work is in them.
                await self._environment.writes.flushed()
                await self.commit(prepared)
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
        refusals: dict[PlacementGroupID, str] = {}
        for (_, group_ids), told in zip(by_node.items(), answers, strict=True):
            refusals.update((group_id, why) for group_id, why in zip(group_ids, told, strict=True) if why)
        prepared = []
        for group_id, places in chosen.items():
            # A node that has answered may have died while others were waited for.
            dead = [node_id for node_id in places.values() if self._nodes.alive(node_id) is None]
            why = f"node {dead[0].hex()[:8]} died" if dead else refusals.get(group_id)
            if why is None and self._changed(self._groups.prepared(group_id, places)):
                prepared.append(group_id)
                self._refused.pop(group_id, None)
                continue
            for node_id in dict.fromkeys(places.values()):
                indices = _at(places, node_id)
                self._bundles.give_back(node_id, {group_id: indices}, is_removed=False)
            group = self._groups.get(group_id)
            if group is not None and group.is_waiting:
                pause_s = min(2 * self._refused.get(group_id, (0.0, LOOK_S / 2))[1], REFUSED_MAX_S)
                self._refused[group_id] = asyncio.get_running_loop().time() + pause_s, pause_s
                self._tried(group, why or "nodes were asked in vain", False)
        return prepared

    async def _prepare_at(
        self, node_id: NodeID, group_ids: Sequence[PlacementGroupID], chosen: Round
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
        with self._leases.asked(node_id, ResourceSet.sum_of(sizes)):
            refusals = await self._bundles.prepare(node_id, messages)
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


def _at(places: Places, node_id: NodeID) -> list[int]:
    return [index for index, place_of in places.items() if place_of == node_id]


def _place(
    group: PlacementGroup,
    bundles: Sequence[Bundle],
    nodes: Sequence[NodeSnapshot],
    kept: Sequence[bytes],
    ever: bool = False,
) -> list[bytes] | None:
    registration = group.registration
    return place(
        bundles,
        registration.strategy,
        nodes,
        kept,
        registration.target_node_id,
        registration.same_label,
        ever,
    )


def _why_not(
    group: PlacementGroup, bundles: Sequence[Bundle], nodes: Sequence[NodeSnapshot], kept: Sequence[bytes]
) -> tuple[str, bool]:
    """For people; and whether no node could hold it if nothing else ran there."""
    needs = ", ".join(str(bundle.resources) for bundle in bundles[:BUNDLES_TOLD_MAX])
    more = f", and {len(bundles) - BUNDLES_TOLD_MAX} more" if len(bundles) > BUNDLES_TOLD_MAX else ""
    what = f"it needs {needs}{more} by {group.registration.strategy.value}"
    if _place(group, bundles, nodes, kept, ever=True) is None:
        alive = [node for node in nodes if node.takes_work]
        nodes_text = "only node" if len(alive) == 1 else f"{len(alive)} nodes"
        never = f"which the {nodes_text} of the cluster could not hold if nothing else ran there"
        ends = drained_for(bundles, nodes)
        more = f"; node {ends[0].node_id.hex()[:8]} could hold some of it, and is drained" if ends else ""
        return f"{what}, {never}{more}", True
    return f"{what}, which is in use", False
