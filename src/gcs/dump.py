"""What DumpState and SIGUSR1 tell: every table in summary, for people and for `explain`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.cluster import Cluster
from ray_mono.protobuf import common_pb2, gcs_pb2

# Actors told one by one; the counts cover all.
ACTORS_TOLD_MAX = 1_000


def dump_cluster(cluster: Cluster) -> dict[str, Any]:
    """As JSON can carry it."""
    actors = cluster.actors.all()
    living = [actor for actor in actors if actor.death is None]
    return {
        "nodes": [_node(row) for row in cluster.nodes.rows()],
        "resources": [_resources(row) for row in cluster.nodes.resources()],
        "jobs": {
            "count": len(cluster.jobs.rows()),
            "running": [row.job_id.hex() for row in cluster.jobs.rows() if not row.is_finished],
            "next_number": cluster.jobs.next_number,
        },
        "actors": {
            "count_by_state": dict(sorted(Counter(actor.state.name for actor in actors).items())),
            "being_placed": cluster.scheduler.count_placing(),
            "watchers": cluster.actor_table.count_watchers(),
            "living": [
                {
                    "actor_id": actor.actor_id.hex(),
                    "class_name": actor.registration.class_name,
                    "name": actor.registration.name,
                    "namespace": actor.registration.namespace,
                    "state": actor.state.name,
                    "num_restarts": actor.num_restarts,
                    "worker_id": actor.worker_id.hex() if actor.worker_id else "",
                    "pending_reason": actor.pending_reason,
                }
                for actor in living[:ACTORS_TOLD_MAX]
            ],
        },
        "workers": {"alive": cluster.workers.count_living(), "count": len(cluster.workers.rows())},
        "kv": cluster.kv.summary(),
        "subscribers": [
            {
                "subscriber": subscription.subscriber_id,
                "channels": [gcs_pb2.Channel.Name(channel) for channel in sorted(subscription.wanted)],
                "queued": len(subscription.queue),
                "dropped": subscription.dropped,
            }
            for subscription in cluster.subscriptions.all()
        ],
    }


def _node(row: common_pb2.NodeInfo) -> dict[str, Any]:
    return {
        "node_id": row.node_id.hex(),
        "state": common_pb2.NodeState.Name(row.state),
        "address": f"{row.host}:{row.node_manager_port}",
        "is_head": row.is_head,
        "total": ResourceSet.from_proto(row.total).to_units(),
        "death": row.death_cause.message,
    }


def _resources(row: common_pb2.NodeResources) -> dict[str, Any]:
    return {
        "node_id": row.node_id.hex(),
        "version": row.version,
        "available": ResourceSet.from_proto(row.available).to_units(),
        "queued": sum(demand.count for demand in row.queued),
    }
