"""What a raylet does with what the GCS tells it about the rest of the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, gcs_pb2

if TYPE_CHECKING:
    from ray_mono.raylet.raylet import Raylet


class ClusterEvents:
    """gcs_client.GcsEvents for one raylet."""

    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet

    def actor_leases(self) -> list[gcs_pb2.ActorLease]:
        leases = self._raylet.leases.actor_leases()
        return [gcs_pb2.ActorLease(lease_id=lease.lease_id, worker_id=lease.worker_id) for lease in leases]

    def lost(self) -> None:
        self._raylet.apply(self._raylet.pool.gcs_lost(self._raylet.clock.time_s()))

    def found(self) -> None:
        self._raylet.pool.gcs_found()
        self._raylet.apply(self._raylet.leases.cluster_changed(self._raylet.clock.time_s()))

    def disowned(self, lease_ids: Sequence[bytes]) -> None:
        self._raylet.apply(self._raylet.leases.disowned(lease_ids, self._raylet.clock.time_s()))

    def node_changed(self, node: common_pb2.NodeInfo) -> None:
        raylet = self._raylet
        now_s = raylet.clock.time_s()
        if node.state == common_pb2.NODE_DEAD:
            if node.node_id == raylet.config.node_id:
                raylet.end(f"the cluster holds this node for dead: {node.death_cause.message}")
            raylet.apply(raylet.leases.node_died(node.node_id, now_s))
            return
        total = ResourceSet.from_proto(node.total)
        raylet.cluster.node_joined(node.node_id, node.host, node.node_manager_port, total)
        raylet.apply(raylet.leases.cluster_changed(now_s))

    def resources_changed(self, resources: common_pb2.NodeResources) -> None:
        raylet = self._raylet
        total, available = (
            ResourceSet.from_proto(resources.total),
            ResourceSet.from_proto(resources.available),
        )
        if raylet.cluster.resources_reported(resources.node_id, resources.version, total, available):
            raylet.apply(raylet.leases.cluster_changed(raylet.clock.time_s()))

    def job_changed(self, job: common_pb2.JobInfo) -> None:
        raylet = self._raylet
        if job.is_finished:
            raylet.apply(raylet.leases.job_finished(job.job_id, raylet.clock.time_s()))
        if job.is_over:
            raylet.apply(raylet.leases.job_over(job.job_id, raylet.clock.time_s()))

    def worker_died(self, worker: common_pb2.WorkerInfo) -> None:
        """On another node: what it owned may have copies here. This node's own were told when they died."""
        if worker.node_id != self._raylet.config.node_id:
            self._raylet.free_owned_by(worker.worker_id)

    def garbage_is_wanted(self) -> None:
        if self._raylet.store is not None:
            self._raylet.store.collect_garbage()
