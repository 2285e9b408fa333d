"""The machine that keeps placement groups. Pure: events in, changed rows out. Its table is group_state.py's.

Who asks nodes for bundles is group_scheduler.py; it tells here what came of it. Where an event says nothing
new, or comes too late, nothing is returned, and whoever brought it gives back what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ray_mono.common.ids import ActorID, JobID, NodeID, PlacementGroupID
from ray_mono.common.our_bug import InternalError
from ray_mono.gcs.forgetting import oldest
from ray_mono.gcs.placement_group.group_state import (
    GroupEvent,
    GroupRegistration,
    GroupState,
    PlacementGroup,
    next_state,
)

STORY_MAX = 20


class GroupNameTaken(Exception):
    """A living group has the name."""

    def __init__(self, existing: PlacementGroup) -> None:
        registration = existing.registration
        super().__init__(
            f"a placement group named {registration.name!r} exists in namespace {registration.namespace!r}: "
            f"{existing.group_id.hex()}; choose another name, or remove it first"
        )


class GroupManager:
    """All placement groups."""

    def __init__(self, removed_groups_max: int) -> None:
        self._removed_groups_max = removed_groups_max
        # In the order of registration.
        self._groups: dict[PlacementGroupID, PlacementGroup] = {}
        # Invariant: exactly the named groups that are not removed.
        self._by_name: dict[tuple[str, str], PlacementGroupID] = {}
        # Invariant: by detached actor, exactly the groups that end with it and are not removed.
        self._of_actors: dict[ActorID, dict[PlacementGroupID, None]] = {}
        # Invariant: exactly the groups that wait for places, in the order in which they are looked at.
        self._waiting: dict[PlacementGroupID, None] = {}
        # Invariant: exactly the removed ones with the times of their ends, in their order.
        self._removed: dict[PlacementGroupID, float] = {}

    # ---- questions

    def get(self, group_id: PlacementGroupID) -> PlacementGroup | None:
        return self._groups.get(group_id)

    def named(self, namespace: str, name: str) -> PlacementGroup | None:
        group_id = self._by_name.get((namespace, name))
        return None if group_id is None else self._groups[group_id]

    def all(self) -> list[PlacementGroup]:
        return list(self._groups.values())

    def waiting(self) -> list[PlacementGroup]:
        """In their order."""
        return [self._groups[group_id] for group_id in self._waiting]

    @property
    def waits(self) -> bool:
        """Whether any group waits for places."""
        return bool(self._waiting)

    def living(self) -> list[PlacementGroup]:
        return [group for group in self._groups.values() if group.state is not GroupState.REMOVED]

    # ---- events

    def register(self, registration: GroupRegistration, now_s: float) -> PlacementGroup | None:
        """A new group. None where its id is known: its creator missed the answer. Raises GroupNameTaken."""
        if registration.group_id in self._groups:
            return None
        num_bundles = len(registration.bundles)
        group = PlacementGroup(
            registration,
            GroupState.PENDING,
            version=1,
            start_time_s=now_s,
            places=(None,) * num_bundles,
            is_open=(False,) * num_bundles,
            story=("registered",),
        )
        if group.held_name is not None:
            holder = self._by_name.get(group.held_name)
            if holder is not None:
                raise GroupNameTaken(self._groups[holder])
        return self._save(group)

    def tried(
        self, group_id: PlacementGroupID, reason: str, is_infeasible: bool = False
    ) -> PlacementGroup | None:
        """A place was looked for in vain; one sentence says why. is_infeasible: there is none at all."""
        group = self._groups.get(group_id)
        if group is None or not group.is_waiting:
            return None
        num_attempts = group.num_attempts + 1
        group = replace(group, num_attempts=num_attempts, pending_reason=reason, is_infeasible=is_infeasible)
        return self._save(group)

    def prepared(
        self, group_id: PlacementGroupID, places: Mapping[int, NodeID], now_s: float
    ) -> PlacementGroup | None:
        """These bundles, all that were nowhere, are held on these nodes. now_s: by the loop."""
        group = self._groups.get(group_id)
        if group is None or not group.is_waiting or list(places) != group.unplaced:
            return None
        where = tuple(places.get(index, place) for index, place in enumerate(group.places))
        return self._move(
            group,
            GroupEvent.PREPARED,
            places=where,
            placed_at_s=group.placed_at_s or now_s,
            num_attempts=group.num_attempts + 1,
            pending_reason="",
            is_infeasible=False,
        )

    def opened(
        self, group_id: PlacementGroupID, node_id: NodeID, indices: Iterable[int], now_s: float
    ) -> PlacementGroup | None:
        """These bundles are open there."""
        group = self._groups.get(group_id)
        if group is None or group.state is GroupState.REMOVED:
            return None
        there = set(group.on_node(node_id)).intersection(indices)
        is_open = tuple(was or index in there for index, was in enumerate(group.is_open))
        if is_open == group.is_open:
            return None
        if all(is_open) and group.state is GroupState.PREPARED:
            created_s = group.created_time_s or now_s
            return self._move(group, GroupEvent.CREATED, is_open=is_open, created_time_s=created_s)
        return self._save(replace(group, is_open=is_open))

    def lost(
        self, group_id: PlacementGroupID, node_id: NodeID, indices: Iterable[int]
    ) -> PlacementGroup | None:
        """These bundles are not there any more."""
        group = self._groups.get(group_id)
        if group is None or group.state is GroupState.REMOVED:
            return None
        gone = set(group.on_node(node_id)).intersection(indices)
        if not gone:
            return None
        return self._move(
            group,
            GroupEvent.LOST,
            places=tuple(None if index in gone else place for index, place in enumerate(group.places)),
            is_open=tuple(was and index not in gone for index, was in enumerate(group.is_open)),
        )

    def node_died(self, node_id: NodeID) -> list[PlacementGroup]:
        """What was there is lost."""
        changed = [self.lost(group.group_id, node_id, group.on_node(node_id)) for group in self.living()]
        return [group for group in changed if group is not None]

    def remove(self, group_id: PlacementGroupID, because: str, now_s: float) -> PlacementGroup | None:
        """None where it is not known, or removed."""
        group = self._groups.get(group_id)
        if group is None or group.state is GroupState.REMOVED:
            return None
        self._removed[group_id] = now_s
        return self._move(
            group, GroupEvent.REMOVED, end_time_s=now_s, removed_because=because, pending_reason=""
        )

    def ending_with_job(self, job_id: JobID, is_over: bool) -> list[PlacementGroup]:
        """The living groups that end now that their job has finished, or is over."""
        return [
            group
            for group in self.living()
            if group.registration.job_id == job_id
            and not group.registration.is_detached
            and group.registration.creator_actor_id is None
            and (is_over or not group.registration.outlives_job)
        ]

    def ending_with_actor(self, actor_id: ActorID) -> list[PlacementGroup]:
        return [self._groups[group_id] for group_id in self._of_actors.get(actor_id, ())]

    def forget_oldest(self, ended_before_s: float) -> list[PlacementGroupID]:
        """Drops the removed ones beyond the limit, and those that were removed before a time."""
        ids = oldest(self._removed, self._removed_groups_max, lambda time_s: time_s < ended_before_s)
        for group_id in ids:
            del self._removed[group_id], self._groups[group_id]
        return ids

    # ---- what an earlier GCS knew

    def restore(self, groups: Iterable[PlacementGroup]) -> None:
        for group in sorted(groups, key=lambda group: (group.start_time_s, group.group_id)):
            self._save(group)
        removed = [group for group in self._groups.values() if group.state is GroupState.REMOVED]
        self._removed = {
            group.group_id: group.end_time_s for group in sorted(removed, key=lambda group: group.end_time_s)
        }

    def adopt(self, registration: GroupRegistration, now_s: float) -> PlacementGroup | None:
        """A group that lived under an earlier GCS, as a node that holds bundles of it tells. It is
        rescheduled until all of them have been told. None where it is known."""
        if registration.group_id in self._groups:
            return None
        if registration.name and (registration.namespace, registration.name) in self._by_name:
            registration = replace(registration, name="")  # it came too late for its name
        num_bundles = len(registration.bundles)
        return self._save(
            PlacementGroup(
                registration,
                GroupState.RESCHEDULING,
                version=int(now_s * 1e6),
                start_time_s=now_s,
                places=(None,) * num_bundles,
                is_open=(False,) * num_bundles,
                story=("adopted",),
            )
        )

    def told(
        self, group_id: PlacementGroupID, node_id: NodeID, indices: Iterable[int]
    ) -> PlacementGroup | None:
        """An adopted group's bundles are held there, as the node says."""
        group = self._groups.get(group_id)
        if group is None or not group.is_waiting:
            return None
        new = set(indices).intersection(group.unplaced)
        places = tuple(node_id if index in new else place for index, place in enumerate(group.places))
        group = replace(group, places=places)
        if None in places:
            return self._save(group)
        return self._move(group, GroupEvent.PREPARED)

    # ---- steps

    def _move(self, group: PlacementGroup, event: GroupEvent, **changes: object) -> PlacementGroup:
        """The one place where a state changes. Raises InternalError and changes nothing."""
        state = next_state(group, event)
        story = (*group.story, state.name)[-STORY_MAX:]
        moved: PlacementGroup = replace(group, state=state, version=group.version + 1, story=story, **changes)  # type: ignore[arg-type]
        return self._save(moved)

    def _save(self, group: PlacementGroup) -> PlacementGroup:
        """Replaces the row, and keeps the indices with it."""
        group_id, known = group.group_id, self._groups.get(group.group_id)
        if group.held_name is not None:
            self._by_name[group.held_name] = group_id
        elif known is not None and known.held_name is not None:
            del self._by_name[known.held_name]
        if group.is_waiting:
            self._waiting.setdefault(group_id)
        else:
            self._waiting.pop(group_id, None)
        creator = group.registration.creator_actor_id
        if creator is not None:
            of_actor = self._of_actors.setdefault(creator, {})
            if group.state is GroupState.REMOVED:
                of_actor.pop(group_id, None)
            else:
                of_actor[group_id] = None
            if not of_actor:
                del self._of_actors[creator]
        self._groups[group_id] = group
        return group

    def check_invariants(self) -> None:
        """Recounts what is kept twice. Raises InternalError."""
        groups = self._groups.values()
        names = {group.held_name: group.group_id for group in groups if group.held_name is not None}
        waiting = {group.group_id for group in groups if group.is_waiting}
        removed = {group.group_id for group in groups if group.state is GroupState.REMOVED}
        of_actors = {
            (group.registration.creator_actor_id, group.group_id)
            for group in groups
            if group.registration.creator_actor_id is not None and group.state is not GroupState.REMOVED
        }
        kept_of_actors = {(creator, each) for creator, ids in self._of_actors.items() for each in ids}
        indices: tuple[tuple[str, object, object], ...] = (
            ("actors", kept_of_actors, of_actors),
            ("names", self._by_name, names),
            ("those that wait", set(self._waiting), waiting),
            ("the removed", set(self._removed), removed),
        )
        for what, stored, counted in indices:
            if stored != counted:
                raise InternalError(
                    f"the index of {what} of the groups holds {stored}, the rows say {counted}"
                )
        for group in groups:
            has_place = all(place is not None for place in group.places)
            is_whole = group.state in (GroupState.PREPARED, GroupState.CREATED)
            is_placed_open = all(
                place is not None for place, opened in zip(group.places, group.is_open, strict=True) if opened
            )
            if (
                (is_whole and not has_place)
                or (group.state is GroupState.CREATED and not all(group.is_open))
                or not is_placed_open
            ):
                raise InternalError(f"the row of a placement group contradicts itself: {group}")
