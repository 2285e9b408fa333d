"""What a task or an actor says about where it wants to run."""

from __future__ import annotations

import enum
from typing import NamedTuple

from ray_mono.protobuf import common_pb2


class StrategyKind(enum.Enum):
    DEFAULT = "default"
    SPREAD = "spread"
    NODE_AFFINITY = "node affinity"

    # Enum's own is Python code, which each lease request would run.
    __hash__ = object.__hash__


class Strategy(NamedTuple):
    """A tuple, since shapes of leases are looked up by it."""

    kind: StrategyKind = StrategyKind.DEFAULT
    node_id: bytes = b""
    """For NODE_AFFINITY."""
    is_soft: bool = False

    @classmethod
    def from_proto(cls, message: common_pb2.SchedulingStrategy) -> Strategy:
        """DEFAULT for the kinds that are not followed yet: `unsupported` tells them."""
        match message.WhichOneof("strategy"):
            case "spread":
                return cls(StrategyKind.SPREAD)
            case "node_affinity":
                affinity = message.node_affinity
                return cls(StrategyKind.NODE_AFFINITY, affinity.node_id, affinity.soft)
            case _:
                return _DEFAULT

    @property
    def only_node_id(self) -> bytes | None:
        """The one node that it allows; None where it allows others too."""
        return self.node_id if self.kind is StrategyKind.NODE_AFFINITY and not self.is_soft else None


_DEFAULT = Strategy()


def unsupported(message: common_pb2.SchedulingStrategy) -> str:
    """The name of a strategy that this version cannot follow; empty for the others."""
    kind = message.WhichOneof("strategy")
    return kind if kind in ("node_labels", "placement_group") else ""
