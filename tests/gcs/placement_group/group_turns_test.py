"""Whose turn it is among groups that wait, and on which nodes: the machine alone."""

from __future__ import annotations

from collections.abc import Sequence

from ray_mono.common.ids import JobID, NodeID, PlacementGroupID
from ray_mono.common.scheduling.labels import IN, LabelRequirement
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.placement_group.bundle_placement import Bundle, BundleStrategy
from ray_mono.gcs.placement_group.group_manager import GroupManager
from ray_mono.gcs.placement_group.group_state import GroupRegistration, PlacementGroup
from ray_mono.gcs.placement_group.group_turns import (
    GIVE_WAY_AFTER_S,
    PLAN_AGAIN_S,
    TURN_MAX_S,
    GroupTurns,
    Turn,
)
from ray_mono.gcs.placement_group.lasting import Held, Lasting
from ray_mono.gcs.placement_group.wanted_places import WantedPlaces

JOB, OTHER_JOB = JobID.from_int(1), JobID.from_int(2)
A, B, C, D = NODES = [NodeID(name * 28) for name in (b"a", b"b", b"c", b"d")]
SPREAD = BundleStrategy.STRICT_SPREAD
NOTHING = ResourceSet()


def cpus(amount: float) -> ResourceSet:
    return ResourceSet.from_units({"CPU": amount})


class Head:
    """Two nodes with two CPUs each, all in use."""

    def __init__(self, num_nodes: int = 2) -> None:
        self.turns = GroupTurns()
        self.groups = GroupManager(10)
        self.held_by_actors: list[Held] = []
        self.num_views = 0
        self._nodes = NODES[:num_nodes]
        self.under_way: dict[PlacementGroupID, Turn] = {}

    def wants(
        self,
        number: int,
        *amounts: float,
        now_s: float = 0.0,
        strategy: BundleStrategy = BundleStrategy.PACK,
        job: JobID = JOB,
        on: Sequence[NodeID] = (),
    ) -> PlacementGroup:
        """A new group, that has looked for a place in vain. on: the only node of each bundle."""
        group_id = PlacementGroupID(number.to_bytes(14, "big") + job.binary())
        selectors = [(LabelRequirement("node", IN, (each.hex(),)),) for each in on] or [()] * len(amounts)
        bundles = tuple(map(Bundle, map(cpus, amounts), selectors))
        group = self.groups.register(GroupRegistration(group_id, job, strategy, bundles), 0.0)
        assert group is not None
        self.turns.waits(group_id, now_s)
        return group

    def lasting(self) -> Lasting:
        self.num_views += 1
        nodes = [
            NodeSnapshot(each.binary(), "host", 1, cpus(2), NOTHING, labels={"node": each.hex()})
            for each in self._nodes
        ]
        return Lasting(nodes, self.groups.living(), self.held_by_actors)

    def give(self, now_s: float) -> list[Turn]:
        due = [
            group
            for group in self.groups.waiting()
            if (self.turns.due_at_s(group.group_id) or 0.0) <= now_s and group.group_id not in self.under_way
        ]
        order = ((group, WantedPlaces.of(group, ())) for group in self.turns.in_turn(due))
        turns = self.turns.give(order, self.lasting, now_s)
        self.under_way |= {turn.group_id: turn for turn in turns}
        return turns

    def given(self, now_s: float) -> list[int]:
        """The numbers of the groups that get turns."""
        return [int.from_bytes(turn.group_id.binary()[:14], "big") for turn in self.give(now_s)]

    def is_over(self, group: PlacementGroup, now_s: float, node_ids: Sequence[NodeID] | None = None) -> None:
        """Its turn is. node_ids: these have not given way; None: it has its place."""
        turn = self.under_way.pop(group.group_id)
        self.turns.is_over(turn, now_s)
        if node_ids is None:
            assert self.groups.prepared(group.group_id, turn.places, now_s) is not None
            self.turns.forget(group.group_id)
        else:
            self.turns.was_in_vain(group.group_id, node_ids, now_s)


def test_those_that_nodes_could_have_room_for_have_turns_and_the_others_are_looked_at_later() -> None:
    head = Head()
    head.held_by_actors = [(A, 0.0, cpus(1))]
    for number in (1, 2, 3):
        head.wants(number, 3)
    fits = head.wants(4, 2, now_s=0.1)
    assert not head.give(GIVE_WAY_AFTER_S - 0.01) and not head.num_views
    assert not head.give(GIVE_WAY_AFTER_S)
    now_s = GIVE_WAY_AFTER_S + 0.1
    assert head.give(now_s) == [Turn(fits.group_id, {0: B}, 8.0, now_s - 0.1)]
    head.held_by_actors = []
    big = head.wants(5, 1, 2)
    assert head.give(now_s) == [Turn(big.group_id, {0: B, 1: A}, 8.0, now_s)]
    num_views = head.num_views
    head.wants(6, 5)
    assert not head.give(now_s) and head.num_views == num_views + 1
    assert not head.give(now_s + PLAN_AGAIN_S / 2) and head.num_views == num_views + 1


def test_nodes_that_did_not_give_way_are_avoided_while_there_are_others() -> None:
    head = Head()
    group = head.wants(1, 2)
    now_s, asked = 1.0, []
    for turn_s in (8.0, 32.0, 128.0, 512.0, 512.0):
        [turn] = head.give(now_s)
        assert turn.lasts_s == turn_s and turn.waited_s == now_s
        asked.append(turn.places[0])
        now_s += turn_s
        head.is_over(group, now_s, [turn.places[0]])
        assert not head.give(now_s + turn_s - 0.1)
        now_s += turn_s
    assert asked == [A, B, A, B, A]


