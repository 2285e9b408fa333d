"""Options of tasks and actors in a placement group of two bundles."""

from __future__ import annotations

from typing import Any

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2

GROUP = b"g" * 14 + b"job1"
BUNDLES = tuple(ResourceSet.from_units(each) for each in ({"CPU": 1}, {"CPU": 2, "GPU": 1}))


def in_group(index: int = -1, captures: bool = False, group_id: bytes = GROUP) -> dict[str, Any]:
    """Options."""
    group = common_pb2.PlacementGroupStrategy(
        placement_group_id=group_id, bundle_index=index, capture_child_tasks=captures
    )
    return {"strategy": common_pb2.SchedulingStrategy(placement_group=group), "bundles": BUNDLES}
