"""What a task or an actor says about where it wants to run."""

from __future__ import annotations

import enum
from typing import NamedTuple

from ray_mono.common.scheduling.bundle_resources import ANY_BUNDLE
from ray_mono.common.scheduling.labels import LabelSelector, selector_from_proto, selector_to_proto
from ray_mono.protobuf import common_pb2


class StrategyKind(enum.Enum):
    DEFAULT = "default"
    SPREAD = "spread"
    NODE_AFFINITY = "node affinity"
    PLACEMENT_GROUP = "placement group"

    # Enum's own is Python code, which each lease request would run.
    __hash__ = object.__hash__


class Strategy(NamedTuple):
    """A tuple, since shapes of leases are looked up by it."""

    kind: StrategyKind = StrategyKind.DEFAULT
    node_id: bytes = b""
    """For NODE_AFFINITY."""
    is_soft: bool = False
    spills: bool = False
    """Of a soft affinity: where its node has it not free now, others may take it."""
    fails: bool = False
    """Of a hard affinity: where its node has it not free now, that is an error."""
    selectors: tuple[LabelSelector, ...] = ()
    """The labels of its node; empty: any."""
    group_id: bytes = b""
    """For PLACEMENT_GROUP. What the work needs has the group's names (bundle_resources.py)."""
    bundle_index: int = ANY_BUNDLE

    @classmethod
    def from_proto(cls, message: common_pb2.SchedulingStrategy) -> Strategy:
        match message.WhichOneof("strategy"):
            case "spread":
                strategy = _SPREAD
            case "node_affinity":
                affinity = message.node_affinity
                strategy = cls(
                    StrategyKind.NODE_AFFINITY,
                    affinity.node_id,
                    affinity.soft,
                    affinity.spill_on_unavailable,
                    affinity.fail_on_unavailable,
                )
            case "placement_group":
                group = message.placement_group
                strategy = cls(
                    StrategyKind.PLACEMENT_GROUP,
                    group_id=group.placement_group_id,
                    bundle_index=group.bundle_index,
                )
            case _:
                strategy = _DEFAULT
        if not message.label_selectors:
            return strategy
        return strategy._replace(selectors=tuple(map(selector_from_proto, message.label_selectors)))

    def to_proto(self) -> common_pb2.SchedulingStrategy:
        selectors = map(selector_to_proto, self.selectors)
        if self.kind is StrategyKind.SPREAD:
            return common_pb2.SchedulingStrategy(spread=True, label_selectors=selectors)
        if self.kind is StrategyKind.DEFAULT:
            return common_pb2.SchedulingStrategy(label_selectors=selectors)
        if self.kind is StrategyKind.PLACEMENT_GROUP:
            group = common_pb2.PlacementGroupStrategy(
                placement_group_id=self.group_id, bundle_index=self.bundle_index
            )
            return common_pb2.SchedulingStrategy(placement_group=group, label_selectors=selectors)
        affinity = common_pb2.NodeAffinity(
            node_id=self.node_id,
            soft=self.is_soft,
            spill_on_unavailable=self.spills,
            fail_on_unavailable=self.fails,
        )
        return common_pb2.SchedulingStrategy(node_affinity=affinity, label_selectors=selectors)

    @property
    def only_node_id(self) -> bytes | None:
        """The one node that it allows; None where it allows others too."""
        return self.node_id if self.kind is StrategyKind.NODE_AFFINITY and not self.is_soft else None


_DEFAULT = Strategy()
_SPREAD = Strategy(StrategyKind.SPREAD)
