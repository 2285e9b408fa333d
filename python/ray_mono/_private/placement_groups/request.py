"""What `placement_group()` is given, checked, and as the message that asks for a group.

Each error names the argument, what was given and what is accepted. A group that no cluster could ever hold is
none: nodes may come.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ray_mono._private import label_selectors
from ray_mono._private.argument_checks import (
    AMOUNT_LEAST,
    AMOUNT_MAX,
    check_resource_name,
    is_number,
    is_sendable,
    plain,
)
from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.bundle_resources import BUNDLE
from ray_mono.common.scheduling.labels import NODE_ID_LABEL, selector_to_proto
from ray_mono.common.scheduling.resources import OBJECT_STORE_MEMORY, ResourceSet
from ray_mono.protobuf import common_pb2

Info = common_pb2.PlacementGroupInfo

STRATEGIES = {
    "PACK": Info.PACK,
    "SPREAD": Info.SPREAD,
    "STRICT_PACK": Info.STRICT_PACK,
    "STRICT_SPREAD": Info.STRICT_SPREAD,
}
DEFAULT_STRATEGY = "PACK"
_SAME_LABEL = "STRICT_PACK"
"""What can be said of labels other than that of nodes: one value of it for all bundles."""


def request_of(
    bundles: Any,
    strategy: Any,
    name: Any,
    lifetime: Any,
    soft_target_node_id: Any,
    bundle_label_selector: Any,
    topology_strategy: Any,
) -> Info:
    """Raises TypeError or ValueError."""
    amounts = bundles_of(bundles)
    selectors = _selectors(bundle_label_selector, len(amounts))
    chosen, same_label = _strategy(strategy, topology_strategy)
    if not isinstance(name, str) or not is_sendable(name):
        raise TypeError(f"name must be a string of valid Unicode, empty for none, got {name!r}")
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime must be None or 'detached', got {lifetime!r}")
    return Info(
        bundles=[
            common_pb2.Bundle(
                resources=ResourceSet.from_units(each).to_proto(), selector=selector_to_proto(selector)
            )
            for each, selector in zip(amounts, selectors, strict=True)
        ],
        strategy=STRATEGIES[chosen],
        name=name,
        is_detached=lifetime == "detached",
        soft_target_node_id=_soft_target(soft_target_node_id, chosen),
        same_label=same_label,
    )


def bundles_of(given: Any) -> list[dict[str, float]]:
    """The bundles as they were given, without what is 0. Raises TypeError, ValueError."""
    example = '[{"CPU": 1}, {"CPU": 1, "GPU": 1}]'
    if not isinstance(given, list) or not given:
        raise ValueError(f"bundles must be a list of dicts, at least one, like {example}, got {given!r}")
    return [_bundle(bundle, f"bundles[{place}]") for place, bundle in enumerate(given)]


def _bundle(given: Any, name: str) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a dict from resources to numbers, got {given!r}")
    amounts = {}
    for resource, amount in given.items():
        try:
            check_resource_name(resource)
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from None
        if resource == BUNDLE:
            raise ValueError(
                f"{name}: {BUNDLE!r} is what each bundle is counted by: give the resource another name"
            )
        number = plain(amount)
        # The comparisons find NaN as well.
        if not is_number(number) or not (number == 0 or AMOUNT_LEAST <= number <= AMOUNT_MAX):
            raise ValueError(
                f"{name}[{resource!r}] must be 0, or a number of at least {AMOUNT_LEAST} and at most"
                f" {AMOUNT_MAX}, got {amount!r}"
            )
        amounts[resource] = number
    if not ResourceSet.from_units(amounts):
        raise ValueError(f"{name} must ask for more than 0 of some resource, got {given!r}")
    if amounts.get(OBJECT_STORE_MEMORY):
        warnings.warn(
            f"{name}: object_store_memory in a bundle is deprecated, as in Ray: stores are not divided among"
            " placement groups",
            DeprecationWarning,
            stacklevel=5,
        )
    return amounts


def _selectors(given: Any, num_bundles: int) -> Sequence[Any]:
    if given is None:
        return [()] * num_bundles
    if not isinstance(given, list):
        raise ValueError(f"bundle_label_selector must be a list of dicts, one for each bundle, got {given!r}")
    if len(given) != num_bundles:
        raise ValueError(
            f"bundle_label_selector must have as many dicts as there are bundles, {num_bundles}, got"
            f" {len(given)}: {given!r}"
        )
    try:
        return [
            label_selectors.selector_of(each, f"bundle_label_selector[{place}]")
            for place, each in enumerate(given)
        ]
    except TypeError as error:
        raise ValueError(str(error)) from None


def _strategy(strategy: Any, topology: Any) -> tuple[str, str]:
    """Returns the strategy, and the label of which all bundles have the same value; empty for none."""
    if topology is None:
        return _checked(DEFAULT_STRATEGY if strategy is None else strategy, "strategy"), ""
    if strategy is not None:
        raise ValueError(
            f"strategy={strategy!r} and topology_strategy={topology!r} exclude each other: give"
            f" topology_strategy={{{NODE_ID_LABEL!r}: {strategy!r}, ...}} alone"
        )
    if not isinstance(topology, Mapping):
        raise ValueError(f"topology_strategy must be a dict from labels to strategies, got {topology!r}")
    chosen = _checked(topology.get(NODE_ID_LABEL, DEFAULT_STRATEGY), f"topology_strategy[{NODE_ID_LABEL!r}]")
    others = [label for label in topology if label != NODE_ID_LABEL]
    if len(others) > 1:
        raise ValueError(
            f"topology_strategy takes at most one label besides {NODE_ID_LABEL!r}, got {others!r}"
        )
    for label in others:
        try:
            label_selectors.check_labels({label: ""}, "topology_strategy")
        except TypeError as error:
            raise ValueError(str(error)) from None
        if topology[label] != _SAME_LABEL:
            raise ValueError(
                f"topology_strategy[{label!r}] must be {_SAME_LABEL!r}, the only one for labels other than"
                f" {NODE_ID_LABEL!r}, got {topology[label]!r}"
            )
    return chosen, others[0] if others else ""


def _checked(strategy: Any, name: str) -> str:
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, STRATEGIES))}, got {strategy!r}")
    return strategy


def _soft_target(given: Any, strategy: str) -> bytes:
    if not given:
        return b""
    if strategy != "STRICT_PACK":
        raise ValueError(f"_soft_target_node_id goes with strategy='STRICT_PACK' only, got {strategy!r}")
    if not isinstance(given, str):
        raise TypeError(f"_soft_target_node_id must be a node's id in hex, got {given!r}")
    try:
        node_id = NodeID.from_hex(given)
    except ValueError:
        node_id = NodeID.nil()
    if node_id.is_nil():
        raise ValueError(f"_soft_target_node_id must be a node's id in hex, got {given!r}")
    return node_id.binary()
