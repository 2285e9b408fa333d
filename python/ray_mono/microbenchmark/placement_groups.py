"""The line of Ray's microbenchmark about placement groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_mono.microbenchmark import clusters
from ray_mono.microbenchmark.calls import CALLS_AT_LEAST
from ray_mono.microbenchmark.line import Group

PLACEMENT = Group(
    "placement groups", clusters.local(address="local", resources={"custom": 100}), is_microbenchmark=True
)
GROUPS_AT_ONCE = 100


@PLACEMENT.rate("placement group create/removal", GROUPS_AT_ONCE, target=CALLS_AT_LEAST)
def placement_groups(ray: Any) -> Callable[[], object]:
    placement_group, remove = ray.util.placement_group, ray.util.remove_placement_group

    def run() -> None:
        made = [placement_group(bundles=[{"custom": 0.001}]) for _ in range(GROUPS_AT_ONCE)]
        for group in made:
            if not group.wait(timeout_seconds=30):
                raise RuntimeError("a placement group was not ready in 30 s")
        for group in made:
            remove(group)

    return run
