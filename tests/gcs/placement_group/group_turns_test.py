"""Whose turn it is among groups that wait, and on which nodes: the machine alone."""

from __future__ import annotations

from ray_mono.common.ids import JobID, NodeID, PlacementGroupID
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.placement_group.bundle_placement import Bundle, BundleStrategy
from ray_mono.gcs.placement_group.group_manager import GroupManager
from ray_mono.gcs.placement_group.group_state import GroupRegistration, PlacementGroup
from ray_mono.gcs.placement_group.group_turns import (
    GIVE_WAY_AFTER_S,
    PLAN_AGAIN_S,
    GroupTurns,
    Turn,
    with_what_could_be_free,
)
from ray_mono.gcs.placement_group.wanted_places import WantedPlaces

JOB = JobID.from_int(1)
A, B = (NodeID(name * 28) for name in (b"a", b"b"))
NOTHING = ResourceSet()


def cpus(amount: float) -> ResourceSet:
    return ResourceSet.from_units({"CPU": amount})


class Head:
    """Two nodes with two CPUs each, all in use."""

    def __init__(self) -> None:
        self.turns = GroupTurns()
        self.groups = GroupManager(10)
        self.held_by_actors: dict[NodeID, ResourceSet] = {}
        self.num_views = 0

    def wants(self, number: int, *amounts: float, now_s: float = 0.0) -> PlacementGroup:
        """A new group, that has looked for a place in vain."""
        group_id = PlacementGroupID(number.to_bytes(14, "big") + JOB.binary())
        bundles = tuple(Bundle(cpus(amount)) for amount in amounts)
        group = self.groups.register(GroupRegistration(group_id, JOB, BundleStrategy.PACK, bundles), 0.0)
        assert group is not None
        self.turns.waits(group_id, now_s)
        return group

    def nodes(self) -> list[NodeSnapshot]:
        self.num_views += 1
        nodes = [NodeSnapshot(each.binary(), "host", 1, cpus(2), NOTHING) for each in (A, B)]
        return with_what_could_be_free(nodes, self.groups.living(), self.held_by_actors)

    def give(self, now_s: float) -> Turn | None:
        due = [
            (group, WantedPlaces.of(group, ()))
            for group in self.groups.waiting()
            if (self.turns.due_at_s(group.group_id) or 0.0) <= now_s
        ]
        return self.turns.give(due, self.nodes, now_s)


def test_the_first_that_nodes_could_have_room_for_has_its_turn_and_the_others_are_looked_at_later() -> None:
    head = Head()
    head.held_by_actors = {A: cpus(1)}
    for number in (1, 2, 3):
        head.wants(number, 3)
    fits = head.wants(4, 2, now_s=0.1)
    assert head.give(GIVE_WAY_AFTER_S - 0.01) is None and not head.num_views
    assert head.give(GIVE_WAY_AFTER_S) is None
    now_s = GIVE_WAY_AFTER_S + 0.1
    assert head.give(now_s) == Turn(fits.group_id, {0: B}, 8.0)
    head.held_by_actors = {}
    big = head.wants(5, 1, 2)
    assert head.give(now_s) is not None  # the fourth again: nobody said how its turn went
    head.groups.remove(fits.group_id, "a test", 0.0)
    assert head.give(now_s) == Turn(big.group_id, {0: B, 1: A}, 8.0)
    head.groups.remove(big.group_id, "a test", 0.0)
    head.wants(6, 4)
    num_views = head.num_views
    assert head.give(now_s + PLAN_AGAIN_S) is None and head.num_views == num_views + 1
    assert head.give(now_s + PLAN_AGAIN_S + 0.1) is None and head.num_views == num_views + 1


def test_nodes_that_did_not_give_way_are_avoided_while_there_are_others() -> None:
    head = Head()
    group = head.wants(1, 2)
    now_s, asked = 1.0, []
    for turn_s in (8.0, 32.0, 128.0, 512.0, 512.0):
        turn = head.give(now_s)
        assert turn is not None and turn.lasts_s == turn_s
        asked.append(turn.places[0])
        now_s += turn_s
        head.turns.was_in_vain(group.group_id, [turn.places[0]], now_s)
        assert head.give(now_s + turn_s - 0.1) is None
        now_s += turn_s
    assert asked == [A, B, A, B, A]


def test_where_a_node_refuses_another_one_is_asked_and_the_turn_is_no_longer() -> None:
    head = Head()
    group = head.wants(1, 2)
    head.turns.was_refused(group.group_id, [A])
    assert head.give(1.0) == Turn(group.group_id, {0: B}, 8.0)
    head.turns.was_refused(group.group_id, [B], due_at_s=2.0)
    assert head.turns.late(group.group_id) == {A, B}
    assert head.turns.due_at_s(group.group_id) == 2.0
    assert head.give(2.0) == Turn(group.group_id, {0: A}, 8.0)
    assert head.turns.late(group.group_id) == frozenset()


def test_what_bundles_hold_could_not_be_free() -> None:
    head = Head()
    first = head.wants(1, 2)
    head.groups.prepared(first.group_id, {0: A})
    head.turns.forget(first.group_id)
    assert head.turns.due_at_s(first.group_id) is None
    second = head.wants(2, 2)
    assert head.give(1.0) == Turn(second.group_id, {0: B}, 8.0)
    head.groups.prepared(second.group_id, {0: B})
    head.wants(3, 0.1)
    assert head.give(1.0) is None
