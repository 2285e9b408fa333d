"""Why leases are where they are, for people and for whoever follows what waits. It only looks."""

from __future__ import annotations

from collections.abc import Container, Sequence

from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.scheduling import explanations
from ray_mono.raylet.scheduling.cluster_view import ClusterView
from ray_mono.raylet.scheduling.lease_scheduler import LeaseScheduler
from ray_mono.raylet.scheduling.leases import WorkerLease, WorkerLeaseState
from ray_mono.raylet.scheduling.ledger import ResourceLedger
from ray_mono.raylet.scheduling.scheduling_policy import Decision
from ray_mono.raylet.worker.worker_pool import WorkerPool


class LeaseStories:
    """Of one node's leases."""

    def __init__(
        self, scheduler: LeaseScheduler, ledger: ResourceLedger, cluster: ClusterView, pool: WorkerPool
    ) -> None:
        self._scheduler = scheduler
        self._ledger = ledger
        self._cluster = cluster
        self._pool = pool

    def why(self, lease: WorkerLease, name: str = "") -> str:
        """Why a lease is not granted yet, or that it is, in one sentence. name: of what it is for; empty: the
        one that it was asked for with. Tasks that need the same share leases."""
        if lease.state is WorkerLeaseState.RESERVED:
            return explanations.no_worker(self._pool.num_starting, self._pool.start_trouble)
        if lease.has_worker:
            return "blocked: its CPUs are lent" if self.is_blocked(lease) else lease.state.value
        here, others = self.nodes()
        return explanations.queued(
            name or lease.request.task_name,
            lease.shape,
            self.decision_of(lease),
            here,
            others,
            self._ledger.is_overdrawn,
            self._scheduler.kept is not None,
            self._ledger.is_in_parts(lease.shape.required),
        )

    def decision_of(self, lease: WorkerLease) -> Decision:
        """Where it would go now."""
        return self._scheduler.decide(lease.shape)

    def nodes(self) -> tuple[NodeSnapshot, Sequence[NodeSnapshot]]:
        """This one, and the others, as they are known here."""
        return self._scheduler.snapshot(), self._cluster.nodes()

    def is_blocked(self, lease: WorkerLease) -> bool:
        """Whether what runs under it waits in get or wait: its CPUs are others' meanwhile."""
        return lease.has_worker and self._ledger.is_blocked(lease.lease_id)

    def held(self, lease: WorkerLease) -> ResourceSet:
        """What it has now: a blocked one lends its CPUs, and one without a worker is about to begin."""
        return self._ledger.held_now(lease.lease_id) if lease.has_worker else ResourceSet()

    def groups_with(self, names: Container[str]) -> dict[bytes, ResourceSet]:
        """What placement groups hold here of resources of these names, in use or not."""
        held: dict[bytes, ResourceSet] = {}
        for bundle in self._ledger.bundles():
            part = bundle.resources.only(*(name for name, _ in bundle.resources.items() if name in names))
            if part:
                held[bundle.group_id] = held.get(bundle.group_id, ResourceSet()) + part
        return held

    @property
    def start_trouble(self) -> str:
        """Why workers do not start; empty where they do."""
        return self._pool.start_trouble
