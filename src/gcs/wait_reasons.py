"""Why an actor does not run, or a placement group is not created: the head's links of the chains that
docs/internals/explain.md tells of. It only looks.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_mono.common.explanation import ADD_A_NODE, WaitCode
from ray_mono.common.ids import ActorID, PlacementGroupID, TaskID
from ray_mono.common.scheduling.labels import needed
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.wait_messages import (
    NODES_ASKED_MAX,
    node_subject,
    reason_of,
    shortages,
    told_to_anybody,
    with_history,
)
from ray_mono.gcs.actor.actor_manager import ActorManager
from ray_mono.gcs.actor.actor_placement import explain
from ray_mono.gcs.actor.actor_rows import demand_of
from ray_mono.gcs.actor.actor_scheduler import ActorScheduler
from ray_mono.gcs.actor.actor_state import Actor, ActorLife
from ray_mono.gcs.actor.actor_table import ActorTable
from ray_mono.gcs.lease_client import LeaseClient
from ray_mono.gcs.node_manager import NodeManager
from ray_mono.gcs.placement_group.bundle_placement import BundleStrategy, drained_for
from ray_mono.gcs.placement_group.group_manager import GroupManager
from ray_mono.gcs.placement_group.group_state import GroupState
from ray_mono.gcs.placement_group.wanted_places import WantedPlaces, what_helps
from ray_mono.protobuf import common_pb2

Subject = common_pb2.WaitSubject


class WaitReasons:
    """Of one GCS."""

    def __init__(
        self,
        actors: ActorManager,
        table: ActorTable,
        scheduler: ActorScheduler,
        groups: GroupManager,
        leases: LeaseClient,
        nodes: NodeManager,
    ) -> None:
        self._actors = actors
        self._table = table
        self._scheduler = scheduler
        self._groups = groups
        self._leases = leases
        self._nodes = nodes

    def of(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        """Raises ValueError for what the head knows nothing of, or an id that is none."""
        if subject.kind == Subject.ACTOR:
            actor_id = ActorID(subject.id)
            return with_history(self._of_actor(actor_id), self._history_of(actor_id))
        if subject.kind == Subject.PLACEMENT_GROUP:
            return self._of_group(PlacementGroupID(subject.id))
        if subject.kind == Subject.HEAD:
            return reason_of(WaitCode.STARTING, "the head answers")
        kind = Subject.Kind.Name(subject.kind)
        raise ValueError(f"the head can tell of ACTOR, PLACEMENT_GROUP and HEAD, and was asked of {kind}")

    def waiting(self) -> common_pb2.WaitingReply:
        """Actors that wait for a place or are constructed, by class and by what they ask for, and placement
        groups that wait."""
        alike: dict[object, list[common_pb2.WaitSubject]] = {}
        for actor in self._actors.all():
            if actor.is_waiting_for_place:
                class_name = actor.registration.class_name
                subject = Subject(kind=Subject.ACTOR, id=actor.actor_id.binary(), name=class_name)
                demand = demand_of(self._table.spec(actor.actor_id))
                has_worker = actor.worker_id is not None
                asks_for = demand.resources, demand.strategy
                alike.setdefault((class_name, actor.state, has_worker, asks_for), []).append(subject)
        for group in self._groups.waiting():
            subject = Subject(kind=Subject.PLACEMENT_GROUP, id=group.group_id.binary())
            wants = group.registration
            alike.setdefault((wants.bundles, wants.strategy, wants.same_label), []).append(subject)
        return common_pb2.WaitingReply(
            alike=[
                common_pb2.WaitingReply.Alike(example=subjects[0], count=len(subjects))
                for subjects in alike.values()
            ]
        )

    # ---- actors

    def _of_actor(self, actor_id: ActorID) -> common_pb2.WaitReason:
        actor = self._actors.get(actor_id)
        if actor is None:
            return reason_of(WaitCode.UNKNOWN, f"actor {actor_id.hex()} is not known to the head")
        name = _named(actor)
        if actor.death is not None:
            return reason_of(WaitCode.ACTOR_DEAD, f"{name} is dead: {told_to_anybody(actor.death.message)}")
        if actor.state is ActorLife.ALIVE:
            at = self._table.address(actor_id)
            calls = Subject(kind=Subject.ACTOR, id=actor_id.binary(), name=name, at=at, runs_there=True)
            return reason_of(WaitCode.READY, f"{name} is alive", [calls])
        if actor.state is ActorLife.DEPENDENCIES_UNREADY:
            creation = Subject(
                kind=Subject.TASK,
                id=TaskID.for_actor_creation(actor_id.binary()).binary(),
                name=f"{actor.registration.class_name}.__init__()",
                at=self._table.spec(actor_id).caller,
            )
            text = f"{name} waits for arguments of its constructor, as its owner knows"
            return reason_of(WaitCode.DEPENDENCIES, text, [creation])
        if actor.worker_id is not None:
            worker = Subject(
                kind=Subject.WORKER,
                id=actor.worker_id.binary(),
                name=actor.registration.class_name,
                at=self._table.grant(actor_id).worker,
            )
            return reason_of(WaitCode.ACTOR, f"{name} is being constructed", [worker])
        return self._of_waiting(actor, name)

    def _history_of(self, actor_id: ActorID) -> str:
        actor = self._actors.get(actor_id)
        if actor is None or not actor.num_restarts:
            return ""
        left = actor.restarts_left
        told = "restarts without end" if left is None else f"restarts left: {left}"
        times = "once" if actor.num_restarts == 1 else f"{actor.num_restarts} times"
        why = told_to_anybody(actor.lost_because) or "nobody knows why"
        return f"{_named(actor)} has restarted {times} ({told}), last since it lost its process: {why}"

    def _of_waiting(self, actor: Actor, name: str) -> common_pb2.WaitReason:
        if pause_s := self._scheduler.pause_left_s(actor.actor_id):
            text = f"{name} starts again after a pause, in {pause_s:.1f} s"
            return reason_of(WaitCode.ACTOR_RESTARTING, text)
        lease_id = self._scheduler.lease_wanted(actor.actor_id)
        node_id = self._leases.asked_at(lease_id)
        node = None if node_id is None else self._nodes.alive(node_id)
        if node is not None:
            at = common_pb2.Address(node_id=node.node_id, host=node.host, port=node.node_manager_port)
            lease = Subject(kind=Subject.LEASE, id=lease_id, name=name, at=at)
            text = f"{name} waits for a worker on node {node.node_id.hex()[:8]}"
            return reason_of(WaitCode.LEASE, text, [lease])
        if actor.lost_on is not None and (left_s := self._scheduler.may_run_s(actor.lost_on)):
            where = f"node {actor.lost_on.hex()[:8]}, where it ran,"
            text = f"{name} restarts: {where} is silent and may run it for up to {left_s:.0f} s more"
            unblock = "wait, or end what is left of that node: then it starts elsewhere"
            return reason_of(WaitCode.ACTOR_RESTARTING, text, unblock=unblock)
        if actor.registration.group_id is not None and self._groups_waits(actor.registration.group_id):
            group = Subject(kind=Subject.PLACEMENT_GROUP, id=actor.registration.group_id.binary())
            return reason_of(WaitCode.PLACEMENT_GROUP, f"{name} waits for its placement group", [group])
        return self._without_lease(actor, name)

    def _without_lease(self, actor: Actor, name: str) -> common_pb2.WaitReason:
        """As the nodes are now. What stands in its row may be older."""
        demand = demand_of(self._table.spec(actor.actor_id))
        nodes = list(self._nodes.placements)
        shortage = explain(actor.registration.class_name, demand, nodes)
        text, missing = shortage.message.rstrip("."), shortages(demand.resources, nodes)
        if shortage.code in (WaitCode.INFEASIBLE, WaitCode.NODE_DRAINED):
            what = "make a placement group with such bundles"
            if not demand.strategy.group_id:
                what = f"start a node with {needed(demand.resources, demand.strategy.selectors)}"
            unblock = f"{what}, or ask for less"
            return reason_of(shortage.code, text, unblock=unblock, shortages=missing)
        if shortage.code is WaitCode.RESOURCES:
            holders, num_others = self._nodes_with(demand.resources, [demand.resources])
            what = needed(demand.resources, demand.strategy.selectors)
            unblock = f"wait for one of its holders to end, end one, or {ADD_A_NODE}{what}"
            if demand.strategy.group_id or demand.strategy.only_node_id is not None:
                # No other node has its bundles, or may have it.
                unblock = "wait for one of its holders to end, or end one"
            return reason_of(shortage.code, text, holders, True, unblock, missing, num_others=num_others)
        return reason_of(WaitCode.STARTING, f"{name} is about to be placed")

    # ---- placement groups

    def _groups_waits(self, group_id: PlacementGroupID) -> bool:
        group = self._groups.get(group_id)
        return group is None or group.state is not GroupState.CREATED

    def _of_group(self, group_id: PlacementGroupID) -> common_pb2.WaitReason:
        group = self._groups.get(group_id)
        name = f"placement group {group_id.hex()[:8]}"
        if group is None:
            return reason_of(WaitCode.UNKNOWN, f"{name} is not known to the head")
        if group.state is GroupState.REMOVED:
            text = f"{name} was removed: {group.removed_because}"
            return reason_of(WaitCode.PLACEMENT_GROUP_REMOVED, text)
        if group.state is GroupState.CREATED:
            return reason_of(WaitCode.READY, f"{name} is created")
        if not group.is_waiting:
            return reason_of(WaitCode.STARTING, f"{name} has its place, and is about to be opened")
        if not group.pending_reason:
            return reason_of(WaitCode.STARTING, f"{name} is about to be placed")
        text, nodes = f"{name} waits: {group.pending_reason}", list(self._nodes.placements)
        lacking = WantedPlaces.of(group, ()).lacking(nodes, ever=group.is_infeasible)
        missing = shortages(lacking, nodes)
        if group.is_infeasible:
            unblock = what_helps(group, lacking, nodes)
            bundles = [group.registration.bundles[index] for index in group.unplaced]
            code = WaitCode.NODE_DRAINED if drained_for(bundles, nodes) else WaitCode.INFEASIBLE
            return reason_of(code, text, unblock=unblock, shortages=missing)
        parts = [group.registration.bundles[index].resources for index in group.unplaced]
        needs = ResourceSet.sum_of(parts)
        is_on_one = group.registration.strategy is BundleStrategy.STRICT_PACK
        holders, num_others = self._nodes_with(needs, [needs] if is_on_one else parts)
        return reason_of(
            WaitCode.RESOURCES,
            text,
            holders,
            is_any=True,
            num_others=num_others,
            unblock=f"wait until {needs} is free as it needs it, end what holds it, or add nodes",
            shortages=missing,
        )

    def _nodes_with(
        self, needs: ResourceSet, parts: Sequence[ResourceSet]
    ) -> tuple[list[common_pb2.WaitSubject], int]:
        """That could hold some of these parts: who has what is needed there? Some of them, and how many more
        there are."""
        able = [part for part in parts if part]
        nodes = [
            node
            for node in self._leases.view()
            if node.takes_work and any(part.fits_in(node.total) for part in able)
        ]
        some = nodes[:NODES_ASKED_MAX]
        return [node_subject(node, needs) for node in some], len(nodes) - len(some)


def _named(actor: Actor) -> str:
    return f"actor {actor.registration.class_name} ({actor.actor_id.hex()[:8]})"
