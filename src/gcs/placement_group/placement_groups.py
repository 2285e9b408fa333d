"""Placement groups, put together: what happens in the cluster comes in here, and what it means for groups is
written, shown, and told to nodes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from ray_mono.common.ids import ActorID, JobID, NodeID, PlacementGroupID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.actor.actor_manager import ActorManager
from ray_mono.gcs.actor.actor_table import ActorTable
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.job_manager import JobManager
from ray_mono.gcs.lease_client import LeaseClient
from ray_mono.gcs.node_manager import NodeManager
from ray_mono.gcs.placement_group.bundle_client import BundleClient
from ray_mono.gcs.placement_group.group_manager import GroupManager
from ray_mono.gcs.placement_group.group_rows import registration_of, row_from_proto
from ray_mono.gcs.placement_group.group_scheduler import GroupScheduler
from ray_mono.gcs.placement_group.group_state import GroupRegistration, GroupState, PlacementGroup
from ray_mono.gcs.placement_group.group_table import GroupTable
from ray_mono.gcs.placement_group.group_warnings import GroupWarnings
from ray_mono.gcs.placement_group.lasting import Held
from ray_mono.protobuf import common_pb2

logger = logging.getLogger(__name__)


class PlacementGroups:
    """Of one GCS."""

    def __init__(
        self,
        environment: Environment,
        nodes: NodeManager,
        jobs: JobManager,
        actors: ActorManager,
        actor_table: ActorTable,
        leases: LeaseClient,
        on_removed: Callable[[PlacementGroupID, str], None],
        warn_driver: Callable[[common_pb2.ErrorInfo], None],
    ) -> None:
        """on_removed(group_id, because) is told of each group that is removed, or used though it is."""
        self._environment = environment
        self._jobs = jobs
        self._actors = actors
        self._actor_table = actor_table
        self._on_removed = on_removed
        self.manager = GroupManager(environment.config.removed_placement_groups_max)
        self.table = GroupTable(environment.writes, lambda: bool(nodes.unregistered()))
        self._nodes = nodes
        self._bundles = BundleClient(environment, nodes, self.nodes_changed)
        # Asked to be removed, and not told of yet.
        self._removed_before: dict[PlacementGroupID, None] = {}
        config = environment.config
        self._warnings = GroupWarnings(config.pending_warning_s, config.group_warning_s)
        self._scheduler = GroupScheduler(
            environment,
            nodes,
            leases,
            self._bundles,
            self.manager,
            self.table,
            self._held_by_actors,
            self._warnings,
            warn_driver,
        )

    # ---- what callers ask for

    def register(self, info: common_pb2.PlacementGroupInfo) -> None:
        """Raises ValueError, GroupNameTaken."""
        registration = registration_of(info)
        group = self.manager.register(registration, self._environment.clock.wall_s())
        if group is None:
            return
        self.table.changed(group)
        # When it is stored: so all that come together share a round.
        self._environment.writes.after_commit(self._scheduler.look_soon)
        if self._has_ended(registration) and not self._nodes.unregistered():
            self.remove(group.group_id, "what made it has ended")
        elif group.group_id in self._removed_before:
            del self._removed_before[group.group_id]
            self.remove(group.group_id, "it was removed before the head was told of it")

    def _has_ended(self, group: GroupRegistration) -> bool:
        """Whether what it ends with has."""
        if group.is_detached:
            return False
        if group.creator_actor_id is not None:
            actor = self._actors.get(group.creator_actor_id)
            return actor is None or actor.death is not None
        if not self._jobs.is_finished(group.job_id):
            return not self._jobs.is_known(group.job_id)
        return not group.outlives_job or self._jobs.is_over(group.job_id)

    def remove(self, group_id: PlacementGroupID, because: str) -> None:
        """With what runs in it. Nothing happens where it is removed; one that is not known is when it is told
        of."""
        if self.manager.get(group_id) is None:
            self._removed_before[group_id] = None
            if len(self._removed_before) > self._environment.config.removed_placement_groups_max:
                del self._removed_before[next(iter(self._removed_before))]
        group = self.manager.remove(group_id, because, self._environment.clock.wall_s())
        if group is None:
            return
        self.table.changed(group)
        self._scheduler.forget(group_id)
        writes = self._environment.writes
        for node_id, indices in group.by_node().items():
            returned = {group_id: indices}
            writes.after_commit(partial(self._bundles.give_back, node_id, returned, is_removed=True))
        writes.after_commit(lambda: self._on_removed(group_id, because))
        self.forget_old()

    def is_removed(self, group_id: PlacementGroupID) -> bool:
        group = self.manager.get(group_id)
        return group is not None and group.state is GroupState.REMOVED

    def is_used(self, group_id: PlacementGroupID) -> None:
        """An actor is made that is to live in it. One that is not known may be told of soon."""
        if self.manager.get(group_id) is None:
            self._environment.tasks.spawn(self._await_group(group_id), f"hear of {group_id.hex()}")
        elif self.is_removed(group_id):
            self._on_removed(group_id, "before the actor was made")

    async def _await_group(self, group_id: PlacementGroupID) -> None:
        if not await self.table.until_known(group_id):
            self._on_removed(group_id, "it is not known, or was removed long ago")

    # ---- what happens in the cluster

    def node_died(self, node_id: NodeID) -> None:
        for group in self.manager.node_died(node_id):
            self.table.changed(group)
        self._scheduler.look_again()

    def nodes_changed(self) -> None:
        """A node joined or reported: more may be free."""
        self._scheduler.look_again()

    def job_ended(self, job_id: JobID, is_over: bool) -> None:
        """is_over: nothing of it lives any more."""
        self._warnings.job_finished(job_id)
        end = "is over" if is_over else "has ended"
        self._remove_all(
            self.manager.ending_with_job(job_id, is_over), f"the job {job_id.hex()} that made it {end}"
        )

    def actors_died(self, actor_ids: Iterable[ActorID]) -> None:
        for actor_id in actor_ids:
            because = f"the detached actor {actor_id.hex()} that made it is dead"
            self._remove_all(self.manager.ending_with_actor(actor_id), because)

    def _remove_all(self, groups: Iterable[PlacementGroup], because: str) -> None:
        for group in groups:
            self.remove(group.group_id, f"{because}, and it was not detached")

    def _held_by_actors(self) -> Iterator[Held]:
        for actor in self._actors.all():
            if actor.node_id is not None:
                resources = ResourceSet.from_proto(self._actor_table.spec(actor.actor_id).resources)
                yield actor.node_id, actor.placed_at_s, resources

    def forget_old(self, ended_before_s: float = 0.0) -> None:
        """Those beyond the limit, and those that were removed before a time."""
        for group_id in self.manager.forget_oldest(ended_before_s):
            self.table.forget(group_id)

    # ---- what nodes hold

    def unwanted(
        self, node_id: NodeID, held: Sequence[common_pb2.GroupBundles]
    ) -> tuple[list[common_pb2.BundleIndices], common_pb2.BundleRequestNumber]:
        """Of all bundles that a node says it holds, and when that was so. What it should hold and does not is
        lost."""
        told: dict[PlacementGroupID, set[int]] = {
            PlacementGroupID(each.group.placement_group_id): set(each.indices) for each in held
        }
        for group in self.manager.living():
            missing = set(group.on_node(node_id)) - told.get(group.group_id, set())
            lost = self.manager.lost(group.group_id, node_id, missing) if missing else None
            if lost is not None:
                logger.warning("node %s has lost bundles of group %s", node_id.hex(), lost.group_id.hex())
                self.table.changed(lost)
                # It may have them, if it made its list before it was asked for them.
                self._bundles.give_back(node_id, {lost.group_id: sorted(missing)}, is_removed=False)
                self._scheduler.look_again()
        unwanted = []
        for group_id, indices in told.items():
            known = self.manager.get(group_id)
            wanted = set() if known is None or self.is_removed(group_id) else set(known.on_node(node_id))
            left = [
                index
                for index in sorted(indices - wanted)
                if not self._scheduler.awaits(group_id, index, node_id)
            ]
            if left:
                unwanted.append(common_pb2.BundleIndices(placement_group_id=group_id.binary(), indices=left))
        return unwanted, self._bundles.next_number()

    # ---- what an earlier GCS knew

    def restore(self, stored: Iterable[bytes], head_number: int) -> None:
        """What was under way goes on. head_number: this head's."""
        self._bundles.begin(head_number)
        rows = [common_pb2.PlacementGroupInfo.FromString(row) for row in stored]
        self.table.restore(rows)
        self.manager.restore([row_from_proto(row) for row in rows])
        self._open_closed()
        self._check_users()
        self._scheduler.look_soon()

    def _open_closed(self) -> None:
        """Bundles that are held, of groups whose work may be in others of theirs."""
        groups = [
            group.group_id
            for group in self.manager.living()
            if group.state is not GroupState.PENDING and group.by_node() and not all(group.is_open)
        ]
        if groups:
            self._environment.tasks.spawn(self._scheduler.commit(groups), "open bundles")

    def _check_users(self) -> None:
        """The head before may have removed a group, and not have told its actors."""
        used = {actor.registration.group_id for actor in self._actors.all() if actor.death is None}
        for group_id in sorted(group_id for group_id in used if group_id is not None):
            self.is_used(group_id)

    def adopt(self, node_id: NodeID, held: Sequence[common_pb2.GroupBundles]) -> None:
        """A node tells what it holds to a head that does not know it. Until `judge` nothing is placed. Raises
        ValueError."""
        self._scheduler.pause()
        for each in held:
            registration = registration_of(each.group)
            group = self.manager.adopt(registration, self._environment.clock.wall_s())
            if group is not None:
                self.table.changed(group)
            group = self.manager.told(registration.group_id, node_id, each.indices)
            if group is not None:
                self.table.changed(group)

    def judge(self) -> None:
        """All have told, but perhaps nodes that have yet to come: who made a group may be there."""
        if not self._nodes.unregistered():
            for group in self.manager.living():
                if self._has_ended(group.registration):
                    self.remove(group.group_id, "what made it ended while there was no head")
        self._open_closed()
        self._check_users()
        self._scheduler.go_on()
