"""What a raylet does with what the GCS says of bundles, over the real machines, and what it tells of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.scheduling.bundle_resources import asked_for_in, given_by
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.bundle_requests import COMES_LATE, BundleRequests
from ray_mono.raylet.lease_answers import LeaseAnswers
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.raylet.scheduling.lease_scene import HERE, Scene, units

G, H = b"g" * 18, b"h" * 18


class Node:
    """Four CPUs."""

    def __init__(self) -> None:
        self.scene = scene = Scene(units(CPU=4))
        clock: Any = SimpleNamespace(time_s=lambda: scene.now_s)
        effects: Any = SimpleNamespace(run=scene.take)
        self.bundles = BundleRequests(HERE, clock, scene.manager, LeaseAnswers(), effects)


def group(*cpus: float, group_id: bytes = G, version: int = 1) -> common_pb2.PlacementGroupInfo:
    return common_pb2.PlacementGroupInfo(
        placement_group_id=group_id,
        version=version,
        bundles=[common_pb2.Bundle(resources=units(CPU=each).to_proto()) for each in cpus],
    )


def bundles_of(info: common_pb2.PlacementGroupInfo, *indices: int) -> common_pb2.GroupBundles:
    return common_pb2.GroupBundles(group=info, indices=indices)


def named(*indices: int, group_id: bytes = G) -> list[common_pb2.BundleIndices]:
    return [common_pb2.BundleIndices(placement_group_id=group_id, indices=indices)]


def test_each_group_is_held_all_or_none_and_the_answers_are_in_order() -> None:
    node = Node()
    refusals = node.bundles.prepare(
        [bundles_of(group(3, 2), 0, 1), bundles_of(group(1, group_id=H), 0)], (1, 1)
    )
    assert refusals == ["it needs {CPU: 5}, node 62626262 has {CPU: 4} free", ""]
    assert node.scene.manager.held_bundles() == {H: [0]}
    assert node.bundles.prepare([bundles_of(group(9, 2), 1)], (1, 1)) == [""]
    assert node.scene.manager.held_bundles() == {G: [1], H: [0]}


def test_bundles_are_committed_all_or_none_and_again() -> None:
    node = Node()
    node.bundles.prepare([bundles_of(group(1, 1), 0)], (1, 1))
    with pytest.raises(RpcError, match="bundle 1 of placement group 6767.* is not held here") as caught:
        node.bundles.commit(named(0, 1), (1, 2))
    assert caught.value.code is StatusCode.NOT_FOUND
    assert node.scene.ledger.total == units(CPU=4)
    for _ in range(2):
        node.bundles.commit(named(0), (1, 3))
    assert node.scene.ledger.total == units(CPU=4) + given_by(units(CPU=1), G, 0)


def test_what_is_held_is_told_with_its_group_as_it_was_told_last() -> None:
    node = Node()
    node.bundles.prepare([bundles_of(group(1, 1), 1), bundles_of(group(1, group_id=H), 0)], (1, 1))
    node.bundles.prepare([bundles_of(group(1, 1, version=2), 0)], (1, 1))
    node.bundles.commit(named(1), (1, 3))
    first, second = node.bundles.told()
    assert (first.group, first.indices) == (group(1, 1, version=2), [0, 1])
    assert (second.group.placement_group_id, second.indices) == (H, [0])
    node.bundles.give_back(named(0, 1), order=(1, 5), is_removed=False)
    node.bundles.give_back(named(0, 1), order=(1, 5), is_removed=False)
    [left] = node.bundles.told()
    assert left.group.placement_group_id == H


def test_what_waits_for_a_group_is_refused_when_it_is_removed_and_only_then() -> None:
    node = Node()
    node.bundles.prepare([bundles_of(group(1), 0)], (1, 1))
    strategy = Strategy(StrategyKind.PLACEMENT_GROUP, group_id=G, bundle_index=1)
    node.scene.ask("f", strategy=strategy, resources=asked_for_in(units(CPU=1), G, 1))
    node.bundles.give_back(named(0), order=(1, 5), is_removed=False)
    assert not node.scene.rejected
    node.bundles.give_back(named(), order=(1, 6), is_removed=True)
    assert list(node.scene.rejected) == ["f"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (bundles_of(group(1, group_id=b"short"), 0), "placement_group_id takes 18 bytes, got b'short'"),
        (bundles_of(group(1, 1), 0, 2), "the group has 2 bundles, and no bundle 2"),
        (bundles_of(group(1, 0), 0, 1), "a bundle needs some resources, and no negative ones, got {}"),
        (
            bundles_of(
                common_pb2.PlacementGroupInfo(
                    placement_group_id=G,
                    bundles=[common_pb2.Bundle(resources=ResourceSet({"CPU": -10_000}).to_proto())],
                ),
                0,
            ),
            "no negative ones, got {CPU: -1}",
        ),
    ],
)
def test_nothing_is_held_where_something_is_wrong(wrong: common_pb2.GroupBundles, told: str) -> None:
    node = Node()
    with pytest.raises(ValueError, match=told.replace("{", r"\{")):
        node.bundles.prepare([bundles_of(group(1, group_id=H), 0), wrong], (1, 1))
    assert node.scene.manager.held_bundles() == {}


def test_who_names_no_group_is_told_so() -> None:
    node = Node()
    for asks in (
        lambda groups: node.bundles.commit(groups, (1, 1)),
        lambda groups: node.bundles.give_back(groups, (1, 1), True),
    ):
        with pytest.raises(ValueError, match="takes 18 bytes"):
            asks(named(0, group_id=b""))


def test_what_a_broken_connection_delivers_late_is_not_carried_out() -> None:
    node = Node()
    wanted = [bundles_of(group(1), 0)]
    node.bundles.give_back(named(0), order=(1, 2), is_removed=False)
    assert node.bundles.prepare(wanted, (1, 1)) == [COMES_LATE]
    assert node.bundles.prepare(wanted, (1, 3)) == [""]
    with pytest.raises(RpcError, match="is not held here"):
        node.bundles.commit(named(0), (1, 1))
    node.bundles.commit(named(0), (1, 4))
    node.bundles.give_back(named(0), order=(1, 2), is_removed=True)
    assert node.scene.manager.held_bundles() == {G: [0]}
    node.bundles.give_back(named(0), order=(1, 5), is_removed=False)
    assert not node.scene.manager.held_bundles()


def test_what_comes_late_for_one_bundle_is_carried_out_though_another_was_asked_for_since() -> None:
    node = Node()
    assert node.bundles.prepare([bundles_of(group(1, 1), 0)], (1, 1)) == [""]
    assert node.bundles.prepare([bundles_of(group(1, 1), 1)], (2, 5)) == [""]
    node.bundles.give_back(named(0), order=(2, 3), is_removed=False)
    assert node.scene.manager.held_bundles() == {G: [1]}


def test_a_head_that_lost_its_store_counts_anew() -> None:
    node = Node()
    node.bundles.registered(b"cluster")
    node.bundles.give_back(named(0), order=(1, 9), is_removed=False)
    node.bundles.registered(b"cluster")
    assert node.bundles.prepare([bundles_of(group(1), 0)], (1, 1)) == [COMES_LATE]
    node.bundles.registered(b"another cluster")
    assert node.bundles.prepare([bundles_of(group(1), 0)], (1, 1)) == [""]