def test_where_a_node_refuses_another_one_is_asked_and_the_turn_is_no_longer() -> None:
    head = Head()
    group = head.wants(1, 2)
    head.turns.was_refused(group.group_id, [A])
    assert head.give(1.0) == [Turn(group.group_id, {0: B}, 8.0, 1.0)]
    head.turns.is_over(head.under_way.pop(group.group_id), 1.0)
    head.turns.was_refused(group.group_id, [B], due_at_s=2.0)
    assert head.turns.late(group.group_id) == {A, B}
    assert head.turns.due_at_s(group.group_id) == 2.0
    assert head.give(2.0) == [Turn(group.group_id, {0: A}, 8.0, 2.0)]
    assert head.turns.late(group.group_id) == frozenset()


def test_what_bundles_hold_that_were_there_first_could_not_be_free() -> None:
    head = Head()
    first = head.wants(1, 2)
    head.give(1.0)
    head.is_over(first, 1.0)
    assert head.turns.due_at_s(first.group_id) is None
    second = head.wants(2, 2, now_s=1.5)
    assert [turn.places for turn in head.give(2.0)] == [{0: B}]
    head.is_over(second, 2.0)
    head.wants(3, 0.1, now_s=2.5)
    assert not head.give(3.0)


def test_what_came_since_a_group_waits_is_expected_to_end_where_there_is_no_other_way() -> None:
    head = Head()
    head.held_by_actors = [(A, 0.5, cpus(1)), (A, 1.5, cpus(0.5)), (B, 1.5, cpus(0.5))]
    group = head.wants(1, 2, now_s=1.0)
    younger = head.wants(2, 2, now_s=1.5)
    [turn] = head.give(2.0)
    assert turn == Turn(group.group_id, {0: B}, 8.0, 1.0)
    assert (head.turns.due_at_s(younger.group_id) or 0) > 2.0
    head.is_over(group, 2.0, [B])
    # Where only tasks have to end there is nothing to expect.
    head.held_by_actors = [(B, 1.5, cpus(0.5))]
    assert head.give(10.0)[0].places == {0: A}


def test_what_has_stayed_for_longer_than_a_turn_is_not_expected_to_end() -> None:
    head = Head(num_nodes=1)
    head.held_by_actors = [(A, 1.5, cpus(1))]
    group = head.wants(1, 2, now_s=1.0)
    now_s = 2.0
    while turns := head.give(now_s):
        now_s += turns[0].lasts_s
        head.is_over(group, now_s, [A])
        now_s = head.turns.due_at_s(group.group_id) or 0.0
    assert TURN_MAX_S / 2 < now_s < TURN_MAX_S


def test_groups_that_want_different_nodes_have_their_turns_together() -> None:
    head = Head(3)
    long = head.wants(1, 2, 2, strategy=SPREAD, on=(A, B))
    head.wants(2, 2, 2, strategy=SPREAD, on=(A, B))
    head.wants(3, 2, on=(C,))
    assert head.given(1.0) == [1, 3]
    # The first of those whose nodes have others' turns has the next one there.
    head.wants(4, 2, 2, strategy=SPREAD, on=(A, B))
    assert not head.give(2.0)
    head.is_over(long, 3.0, [A])
    assert head.given(3.0) == [2]


def test_a_group_of_several_nodes_is_not_kept_out_by_turns_on_parts_of_them() -> None:
    head = Head(4)
    first = head.wants(1, 1, 1, strategy=SPREAD, on=(A, B))
    for now_s, over_s in ((1.0, 9.0), (17.0, 49.0)):
        assert head.given(now_s) == [1]
        head.is_over(first, over_s, [])
    assert head.given(81.0) == [1]  # until 209 s
    # This one wants B as well, and lays claim to both.
    second = head.wants(2, 1, 1, strategy=SPREAD, on=(B, C), now_s=100.0)
    assert head.given(101.0) == []
    # On C nothing begins that lasts beyond 209 s. What is over by then may begin.
    third = head.wants(3, 1, 1, strategy=SPREAD, on=(C, D), now_s=101.1)
    assert head.given(101.5) == [3]
    head.is_over(third, 201.4)
    assert head.given(201.4) == []
    head.wants(4, 1, 1, strategy=SPREAD, on=(C, D), now_s=201.1)
    assert head.given(201.8) == []
    head.is_over(first, 205.0)
    assert head.given(205.0) == [2]
    head.is_over(second, 205.0)
    assert head.given(205.0) == [4]


def test_groups_of_one_node_have_their_turns_there_as_far_as_they_fit() -> None:
    head = Head(num_nodes=1)
    first = head.wants(1, 1)
    head.wants(2, 1, now_s=0.1)
    third = head.wants(3, 1, now_s=0.2)
    assert head.given(1.0) == [1, 2]
    # One whose turn was in vain, and who has a longer one, keeps no other out.
    head.is_over(first, 9.0, [A])
    assert head.given(9.0) == [3]
    assert head.given(17.0) == [1]
    head.is_over(third, 17.0)
    head.wants(4, 1, now_s=17.0)
    assert not head.give(17.5)


def test_jobs_go_in_turn_and_the_groups_of_each_in_their_order() -> None:
    head = Head()
    groups = [head.wants(number, 2) for number in (1, 2, 3)]
    groups += [head.wants(number, 2, job=OTHER_JOB) for number in (4, 5)]
    order = []
    for group in head.turns.in_turn(groups):
        order.append(groups.index(group) + 1)
        if group is not groups[1]:  # that one finds no place
            head.turns.served(group)
    assert order == [1, 4, 2, 3, 5]
    assert [groups.index(group) + 1 for group in head.turns.in_turn(groups)][0] == 1
