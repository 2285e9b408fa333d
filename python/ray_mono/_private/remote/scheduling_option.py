"""Where a task or an actor may run: what the core takes for `scheduling_strategy` and `label_selector`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_mono.protobuf import common_pb2
from ray_mono.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

NODE_ID_LABEL = "ray.io/node-id"


def strategy_of(options: Mapping[str, Any]) -> common_pb2.SchedulingStrategy | None:
    """Where a task or an actor with these options may run; None for anywhere.

    Of label selectors only {NODE_ID_LABEL: a node's id in hex} works so far. It means
    NodeAffinitySchedulingStrategy(node_id, soft=False). Raises TypeError, ValueError or NotImplementedError.
    """
    selector = options.get("label_selector") or {}
    given = options.get("scheduling_strategy")
    if not selector:
        return _strategy(given)
    value = selector.get(NODE_ID_LABEL)
    if (
        set(selector) != {NODE_ID_LABEL}
        or not isinstance(value, str)
        or not set(value) <= set("0123456789abcdef")
    ):
        raise NotImplementedError(
            f"label_selector={selector!r}: only {{{NODE_ID_LABEL!r}: one node's id in hex}} is part of"
            f" ray_mono yet"
        )
    if given not in (None, "DEFAULT", "SPREAD"):  # on one node there is nothing to spread
        raise ValueError(f"label_selector and scheduling_strategy={given!r} both say where: give one of them")
    return _strategy(NodeAffinitySchedulingStrategy(value, soft=False))


def _strategy(given: Any) -> common_pb2.SchedulingStrategy | None:
    if given is None or given == "DEFAULT":
        return None
    if given == "SPREAD":
        return common_pb2.SchedulingStrategy(spread=True)
    if isinstance(given, str):
        raise ValueError(f"scheduling_strategy must be 'DEFAULT', 'SPREAD' or a strategy, got {given!r}")
    if isinstance(given, NodeAffinitySchedulingStrategy):
        affinity = common_pb2.NodeAffinity(node_id=bytes.fromhex(given.node_id), soft=bool(given.soft))
        return common_pb2.SchedulingStrategy(node_affinity=affinity)
    if isinstance(given, PlacementGroupSchedulingStrategy) and given.placement_group in (None, "default"):
        # It says that there is no group. Libraries that make none give this.
        if given.placement_group_bundle_index != -1:
            raise ValueError(
                "placement_group_bundle_index must be -1 without a placement group, got"
                f" {given.placement_group_bundle_index!r}"
            )
        return None
    if not isinstance(given, NodeLabelSchedulingStrategy | PlacementGroupSchedulingStrategy):
        raise TypeError(
            f"scheduling_strategy must be 'DEFAULT', 'SPREAD' or a strategy, got {given!r} of type"
            f" {type(given).__name__}"
        )
    raise NotImplementedError(
        f"scheduling_strategy={given!r}: only 'DEFAULT', 'SPREAD' and NodeAffinitySchedulingStrategy are"
        " part of ray_mono yet"
    )
