"""`ray.autoscaler.sdk`: a cluster here is as large as it is, so a request for more has no effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def request_resources(
    num_cpus: int | None = None,
    bundles: Sequence[dict[str, Any]] | None = None,
    bundle_label_selectors: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Has no effect; libraries call it all the time."""
