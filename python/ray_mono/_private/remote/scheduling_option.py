"""Where a task or an actor may run: what the core takes for `scheduling_strategy`, `label_selector` and
`fallback_strategy`, and for the options that named placement groups before there were strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_mono._private import label_selectors
from ray_mono._private.placement_groups.handle import PlacementGroup
from ray_mono.common.scheduling.labels import LabelSelector, selector_to_proto
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2
from ray_mono.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

_CAPTURES = "placement_group_capture_child_tasks"


def strategy_of(options: Mapping[str, Any]) -> common_pb2.SchedulingStrategy | None:
    """Where a task or an actor with these options may run; None for anywhere.

    Raises TypeError, ValueError.
    """
    given = _given(options)
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


def inherits_group(options: Mapping[str, Any]) -> bool:
    """Whether a caller that captures its children has a say: nothing was said of a place, or of a placement
    group not whether its children are captured, in their turn."""
    given = _given(options)
    if isinstance(given, PlacementGroupSchedulingStrategy):
        return _group_in(given) is not None and given.placement_group_capture_child_tasks is None
    return given is None and options.get(_CAPTURES) is not False


def joins_group(options: Mapping[str, Any]) -> bool:
    """Whether it runs in its caller's group, if there is one: it captures its children, and named none."""
    return _given(options) is None and bool(options.get(_CAPTURES))


def bundles_of(options: Mapping[str, Any]) -> tuple[ResourceSet, ...]:
    """What the bundles of the placement group hold that was given; empty for none.

    The cluster is asked where the handle does not know it.
    """
    given = _given(options)
    group = _group_in(given) if isinstance(given, PlacementGroupSchedulingStrategy) else None
    return () if group is None else group.bundle_resources()


def _given(options: Mapping[str, Any]) -> Any:
    """The strategy, also where it was given by the older options."""
    given = options.get("scheduling_strategy")
    group = options.get("placement_group", "default")
    index = options.get("placement_group_bundle_index")
    captures = options.get(_CAPTURES)
    if group == "default":
        if given is None and index not in (None, -1):
            raise ValueError(
                f"placement_group_bundle_index must be -1 without a placement group, got {index!r}"
            )
        return given
    if given is not None and group is None:
        return given
    if given is not None:
        raise ValueError(
            f"placement_group={group!r} and scheduling_strategy={given!r} exclude each other: give"
            " scheduling_strategy=PlacementGroupSchedulingStrategy(...) alone"
        )
    return PlacementGroupSchedulingStrategy(group, -1 if index is None else index, captures)


def _group_in(given: PlacementGroupSchedulingStrategy) -> PlacementGroup | None:
    """None: it says that there is no group. Libraries that make none give this."""
    group = given.placement_group
    if group is None or (isinstance(group, str) and group == "default"):
        return None
    if not isinstance(group, PlacementGroup):
        raise TypeError(
            f"placement_group must be a placement group or None, got {group!r} of type {type(group).__name__}"
        )
    return None if group.is_empty else group


def _in_group(given: PlacementGroupSchedulingStrategy) -> common_pb2.SchedulingStrategy | None:
    group, index = _group_in(given), given.placement_group_bundle_index
    if not isinstance(index, int) or isinstance(index, bool):
        raise TypeError(f"placement_group_bundle_index must be a whole number, got {index!r}")
    if group is None:
        if index != -1:
            raise ValueError(
                f"placement_group_bundle_index must be -1 without a placement group, got {index!r}"
            )
        return None
    if index < -1:
        raise ValueError(
            f"placement_group_bundle_index must be -1 for any bundle, or that of a bundle, got {index}"
        )
    chosen = common_pb2.PlacementGroupStrategy(
        placement_group_id=group.id.binary(),
        bundle_index=index,
        capture_child_tasks=bool(given.placement_group_capture_child_tasks),
    )
    return common_pb2.SchedulingStrategy(placement_group=chosen)


def _label_selectors(
    selector: Mapping[str, str] | None, fallbacks: Sequence[Mapping[str, Any]] | None
) -> list[LabelSelector]:
    """In their order; empty where there is none. Raises TypeError, ValueError."""
    selectors = [label_selectors.selector_of(selector or {}, "label_selector")]
    for place, fallback in enumerate(fallbacks or ()):
        name = f"fallback_strategy[{place}]"
        if not isinstance(fallback, Mapping):
            # Not a TypeError, as in Ray: it is the list's value that is wrong.
            raise ValueError(f"{name} must be a dict with 'label_selector', got {fallback!r}")
        if set(fallback) != {"label_selector"}:
            raise ValueError(
                f"{name} must have 'label_selector' and nothing else, got {sorted(map(str, fallback))}"
            )
        own = fallback["label_selector"]
        name += "['label_selector']"
        if own is not None and not isinstance(own, Mapping):
            raise ValueError(f"{name} must be a dict from labels to expressions, got {own!r}")
        selectors.append(label_selectors.selector_of(own or {}, name))
    return selectors if any(selectors) else []


def _strategy(given: Any) -> common_pb2.SchedulingStrategy | None:
    if isinstance(given, PlacementGroupSchedulingStrategy):
        return _in_group(given)
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
    raise TypeError(
        f"scheduling_strategy must be 'DEFAULT', 'SPREAD' or a strategy, got {given!r} of type"
        f" {type(given).__name__}"
    )
