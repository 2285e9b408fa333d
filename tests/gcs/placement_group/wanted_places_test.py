"""Where groups go in large clusters: of many nodes some are looked at, and all where these do not do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from ray_mono.common.scheduling.known_nodes import KnownNodes
from ray_mono.common.scheduling.labels import IN, LabelRequirement
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import NODES_LOOKED_AT
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.placement_group.bundle_placement import Bundle, BundleStrategy
from ray_mono.gcs.placement_group.wanted_places import WantedPlaces

LAST = 3 * NODES_LOOKED_AT - 1
A_CPU = Bundle(ResourceSet.from_units({"CPU": 1}))


def node_id(number: int) -> bytes:
    return number.to_bytes(28, "big")


def nodes(free: Mapping[int, float], num_nodes: int = LAST + 1) -> KnownNodes:
    """In the order of their ids, with nothing free but where `free` says it."""
    total = ResourceSet.from_units({"CPU": 4})
    return KnownNodes(
        NodeSnapshot(node_id(each), "host", 1, total, ResourceSet.from_units({"CPU": free.get(each, 0)}))
        for each in range(num_nodes)
    )


def wanted(
    strategy: BundleStrategy, num_bundles: int = 2, bundle: Bundle = A_CPU, kept: tuple[bytes, ...] = ()
) -> WantedPlaces:
    return WantedPlaces((bundle,) * num_bundles, strategy, kept, b"", "", frozenset())


@pytest.mark.parametrize("strategy", BundleStrategy)
@pytest.mark.parametrize("last", [0, 200, LAST])
def test_a_group_finds_the_only_free_nodes_wherever_the_last_one_went(
    strategy: BundleStrategy, last: int
) -> None:
    apart = strategy is not BundleStrategy.STRICT_PACK
    free = {5: 1.0, LAST - 5: 1.0} if apart else {LAST - 5: 2.0}
    found = wanted(strategy).place_in_turn(nodes(free).in_order(), node_id(last))
    assert found is not None and set(found) == set(map(node_id, free))


@pytest.mark.parametrize("strategy", BundleStrategy)
def test_a_place_among_ten_thousand_nodes_is_found_by_a_look_at_no_more_than_among_a_few_hundred(
    strategy: BundleStrategy, looked_at: set[bytes]
) -> None:
    cluster = nodes(dict.fromkeys(range(10_000), 4.0), 10_000).in_order()
    cluster.able(A_CPU.resources)
    looked_at.clear()
    found = wanted(strategy).place_in_turn(cluster, node_id(9_950))
    assert found is not None and len(looked_at) <= NODES_LOOKED_AT
    assert node_id(9_950) in looked_at and node_id(0) in looked_at, "it looks around"


def test_labels_are_looked_for_on_all_nodes_and_only_those_that_have_them_are_looked_at(
    looked_at: set[bytes],
) -> None:
    on_mars = (LabelRequirement("zone", IN, ("mars",)),)
    cluster = nodes(dict.fromkeys(range(LAST + 1), 4.0))
    cluster.put(replace(cluster[node_id(LAST)], labels={"zone": "mars"}))
    group = wanted(BundleStrategy.SPREAD, bundle=replace(A_CPU, selector=on_mars))
    cluster.in_order().able(A_CPU.resources, on_mars)
    looked_at.clear()
    assert group.place_in_turn(cluster.in_order(), b"") == [node_id(LAST)] * 2
    assert looked_at == {node_id(LAST)}


def test_a_group_that_lost_a_bundle_is_looked_at_beside_its_others() -> None:
    cluster = nodes(dict.fromkeys(range(LAST + 1), 4.0))
    group = wanted(BundleStrategy.STRICT_PACK, 1, kept=(node_id(LAST),))
    assert group.place_in_turn(cluster.in_order(), b"") == [node_id(LAST)]
