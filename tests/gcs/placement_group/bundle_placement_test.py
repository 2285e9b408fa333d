"""Which nodes the bundles of a group go to, by its strategy."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mono.common.scheduling.labels import IN, LabelRequirement
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.placement_group.bundle_placement import Bundle, BundleStrategy, place

PACK, SPREAD = BundleStrategy.PACK, BundleStrategy.SPREAD
STRICT_PACK, STRICT_SPREAD = BundleStrategy.STRICT_PACK, BundleStrategy.STRICT_SPREAD


def node(name: str, free: float, total: float = 8, /, **labels: str) -> NodeSnapshot:
    cpus = ResourceSet.from_units
    return NodeSnapshot(name.encode(), name, 1, cpus({"CPU": total}), cpus({"CPU": free}), labels=labels)


def cpus(*amounts: float) -> list[Bundle]:
    return [Bundle(ResourceSet.from_units({"CPU": amount})) for amount in amounts]


def zone(name: str, amount: float = 1) -> Bundle:
    return Bundle(ResourceSet.from_units({"CPU": amount}), (LabelRequirement("zone", IN, (name,)),))


def names(found: list[bytes] | None) -> str | None:
    return None if found is None else b"".join(found).decode()


def test_pack_puts_all_on_one_node_where_it_can_and_on_few_where_not() -> None:
    assert names(place(cpus(1, 1, 1), PACK, [node("a", 2), node("b", 3), node("c", 2)])) == "bbb"
    assert names(place(cpus(1, 1, 1), PACK, [node("a", 1), node("b", 2), node("c", 1)])) == "bba"
    assert names(place(cpus(1, 3, 2), PACK, [node("a", 3), node("b", 3)])) == "bab"
    assert place(cpus(1, 1, 1), PACK, [node("a", 1), node("b", 1)]) is None


def test_spread_takes_another_node_each_time_as_long_as_there_is_one() -> None:
    assert names(place(cpus(1, 1), SPREAD, [node("a", 8), node("b", 4)])) == "ab"
    assert names(place(cpus(1, 1, 1), SPREAD, [node("a", 8), node("b", 4)])) == "aba"
    assert names(place(cpus(1, 1, 1), SPREAD, [node("a", 8), node("b", 0)])) == "aaa"
    assert place(cpus(5, 5), SPREAD, [node("a", 8), node("b", 4)]) is None


def test_strict_pack_takes_one_node_or_none_and_the_target_if_it_can() -> None:
    nodes = [node("a", 4), node("b", 8)]
    assert names(place(cpus(2, 2), STRICT_PACK, nodes)) == "bb"
    assert names(place(cpus(2, 2), STRICT_PACK, nodes, target_node_id=b"a")) == "aa"
    assert names(place(cpus(3, 3), STRICT_PACK, nodes, target_node_id=b"a")) == "bb"
    assert place(cpus(3, 6), STRICT_PACK, nodes) is None


def test_strict_spread_takes_as_many_nodes_as_bundles_or_none() -> None:
    assert names(place(cpus(1, 1), STRICT_SPREAD, [node("a", 8), node("b", 4), node("c", 2)])) == "ab"
    assert place(cpus(1, 1, 1), STRICT_SPREAD, [node("a", 8), node("b", 8)]) is None


def test_strict_spread_moves_a_bundle_that_fits_elsewhere_too() -> None:
    nodes = [node("a", 8, zone="x"), node("b", 4)]
    assert names(place([*cpus(2), zone("x")], STRICT_SPREAD, nodes)) == "ba"


def test_bundles_go_where_their_labels_say() -> None:
    nodes = [node("a", 8, zone="x"), node("b", 8, zone="y")]
    assert names(place([zone("y"), zone("x"), zone("y")], PACK, nodes)) == "bab"
    assert place([zone("y"), zone("x")], STRICT_PACK, nodes) is None
    assert names(place([zone("y"), zone("y")], SPREAD, nodes)) == "bb"
    assert place([zone("z")], PACK, nodes) is None


def test_lost_bundles_are_placed_with_regard_to_the_others() -> None:
    nodes = [node("a", 8), node("b", 4), node("c", 2)]
    assert names(place(cpus(1), PACK, nodes, kept=[b"c"])) == "c"
    assert names(place(cpus(1, 1), SPREAD, nodes, kept=[b"a"])) == "bc"
    assert names(place(cpus(1), STRICT_SPREAD, nodes, kept=[b"a"])) == "b"
    assert place(cpus(1), STRICT_SPREAD, nodes[:1], kept=[b"a"]) is None


def test_all_nodes_of_a_topology_have_the_same_label() -> None:
    nodes = [node("a", 2, rack="1"), node("b", 1, rack="2"), node("c", 1, rack="2"), node("d", 8)]
    assert names(place(cpus(1, 1), SPREAD, nodes, same_label="rack")) == "aa"
    assert names(place(cpus(1, 1), STRICT_SPREAD, nodes, same_label="rack")) == "bc"
    assert place(cpus(1, 1, 1), PACK, nodes, same_label="rack") is None
    assert names(place(cpus(1), PACK, nodes, kept=[b"c"], same_label="rack")) == "c"


def test_what_has_no_room_now_may_have_it_once_others_end() -> None:
    nodes = [node("a", 0, 4), node("b", 1, 2)]
    assert place(cpus(3), PACK, nodes) is None
    assert names(place(cpus(3), PACK, nodes, ever=True)) == "a"
    assert place(cpus(5), PACK, nodes, ever=True) is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.sampled_from(list(BundleStrategy)),
)
def test_what_is_placed_fits_and_strict_groups_are_placed_wherever_that_can_be(
    sizes: list[int], free: list[int], strategy: BundleStrategy
) -> None:
    nodes = [node("abcd"[place], amount) for place, amount in enumerate(free)]
    found = place(cpus(*sizes), strategy, nodes)

    def fits(assigned: tuple[int, ...]) -> bool:
        return all(
            sum(size for size, where in zip(sizes, assigned, strict=True) if where == place) <= amount
            for place, amount in enumerate(free)
        )

    if found is not None:
        assigned = tuple("abcd".index(name.decode()) for name in found)
        assert fits(assigned)
        if strategy is STRICT_PACK:
            assert len(set(assigned)) == 1
        if strategy is STRICT_SPREAD:
            assert len(set(assigned)) == len(sizes)
    if strategy in (STRICT_PACK, STRICT_SPREAD):
        wanted = 1 if strategy is STRICT_PACK else len(sizes)
        can = any(
            len(set(assigned)) == wanted and fits(assigned)
            for assigned in itertools.product(range(len(free)), repeat=len(sizes))
        )
        assert (found is not None) == can


@pytest.mark.parametrize("strategy", list(BundleStrategy))
def test_the_choice_does_not_depend_on_the_order_of_the_nodes(strategy: BundleStrategy) -> None:
    nodes = [node("a", 4), node("b", 4), node("c", 4), node("d", 2)]
    found = {names(place(cpus(1, 2, 1), strategy, order)) for order in itertools.permutations(nodes)}
    assert len(found) == 1
