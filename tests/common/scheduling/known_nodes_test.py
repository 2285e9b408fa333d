"""Which nodes could hold what: remembered, and right whatever changes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ray_mono.common.scheduling.bundle_resources import ANY_BUNDLE, asked_for_in, given_by
from ray_mono.common.scheduling.known_nodes import NEEDS_REMEMBERED_MAX, KnownNodes, Need
from ray_mono.common.scheduling.labels import IN, LabelRequirement
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet

MARS = (LabelRequirement("zone", IN, ("mars",)),)
GROUP = b"g" * 18
NEEDS = [
    Need(ResourceSet.from_units({"CPU": 1})),
    Need(ResourceSet.from_units({"CPU": 1}), MARS),
    Need(ResourceSet.from_units({"CPU": 1}), (), False),
    Need(ResourceSet.from_units({"CPU": 1}), (), True),
    Need(ResourceSet.from_units({"A": 2}), MARS),
    Need(asked_for_in(ResourceSet.from_units({"CPU": 1}), GROUP, 0)),
    Need(asked_for_in(ResourceSet.from_units({"CPU": 1}), GROUP, 1), MARS),
    Need(asked_for_in(ResourceSet.from_units({"CPU": 1}), GROUP, ANY_BUNDLE)),
]


def node(
    name: bytes, zone: str = "", is_alive: bool = True, bundles: Sequence[int] = (), **total: float
) -> NodeSnapshot:
    given = [given_by(ResourceSet.from_units({"CPU": 1}), GROUP, index) for index in bundles]
    amounts = ResourceSet.sum_of([ResourceSet.from_units(total), *given])
    labels = {"zone": zone} if zone else {}
    return NodeSnapshot(name * 28, "host", 1, amounts, amounts, is_alive, labels=labels)


nodes = st.builds(
    node,
    st.sampled_from([b"a", b"b", b"c", b"d"]),
    st.sampled_from(["", "mars"]),
    st.booleans(),
    st.lists(st.sampled_from([0, 1]), unique=True),
    CPU=st.sampled_from([0, 4]),
    GPU=st.sampled_from([0, 1]),
    A=st.sampled_from([0, 2]),
)


@given(st.lists(st.one_of(nodes, st.sampled_from([b"a", b"b", b"c", b"d"]), st.sampled_from(NEEDS))))
def test_what_is_remembered_is_what_a_look_at_all_nodes_says(
    steps: list[NodeSnapshot | bytes | Need],
) -> None:
    known, model = KnownNodes(), dict[bytes, NodeSnapshot]()
    for step in steps:
        if isinstance(step, NodeSnapshot):
            known.put(step)
            model[step.node_id] = step
        elif isinstance(step, bytes):
            known.remove(step * 28)
            model.pop(step * 28, None)
        else:
            assert list(known.in_order().able(*step)) == [
                model[node_id] for node_id in sorted(model) if step.is_met_by(model[node_id])
            ]
    assert list(known) == list(model.values())
    assert list(known.in_order()) == known.in_order()[:] == [model[node_id] for node_id in sorted(model)]


def test_a_node_is_found_by_its_id_and_seen_as_the_one_who_asks_wants_it() -> None:
    known = KnownNodes([node(b"b", CPU=4), node(b"a", CPU=4)])
    nothing_free = known.in_order(lambda node_id: replace(known[node_id], available=ResourceSet()))
    [found] = nothing_free.at(b"b" * 28)
    assert found.node_id == b"b" * 28 and not found.available
    assert nothing_free.at(b"ab" * 14) == nothing_free.at(b"") == []
    assert not any(each.available for each in nothing_free.able(ResourceSet.from_units({"CPU": 1})))


def test_only_the_needs_that_were_asked_for_last_are_remembered() -> None:
    known = KnownNodes([node(b"a", CPU=4)])
    first = known.able_ids(NEEDS[0])
    assert known.able_ids(NEEDS[0]) is first
    for number in range(NEEDS_REMEMBERED_MAX):
        known.able_ids(Need(ResourceSet.from_units({f"B{number}": 1})))
    again = known.able_ids(NEEDS[0])
    assert again is not first and again == [b"a" * 28]
