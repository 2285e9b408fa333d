"""What a raylet does with what the GCS tells it about the rest of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ray_mono.common.ids import JobID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.raylet.bundle_requests import BundleRequests, order_of
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.dead_nodes import DeadNodes
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.scheduling.cluster_view import ClusterView
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.scheduling.ledger import ResourceLedger
from ray_mono.raylet.store_client import StoreClient

HELD_TO_BE_DEAD = common_pb2.DeathCause(
    kind=common_pb2.DeathCause.KILLED, message="the head before held it to be dead"
)
"""Drivers have heard why. As for a node that was stopped, it is no news to them."""


class ClusterEvents:
    """gcs_client.GcsEvents for one raylet."""

    def __init__(
        self,
        node_id: bytes,
        clock: Clock,
        clients: Clients,
        leases: LeaseManager,
        ledger: ResourceLedger,
        bundles: BundleRequests,
        cluster: ClusterView,
        effects: EffectRunner,
        store: StoreClient,
        dead_nodes: DeadNodes,
        drain: Callable[[], common_pb2.NodeDrain | None],
        end: Callable[[str], None],
    ) -> None:
        """node_id: this node's. drain(): of this node, if it is drained. end(reason): the raylet cannot go
        on."""
        self._node_id = node_id
        self._clock = clock
        self._clients = clients
        self._leases = leases
        self._ledger = ledger
        self._bundles = bundles
        self._cluster = cluster
        self._effects = effects
        self._store = store
        self._dead_nodes = dead_nodes
        self._drain = drain
        self._end = end
        self._last_job_number = 0

    def registration(
        self, node: common_pb2.NodeInfo, known_cluster_ids: Sequence[bytes]
    ) -> gcs_pb2.RegisterNodeRequest:
        leases = self._leases.actor_leases()
        if (drain := self._drain()) is not None:
            node.drain.CopyFrom(drain)
        request = gcs_pb2.RegisterNodeRequest(
            node=node,
            actor_leases=[
                gcs_pb2.ActorLease(lease_id=lease.lease_id, worker_id=lease.worker_id) for lease in leases
            ],
            known_cluster_ids=known_cluster_ids,
            workers=[client.info(self._node_id) for client in self._clients],
            other_nodes=[
                common_pb2.NodeInfo(
                    node_id=other.node_id,
                    host=other.host,
                    node_manager_port=other.port,
                    total=other.total.to_proto(),
                    state=common_pb2.NODE_ALIVE if other.is_alive else common_pb2.NODE_DEAD,
                    death_cause=None if other.is_alive else HELD_TO_BE_DEAD,
                )
                for other in self._cluster.nodes()
            ],
            last_job_number=self._last_job_number,
            bundles=self._bundles.told(),
        )
        # What committed bundles give counts from the start: the first report may come late.
        request.node.total.CopyFrom(self._ledger.total.to_proto())
        return request

    def found(self, head: common_pb2.HeadPlace) -> None:
        self._store.follow_head(head)
        self._bundles.registered(head.cluster_id)
        self._effects.run(self._leases.cluster_changed(self._clock.time_s()))

    def disowned(self, lease_ids: Sequence[bytes]) -> None:
        self._effects.run(self._leases.disowned(lease_ids, self._clock.time_s()))

    def bundles_unwanted(
        self,
        bundles: Sequence[common_pb2.BundleIndices],
        number: common_pb2.BundleRequestNumber,
        cluster_id: bytes,
    ) -> None:
        self._bundles.is_of(cluster_id)
        self._bundles.give_back(bundles, order_of(number), is_removed=False)

    def node_changed(self, node: common_pb2.NodeInfo) -> None:
        now_s = self._clock.time_s()
        if node.state == common_pb2.NODE_DEAD:
            if node.node_id == self._node_id:
                self._end(f"the cluster holds this node for dead: {node.death_cause.message}")
            self._dead_nodes.died(node)
            self._effects.run(self._leases.node_died(node.node_id, now_s))
            return
        total = ResourceSet.from_proto(node.total)
        is_draining = node.HasField("drain")
        labels = dict(node.labels)
        self._cluster.node_joined(node.node_id, node.host, node.node_manager_port, total, is_draining, labels)
        self._effects.run(self._leases.cluster_changed(now_s))

    def resources_changed(self, nodes: Sequence[common_pb2.NodeResources]) -> None:
        is_news = False
        for each in nodes:
            total, available = ResourceSet.from_proto(each.total), ResourceSet.from_proto(each.available)
            lasting = ResourceSet.from_proto(each.lasting)
            is_news |= self._cluster.resources_reported(each.node_id, each.version, total, available, lasting)
        if is_news:
            self._effects.run(self._leases.cluster_changed(self._clock.time_s()))

    def job_changed(self, job: common_pb2.JobInfo) -> None:
        self._last_job_number = max(self._last_job_number, JobID(job.job_id).int())
        if job.is_finished:
            self._effects.run(self._leases.job_finished(job.job_id, self._clock.time_s()))
        if job.is_over:
            self._effects.run(self._leases.job_over(job.job_id, self._clock.time_s()))

    def garbage_is_wanted(self) -> None:
        self._store.collect_garbage()
