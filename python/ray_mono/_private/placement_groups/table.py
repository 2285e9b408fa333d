"""A placement group as `placement_group_table` shows it: Ray's dict."""

from __future__ import annotations

from typing import Any

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2

Info = common_pb2.PlacementGroupInfo
_PREFIX = "PLACEMENT_GROUP_"


def bundles_of(row: Info) -> list[dict[str, float]]:
    return [ResourceSet.from_proto(bundle.resources).to_units() for bundle in row.bundles]


def table_of(row: Info) -> dict[str, Any]:
    latency_ms = max(0.0, row.created_time_s - row.start_time_s) * 1000 if row.created_time_s else 0.0
    return {
        "placement_group_id": row.placement_group_id.hex(),
        "name": row.name,
        "bundles": dict(enumerate(bundles_of(row))),
        "bundles_to_node_id": {index: bundle.node_id.hex() for index, bundle in enumerate(row.bundles)},
        "strategy": Info.Strategy.Name(row.strategy),
        "state": common_pb2.PlacementGroupState.Name(row.state).removeprefix(_PREFIX),
        "stats": {
            "end_to_end_creation_latency_ms": latency_ms,
            # Places are looked for and taken without a pause between: there is no other number.
            "scheduling_latency_ms": latency_ms,
            "scheduling_attempt": row.num_attempts,
            # It is tried again when something becomes free, and not after a pause.
            "highest_retry_delay_ms": 0.0,
            "scheduling_state": _scheduling_state(row),
        },
    }


def _scheduling_state(row: Info) -> str:
    if row.state == common_pb2.PLACEMENT_GROUP_REMOVED:
        return "REMOVED"
    if row.state == common_pb2.PLACEMENT_GROUP_CREATED:
        return "FINISHED"
    if row.num_attempts and row.pending_reason:
        return "INFEASIBLE" if row.is_infeasible else "NO_RESOURCES"
    return "QUEUED"
