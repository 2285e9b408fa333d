"""What a message says about where its task wants to run."""

from __future__ import annotations

from ray_mono.common.scheduling.labels import DOES_NOT_EXIST, EXISTS, IN, NOT_IN, LabelRequirement
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.protobuf import common_pb2

NODE = b"n" * 28


def affinity(soft: bool) -> common_pb2.SchedulingStrategy:
    node_affinity = common_pb2.NodeAffinity(node_id=NODE, soft=soft)
    return common_pb2.SchedulingStrategy(node_affinity=node_affinity)


def test_each_strategy_of_the_wire_has_its_kind() -> None:
    assert Strategy.from_proto(common_pb2.SchedulingStrategy()).kind is StrategyKind.DEFAULT
    assert Strategy.from_proto(common_pb2.SchedulingStrategy(default=True)).kind is StrategyKind.DEFAULT
    assert Strategy.from_proto(common_pb2.SchedulingStrategy(spread=True)).kind is StrategyKind.SPREAD
    assert Strategy.from_proto(affinity(soft=True)) == Strategy(StrategyKind.NODE_AFFINITY, NODE, True)


def test_a_strategy_travels_as_it_is() -> None:
    selectors = (
        (LabelRequirement("zone", IN, ("a", "b")), LabelRequirement("gpu", EXISTS)),
        (LabelRequirement("zone", NOT_IN, ("c",)), LabelRequirement("spot", DOES_NOT_EXIST)),
    )
    for strategy in (
        Strategy(),
        Strategy(StrategyKind.SPREAD, selectors=selectors),
        Strategy(StrategyKind.NODE_AFFINITY, NODE, is_soft=True, spills=True, selectors=selectors[:1]),
        Strategy(StrategyKind.NODE_AFFINITY, NODE, fails=True),
        Strategy(selectors=((), selectors[0])),
        Strategy(StrategyKind.PLACEMENT_GROUP, group_id=b"g" * 18, bundle_index=2),
    ):
        assert Strategy.from_proto(strategy.to_proto()) == strategy


def test_only_hard_affinity_allows_a_single_node() -> None:
    assert Strategy.from_proto(affinity(soft=False)).only_node_id == NODE
    assert Strategy.from_proto(affinity(soft=True)).only_node_id is None
    assert Strategy().only_node_id is None
