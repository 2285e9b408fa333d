"""The labels of a node: its own, what it was told, and what its environment says."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from ray_mono._private.label_selectors import check_labels
from ray_mono._private.node.accelerators import gpu_type

logger = logging.getLogger(__name__)

FROM_ENVIRONMENT = {
    "RAY_NODE_TYPE_NAME": "ray.io/node-group",
    "RAY_NODE_MARKET_TYPE": "ray.io/market-type",
    "RAY_NODE_REGION": "ray.io/availability-region",
    "RAY_NODE_ZONE": "ray.io/availability-zone",
}
"""Labels by the variables that say them, as in Ray."""
ACCELERATOR_TYPE_LABEL = "ray.io/accelerator-type"
OVERRIDES_VARIABLE = "RAY_OVERRIDE_LABELS"
"""A JSON object of labels that come before all others: whoever starts nodes for others sets it."""


def node_labels(given: Mapping[str, str] | None, environ: Mapping[str, str]) -> dict[str, str]:
    """All but its id, which its raylet adds. given: were checked with the other parameters.

    Raises ValueError or TypeError naming where the environment is at fault.
    """
    labels = {key: environ[variable] for variable, key in FROM_ENVIRONMENT.items() if environ.get(variable)}
    if kind := gpu_type():
        labels[ACCELERATOR_TYPE_LABEL] = kind
    check_labels(labels, "labels of the environment")
    overrides = _overrides(environ.get(OVERRIDES_VARIABLE, ""))
    for what, others in (("label", given or {}), (OVERRIDES_VARIABLE, overrides)):
        for key, value in others.items():
            if labels.get(key, value) != value:
                logger.warning("%s %s=%s replaces %s", what, key, value, labels[key])
            labels[key] = value
    return labels


def _overrides(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        labels = json.loads(text)
    except ValueError:
        labels = text
    if not isinstance(labels, dict):
        raise ValueError(f"{OVERRIDES_VARIABLE} must be a JSON object of labels, got {text!r}")
    check_labels(labels, OVERRIDES_VARIABLE)
    return labels
