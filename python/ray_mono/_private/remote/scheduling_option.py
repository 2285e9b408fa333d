"""Where a task or an actor may run: what the core takes for `scheduling_strategy`, `label_selector` and
`fallback_strategy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_mono._private import label_selectors
from ray_mono.common.scheduling.labels import LabelSelector, selector_to_proto
from ray_mono.protobuf import common_pb2
from ray_mono.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)


def strategy_of(options: Mapping[str, Any]) -> common_pb2.SchedulingStrategy | None:
    """Where a task or an actor with these options may run; None for anywhere.

    Raises TypeError, ValueError or NotImplementedError.
    """
    given = options.get("scheduling_strategy")
    strategy = _strategy(given)
    selectors = _label_selectors(options.get("label_selector"), options.get("fallback_strategy"))
    if isinstance(given, NodeLabelSchedulingStrategy):
        hard, soft = label_selectors.of_expressions(given.hard), label_selectors.of_expressions(given.soft)
        own = [hard + soft, hard] if soft else [hard]
        selectors = [first + second for first in selectors or [()] for second in own]
    if not any(selectors):
        return strategy
    strategy = strategy or common_pb2.SchedulingStrategy()
    strategy.label_selectors.extend(map(selector_to_proto, selectors))
    return strategy


def _label_selectors(
    selector: Mapping[str, str] | None, fallbacks: Sequence[Mapping[str, Any]] | None
) -> list[LabelSelector]:
    """In their order; empty where there is none. Raises TypeError, ValueError."""
    selectors = [label_selectors.selector_of(selector or {}, "label_selector")]
    for place, fallback in enumerate(fallbacks or ()):
        name = f"fallback_strategy[{place}]"
        if not isinstance(fallback, Mapping):
            raise TypeError(f"{name} must be a dict with 'label_selector', got {fallback!r}")
        if set(fallback) != {"label_selector"}:
            raise ValueError(
                f"{name} must have 'label_selector' and nothing else, got {sorted(map(str, fallback))}"
            )
        selectors.append(label_selectors.selector_of(fallback["label_selector"], f"{name}['label_selector']"))
    return selectors if any(selectors) else []


def _strategy(given: Any) -> common_pb2.SchedulingStrategy | None:
    if given is None or given == "DEFAULT" or isinstance(given, NodeLabelSchedulingStrategy):
        return None
    if given == "SPREAD":
        return common_pb2.SchedulingStrategy(spread=True)
    if isinstance(given, str):
        raise ValueError(f"scheduling_strategy must be 'DEFAULT', 'SPREAD' or a strategy, got {given!r}")
    if isinstance(given, NodeAffinitySchedulingStrategy):
        affinity = common_pb2.NodeAffinity(
            node_id=bytes.fromhex(given.node_id),
            soft=bool(given.soft),
            spill_on_unavailable=bool(given._spill_on_unavailable),
            fail_on_unavailable=bool(given._fail_on_unavailable),
        )
        return common_pb2.SchedulingStrategy(node_affinity=affinity)
    if isinstance(given, PlacementGroupSchedulingStrategy) and given.placement_group in (None, "default"):
        # It says that there is no group. Libraries that make none give this.
        if given.placement_group_bundle_index != -1:
            raise ValueError(
                "placement_group_bundle_index must be -1 without a placement group, got"
                f" {given.placement_group_bundle_index!r}"
            )
        return None
    if not isinstance(given, PlacementGroupSchedulingStrategy):
        raise TypeError(
            f"scheduling_strategy must be 'DEFAULT', 'SPREAD' or a strategy, got {given!r} of type"
            f" {type(given).__name__}"
        )
    raise NotImplementedError(f"scheduling_strategy={given!r}: placement groups are not part of ray_mono yet")
