"""Bundles of placement groups in the books of their node: what they take, what they give, when they end, and
which accelerators work in them gets.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mono.common.our_bug import InternalError
from ray_mono.common.scheduling.bundle_resources import ANY_BUNDLE, asked_for_in, given_by
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.scheduling.bundles import Bundle
from ray_mono.raylet.scheduling.ledger import ResourceLedger
from ray_mono.raylet.scheduling.node_bundles import NodeBundles
from tests.raylet.scheduling.lease_scene import HERE, units

G, H = b"g" * 18, b"h" * 18


class Node:
    """Its ledger and its bundles, with the books recounted after each step."""

    def __init__(self, total: ResourceSet) -> None:
        self.own_total = total
        self.ledger = ResourceLedger(total)
        self.bundles = NodeBundles(HERE, self.ledger)

    def prepare(
        self, *bundles: ResourceSet, group: bytes = G, first: int = 0, is_draining: bool = False
    ) -> str:
        refusal = self.bundles.prepare(group, dict(enumerate(bundles, first)), 0.0, is_draining)
        self.check()
        return refusal

    def commit(self, *indices: int, group: bytes = G) -> None:
        self.bundles.commit([(group, index) for index in indices])
        self.check()

    def open(self, *bundles: ResourceSet, group: bytes = G) -> None:
        assert not self.prepare(*bundles, group=group)
        self.commit(*range(len(bundles)), group=group)

    def give_back(self, index: int, *inside: bytes, group: bytes = G) -> None:
        self.bundles.give_back({(group, index): inside})
        self.check()

    def can_run(self, required: ResourceSet, index: int = ANY_BUNDLE, group: bytes = G) -> bool:
        return self.ledger.can_grant(asked_for_in(required, group, index))

    def run(
        self, lease_id: bytes, required: ResourceSet, index: int = ANY_BUNDLE, group: bytes = G
    ) -> dict[str, tuple[int, ...]]:
        indices = self.ledger.allocate(lease_id, asked_for_in(required, group, index))
        assert self.ledger.instances_of(lease_id) == indices
        self.check()
        return indices

    def ends(self, lease_id: bytes) -> None:
        self.ledger.release(lease_id)
        self.bundles.end_left()
        self.check()

    def check(self) -> None:
        self.ledger.check_invariants()
        self.bundles.check_invariants()

    @property
    def is_unused(self) -> bool:
        return self.ledger.total == self.ledger.available == self.own_total and not self.bundles.held()


def test_a_prepared_bundle_holds_its_resources_and_gives_none() -> None:
    node = Node(units(CPU=4))
    assert node.prepare(units(CPU=3)) == ""
    assert node.ledger.available == units(CPU=1) and node.ledger.total == units(CPU=4)
    assert not node.can_run(units(CPU=1)) and node.ledger.holders() == []
    node.give_back(0)
    assert node.is_unused


def test_a_committed_bundle_gives_its_resources_under_the_names_of_its_group() -> None:
    node = Node(units(CPU=4))
    node.open(units(CPU=3))
    assert node.ledger.available == units(CPU=1) + given_by(units(CPU=3), G, 0)
    assert node.ledger.total == units(CPU=4) + given_by(units(CPU=3), G, 0)
    assert node.can_run(units(CPU=3), 0) and node.can_run(units(CPU=3))
    assert not node.can_run(units(CPU=1), 1) and not node.can_run(units(CPU=1), group=H)


def test_bundles_of_one_group_are_held_all_or_none_and_the_refusal_counts() -> None:
    node = Node(units(CPU=4, A=1))
    refusal = node.prepare(units(CPU=2), units(CPU=3))
    assert refusal == "it needs {CPU: 5}, node 62626262 has {A: 1, CPU: 4} free"
    assert node.is_unused
    assert node.prepare(units(CPU=2), units(CPU=2)) == ""
    assert node.bundles.held() == {G: [0, 1]}


def test_who_asks_again_gets_what_is_held_and_only_what_is_missing_is_taken() -> None:
    node = Node(units(CPU=4))
    node.open(units(CPU=2))
    assert node.prepare(units(CPU=2), units(CPU=2)) == ""
    assert node.ledger.available.get("CPU") == 0
    assert node.bundles.is_committed((G, 0)) and not node.bundles.is_committed((G, 1))
    node.commit(0, 0, 1)
    assert all(node.can_run(units(CPU=2), index) for index in (0, 1))


def test_a_node_that_is_drained_holds_nothing_more_and_keeps_what_it_holds() -> None:
    node = Node(units(CPU=4))
    node.prepare(units(CPU=1))
    assert node.prepare(units(CPU=1), is_draining=True) == ""
    assert node.prepare(units(CPU=1), first=1, is_draining=True) == "node 62626262 is drained"
    assert node.bundles.held() == {G: [0]}


def test_what_is_not_held_is_neither_committed_nor_returned() -> None:
    node = Node(units(CPU=1))
    node.commit(0)
    node.give_back(0)
    assert node.is_unused
    node.open(units(CPU=1))
    node.give_back(0)
    node.give_back(0)
    assert node.is_unused


def test_a_bundle_that_is_returned_is_gone_at_once_and_held_until_its_last_lease_has_ended() -> None:
    node = Node(units(CPU=4, A=1))
    node.open(units(CPU=2, A=1))
    node.run(b"1", units(CPU=1, A=1), 0)
    node.run(b"2", units(), 0)
    node.give_back(0, b"1", b"2")
    assert not node.can_run(units()) and node.bundles.held() == {}
    assert node.ledger.total == node.own_total and node.ledger.available.get("CPU") == 20_000
    node.ends(b"1")
    assert node.ledger.available.get("CPU") == 20_000
    node.ends(b"2")
    assert node.is_unused


def test_other_bundles_of_the_group_go_on_while_one_of_them_ends() -> None:
    node = Node(units(CPU=4))
    node.open(units(CPU=2), units(CPU=2))
    node.run(b"in 0", units(CPU=2), 0)
    node.give_back(0, b"in 0")
    assert not node.can_run(units(CPU=1)), "what is left of any bundle is what ends still holds"
    node.ends(b"in 0")
    assert node.ledger.available.get("CPU") == 20_000
    assert node.can_run(units(CPU=2), 1) and node.can_run(units(CPU=2)) and not node.can_run(units(), 0)


def test_a_bundle_comes_back_while_the_one_before_it_ends() -> None:
    node = Node(units(CPU=2))
    node.open(units(CPU=1))
    node.run(b"before", units(CPU=1), 0)
    node.give_back(0, b"before")
    node.open(units(CPU=1))
    assert not node.can_run(units(CPU=1), 0)
    node.ends(b"before")
    assert node.can_run(units(CPU=1), 0)
    node.give_back(0)
    assert node.is_unused


def test_a_blocked_worker_in_a_group_lends_the_cpus_of_its_bundle_and_of_nobody_else() -> None:
    node = Node(units(CPU=3, A=2))
    node.open(units(CPU=1, A=1))
    node.run(b"parent", units(CPU=1, A=1), 0)
    assert node.ledger.block(b"parent")
    assert node.can_run(units(CPU=1), 0) and not node.can_run(units(A=1))
    assert node.ledger.available.get("CPU") == 20_000
    node.run(b"child", units(CPU=1))
    node.ledger.unblock(b"parent")
    node.check()
    assert not node.ledger.is_overdrawn and node.ledger.can_grant(units(CPU=2))
    assert not node.can_run(units(CPU=0.1)) and node.can_run(units())
    node.ends(b"child")
    node.ends(b"parent")
    assert node.can_run(units(CPU=1, A=1), 0)


def test_a_node_in_debt_grants_to_groups_which_have_their_own() -> None:
    node = Node(units(CPU=2, A=1))
    node.open(units(CPU=1))
    node.ledger.allocate(b"parent", units(CPU=1))
    node.ledger.block(b"parent")
    node.ledger.allocate(b"child", units(CPU=1))
    node.ledger.unblock(b"parent")
    assert node.ledger.is_overdrawn
    assert node.can_run(units(CPU=1), 0) and not node.ledger.can_grant(units())
    assert node.prepare(units(A=1), first=1) == "it needs {A: 1}, node 62626262 has {A: 1, CPU: -1} free"


def test_a_blocked_lease_of_a_bundle_that_was_returned_ends_as_any_other() -> None:
    node = Node(units(CPU=1))
    node.open(units(CPU=1))
    node.run(b"1", units(CPU=1), 0)
    node.ledger.block(b"1")
    node.give_back(0, b"1")
    node.ends(b"1")
    assert node.is_unused


# ---- accelerators


def test_two_bundles_share_a_unit_and_work_in_each_gets_it() -> None:
    node = Node(units(GPU=2))
    node.open(units(GPU=0.5), units(GPU=0.5))
    assert node.run(b"1", units(GPU=0.5), 1) == {"GPU": (0,)}
    assert node.run(b"0", units(GPU=0.25), 0) == {"GPU": (0,)}
    assert node.can_run(units(GPU=0.25)) and not node.can_run(units(GPU=0.5))
    assert node.ledger.allocate(b"outside", units(GPU=1)) == {"GPU": (1,)}


def test_halves_in_a_bundle_of_two_fill_one_unit_after_the_other() -> None:
    node = Node(units(GPU=3))
    node.ledger.allocate(b"outside", units(GPU=1))
    node.open(units(GPU=2))
    assert [node.run(bytes([lease]), units(GPU=0.5), 0) for lease in range(4)] == [
        {"GPU": (1,)},
        {"GPU": (1,)},
        {"GPU": (2,)},
        {"GPU": (2,)},
    ]
    node.ends(bytes([1]))
    assert node.run(b"again", units(GPU=0.5)) == {"GPU": (1,)}


def test_work_in_one_bundle_and_in_any_never_get_more_of_a_unit_than_there_is() -> None:
    node = Node(units(GPU=2))
    node.open(units(GPU=1), units(GPU=1))
    assert node.run(b"any", units(GPU=1)) == {"GPU": (0,)}
    assert not node.can_run(units(GPU=1), 0), "its unit is in use by what runs in any bundle"
    assert node.run(b"1", units(GPU=1), 1) == {"GPU": (1,)}
    node.ends(b"any")
    assert node.run(b"0", units(GPU=1), 0) == {"GPU": (0,)}


@pytest.mark.parametrize("num_gpus", [1, 2])
def test_the_halves_of_two_bundles_are_no_whole_unit_be_it_one_or_two(num_gpus: int) -> None:
    node = Node(units(GPU=num_gpus))
    if num_gpus == 2:
        node.ledger.allocate(b"outside", units(GPU=0.5))
    node.open(units(GPU=0.5), units(GPU=0.5))
    assert not node.can_run(units(GPU=1)) and node.can_run(units(GPU=0.5), 0)
    assert node.run(b"half", units(GPU=0.5)) and node.run(b"other half", units(GPU=0.5))
    assert not node.can_run(units(GPU=0.5), 0) and not node.can_run(units(GPU=0.5), 1)


def test_the_units_of_a_bundle_are_others_only_when_its_leases_have_ended() -> None:
    node = Node(units(GPU=2))
    node.open(units(GPU=1), units(GPU=0.5))
    assert node.run(b"1", units(GPU=1), 0) == {"GPU": (0,)}
    node.give_back(0, b"1")
    assert not node.ledger.can_grant(units(GPU=1))
    node.ends(b"1")
    assert node.ledger.allocate(b"outside", units(GPU=1)) == {"GPU": (0,)}
    assert node.run(b"2", units(GPU=0.5), 1) == {"GPU": (1,)}


def test_free_parts_that_are_no_whole_unit_hold_no_bundle_and_the_refusal_says_so() -> None:
    node = Node(units(GPU=2))
    node.ledger.allocate(b"1", units(GPU=0.6))
    node.ledger.allocate(b"2", units(GPU=0.6))
    refusal = node.prepare(units(GPU=0.8))
    assert refusal == "it needs {GPU: 0.8}, node 62626262 has {GPU: 0.8} free, in parts of accelerators"


def test_a_bundle_may_hold_whole_accelerators_and_a_part_of_one() -> None:
    node = Node(units(GPU=3))
    node.open(units(GPU=1.5))
    assert node.run(b"1", units(GPU=1), 0) == {"GPU": (0,)}
    assert node.run(b"2", units(GPU=0.5), 0) == {"GPU": (1,)}
    assert node.ledger.allocate(b"outside", units(GPU=0.5)) == {"GPU": (1,)}
    node.check()


def test_what_asks_for_different_amounts_under_the_two_names_gets_them_and_breaks_nothing() -> None:
    node = Node(units(GPU=2))
    node.open(units(GPU=2))
    odd = ResourceSet({f"GPU_group_0_{G.hex()}": 10_000, f"GPU_group_{G.hex()}": 5_000})
    assert node.ledger.allocate(b"odd", odd) == {"GPU": (0,)}
    node.check()
    node.ends(b"odd")
    node.give_back(0)
    assert node.is_unused


# ---- the table of its life


def test_a_bundle_that_ended_is_told_with_its_story() -> None:
    bundle = Bundle(G, 2, units(CPU=1), 0.0)
    bundle.commit()
    with pytest.raises(
        InternalError, match="bundle 2 .* is committed and cannot be 'committed'; so far: comm"
    ):
        bundle.commit()
    bundle.give_back(frozenset())
    bundle.is_left()
    with pytest.raises(InternalError, match="so far: committed, returned, left by its last lease"):
        bundle.give_back(frozenset())


def test_a_bundle_that_does_not_fit_is_our_bug_and_changes_nothing() -> None:
    ledger = ResourceLedger(units(CPU=1))
    with pytest.raises(InternalError, match="a bundle needs"):
        ledger.hold_bundle(Bundle(G, 0, units(CPU=2), 0.0))
    ledger.check_invariants()


# ---- any sequence of events

BUNDLES = [units(CPU=1), units(CPU=2, A=1), units(GPU=0.5), units(GPU=1), units(CPU=1, GPU=2)]
NEEDS = [units(), units(CPU=1), units(CPU=0.5, A=1), units(GPU=0.5), units(GPU=0.25), units(GPU=1)]
STEPS = ["prepare", "commit", "give back", "run", "run", "run outside", "end", "block", "unblock"]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(STEPS),
            st.sampled_from([G, H]),
            st.integers(-1, 2),
            st.integers(0, 5),
            st.sampled_from(NEEDS),
        ),
        max_size=60,
    )
)
def test_the_books_add_up_whatever_happens(steps: list[tuple[str, bytes, int, int, ResourceSet]]) -> None:
    node = Node(units(CPU=5, GPU=3, A=2))
    leases: dict[bytes, tuple[bytes, int]] = {}
    for step, group, index, number, needs in steps:
        bundle, lease_id = max(index, 0), bytes([number])
        if step == "prepare":
            node.prepare(BUNDLES[number % len(BUNDLES)], group=group, first=bundle)
        elif step == "commit":
            node.commit(bundle, group=group)
        elif step == "give back":
            is_committed = node.bundles.is_committed((group, bundle))
            inside = [
                each for each, where in leases.items() if where in ((group, bundle), (group, ANY_BUNDLE))
            ]
            node.give_back(bundle, *(inside if is_committed else ()), group=group)
        elif step == "run" and lease_id not in leases and node.can_run(needs, index, group):
            got = node.run(lease_id, needs, index, group)
            assert len(got.get("GPU", ())) == bool(needs.get("GPU"))
            leases[lease_id] = group, index
        elif step == "run outside" and lease_id not in leases and node.ledger.can_grant(needs):
            node.ledger.allocate(lease_id, needs)
            leases[lease_id] = b"", 0
        elif step == "end" and lease_id in leases:
            del leases[lease_id]
            node.ends(lease_id)
        elif step == "block":
            node.ledger.block(lease_id)
        elif step == "unblock":
            node.ledger.unblock(lease_id)
        node.check()
        assert set(node.ledger.holders()) == set(leases)
        used = _used_units(node, leases)
        assert all(amount <= 10_000 for amount in used.values()), used
    for group, indices in node.bundles.held().items():
        for index in indices:
            node.give_back(index, *leases, group=group)
    for lease_id in leases:
        node.ends(lease_id)
    assert node.is_unused


def _used_units(node: Node, leases: dict[bytes, tuple[bytes, int]]) -> dict[int, int]:
    """What the leases have of each GPU, in groups or not."""
    used: dict[int, int] = {}
    for lease_id in leases:
        held = node.ledger.held_by([lease_id])
        amounts = {amount for name, amount in held.items() if name.startswith("GPU")}
        for index in node.ledger.instances_of(lease_id).get("GPU", ()):
            used[index] = used.get(index, 0) + max(amounts)
    return used
