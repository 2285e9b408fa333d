"""The machine of placement groups, one event at a time, with its invariants recounted after each."""

from __future__ import annotations

import itertools
import random

import pytest

from ray_mono.common.ids import ActorID, JobID, NodeID, PlacementGroupID
from ray_mono.common.our_bug import InternalError
from ray_mono.common.scheduling.labels import EXISTS, LabelRequirement
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.placement_group.bundle_placement import Bundle, BundleStrategy
from ray_mono.gcs.placement_group.group_manager import GroupManager, GroupNameTaken
from ray_mono.gcs.placement_group.group_rows import registration_of, row_from_proto, row_to_proto
from ray_mono.gcs.placement_group.group_state import (
    TRANSITIONS,
    GroupEvent,
    GroupRegistration,
    GroupState,
    PlacementGroup,
    next_state,
)

JOB = JobID.from_int(1)
NODES = [NodeID(bytes([number]) * 28) for number in range(3)]
CREATOR = ActorID(b"a" * 16)


def group_id(number: int) -> PlacementGroupID:
    return PlacementGroupID(number.to_bytes(14, "big") + JOB.binary())


def made(number: int = 1, num_bundles: int = 2, **fields: object) -> GroupRegistration:
    selector = (LabelRequirement("zone", EXISTS),)
    bundles = tuple(Bundle(ResourceSet({"CPU": 10_000}), selector) for _ in range(num_bundles))
    return GroupRegistration(group_id(number), JOB, BundleStrategy.SPREAD, bundles, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("state", "event"), list(itertools.product(GroupState, GroupEvent)))
def test_every_pair_of_state_and_event_is_a_transition_or_raises(
    state: GroupState, event: GroupEvent
) -> None:
    group = PlacementGroup(made(), state, version=3, start_time_s=1.0, story=("registered",))
    if (state, event) in TRANSITIONS:
        assert next_state(group, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(InternalError, match=f"{state.name}.*{event.name}.*registered"):
            next_state(group, event)


def test_whatever_happens_in_whatever_order_the_rows_and_their_indices_agree() -> None:
    for seed in range(200):
        rng, manager = random.Random(seed), GroupManager(removed_groups_max=3)
        for step in range(60):
            number = rng.randrange(1, 6)
            known = manager.get(group_id(number))
            match rng.randrange(8):
                case 0:
                    options = rng.choice([{}, {"name": "name"}, {"creator_actor_id": CREATOR}])
                    try:
                        manager.register(made(number, **options), step)
                    except GroupNameTaken:
                        assert manager.named("", "name") is not None
                case 1:
                    manager.tried(group_id(number), f"reason {step}")
                case 2:
                    unplaced = [] if known is None else known.unplaced
                    manager.prepared(group_id(number), {index: rng.choice(NODES) for index in unplaced}, 1.0)
                case 3:
                    manager.opened(group_id(number), rng.choice(NODES), [0, 1], step)
                case 4:
                    manager.lost(group_id(number), rng.choice(NODES), [rng.randrange(2)])
                case 5:
                    manager.node_died(rng.choice(NODES))
                case 6:
                    manager.remove(group_id(number), "it was asked to", step)
                case 7:
                    manager.forget_oldest(0.0)
            manager.check_invariants()
        assert {group.group_id for group in manager.ending_with_actor(CREATOR)} == {
            group.group_id for group in manager.living() if group.registration.creator_actor_id == CREATOR
        }


def test_a_row_is_read_as_it_was_written_and_opens_again_unless_it_was_created() -> None:
    manager = GroupManager(removed_groups_max=3)
    registration = made(
        name="name",
        namespace="space",
        creator_actor_id=CREATOR,
        outlives_job=True,
        target_node_id=NODES[2].binary(),
        same_label="rack",
    )
    manager.register(registration, 1.0)
    manager.prepared(group_id(1), {0: NODES[0], 1: NODES[1]}, 1.0)
    manager.opened(group_id(1), NODES[0], [0], 2.0)
    prepared = row_from_proto(row_to_proto(manager.all()[0]))
    assert prepared.registration == registration == registration_of(row_to_proto(prepared))
    assert prepared.places == (NODES[0], NODES[1]) and prepared.is_open == (False, False)
    manager.opened(group_id(1), NODES[1], [1], 3.0)
    restored = GroupManager(removed_groups_max=3)
    restored.restore([row_from_proto(row_to_proto(group)) for group in manager.all()])
    restored.check_invariants()
    [created] = restored.all()
    assert created.state is GroupState.CREATED and created.is_open == (True, True)
    assert restored.named("space", "name") == created and created.created_time_s == 3.0


def test_the_ones_that_were_removed_first_are_forgotten_first() -> None:
    manager = GroupManager(removed_groups_max=2)
    for number in range(1, 5):
        manager.register(made(number), 0.0)
    for time_s, number in enumerate((3, 1, 4, 2)):
        manager.remove(group_id(number), "it was asked to", time_s)
    assert manager.forget_oldest(0.0) == [group_id(3), group_id(1)]
    assert manager.forget_oldest(3.0) == [group_id(4)]
    manager.check_invariants()


def test_an_adopted_group_is_whole_when_all_of_its_bundles_were_told() -> None:
    manager = GroupManager(removed_groups_max=2)
    manager.register(made(2, name="name"), 0.0)
    adopted = manager.adopt(made(1, name="name"), 1.0)
    assert adopted is not None and adopted.state is GroupState.RESCHEDULING
    assert not adopted.registration.name, "it came too late for its name"
    manager.told(group_id(1), NODES[0], [0])
    manager.told(group_id(1), NODES[1], [0])
    assert manager.all()[1].places == (NODES[0], None)
    whole = manager.told(group_id(1), NODES[1], [1])
    assert whole is not None and whole.state is GroupState.PREPARED and whole.is_open == (False, False)
    manager.check_invariants()
    assert manager.adopt(made(1), 2.0) is None
