"""A scene for the lease manager: real machines, workers that register when told, and the invariants after
every event.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy
from ray_mono.raylet.effects import (
    BundlesHeld,
    CollectGarbage,
    Effect,
    EndWorker,
    Granted,
    ReclaimLease,
    Rejected,
    RejectionKind,
    SpilledBack,
    StartWorker,
    Unclaimed,
    WarnJob,
)
from ray_mono.raylet.scheduling.bundle_demand import bundle_demand
from ray_mono.raylet.scheduling.cluster_view import ClusterView
from ray_mono.raylet.scheduling.fair_share import LOOK_S
from ray_mono.raylet.scheduling.lease_manager import LeaseLimits, LeaseManager
from ray_mono.raylet.scheduling.leases import LeaseRequest
from ray_mono.raylet.scheduling.ledger import ResourceLedger
from ray_mono.raylet.worker.worker_pool import PoolLimits, WorkerPool

HERE, THERE = b"b" * 28, b"c" * 28
JOB_A, JOB_B = b"aaaa", b"bbbb"


def units(**amounts: float) -> ResourceSet:
    return ResourceSet.from_units(amounts)


class Scene:
    """One node. Time moves only when a test says so; workers register at once unless `hold_starts`."""

    def __init__(self, total: ResourceSet, prestart: int = 0, startup_concurrency: int = 100) -> None:
        self.now_s = 0.0
        numbers = itertools.count(1)
        self.ledger = ResourceLedger(total)
        self.cluster = ClusterView(HERE, hold_s=1.0)
        self.pool = WorkerPool(
            PoolLimits(startup_concurrency, prestart, 2, 5.0, 60.0), lambda: next(numbers).to_bytes(28, "big")
        )
        here = NodeSnapshot(HERE, "here", 1, total, total)
        self.manager = LeaseManager(
            here, self.ledger, self.cluster, self.pool, LeaseLimits(2.0, 30.0, "logs")
        )
        self.granted: dict[str, Granted] = {}
        self.spilled: dict[str, bytes] = {}
        self.rejected: dict[str, RejectionKind] = {}
        self.messages: dict[str, str] = {}
        self.ended: list[EndWorker] = []
        self.warnings: list[WarnJob] = []
        self.collected_at_s: list[float] = []
        self.unclaimed: list[bytes] = []
        # Leases whose holders were asked to end them.
        self.reclaimed: list[str] = []
        # Of those that were sent elsewhere: not to be granted or rejected at once.
        self.may_wait: list[str] = []
        # Groups whose bundles had their turn.
        self.held: list[str] = []
        self.starts: list[StartWorker] = []
        self.hold_starts = False

    # ---- events

    def ask(
        self,
        name: str,
        requester: int = 1,
        job: bytes = JOB_A,
        strategy: Strategy | None = None,
        placement: ResourceSet | None = None,
        for_actor: bool = False,
        grant_or_reject: bool = False,
        requester_node: bytes = HERE,
        outlives_job: bool = False,
        resources: ResourceSet | None = None,
        key: int = 0,
        owner_id: bytes = b"",
        owner_node: bytes = b"",
        is_retriable: bool = False,
        waited_s: float = 0.0,
    ) -> None:
        """Asks for one CPU unless `resources` says otherwise."""
        request = LeaseRequest(
            lease_id=name.encode(),
            requester=requester,
            requester_node_id=requester_node,
            job_id=job,
            resources=units(CPU=1) if resources is None else resources,
            placement_resources=placement or ResourceSet(),
            strategy=strategy or Strategy(),
            for_actor=for_actor,
            grant_or_reject=grant_or_reject,
            task_name=name,
            outlives_job=outlives_job,
            scheduling_key=key,
            owner_id=owner_id,
            owner_node_id=owner_node,
            is_retriable=is_retriable,
            waited_s=waited_s,
        )
        self.take(self.manager.request(request, self.now_s))

    def ask_for_bundles(
        self, group: bytes, *bundles: ResourceSet, job: bytes = JOB_B, requester: int = 9
    ) -> None:
        """They wait for their turn."""
        request = bundle_demand(group, job, dict(enumerate(bundles)), HERE, requester)
        self.take(self.manager.request(request, self.now_s))

    def give_back(self, name: str, dispose: bool = False, leaving: bool = False) -> None:
        self.take(self.manager.return_lease(name.encode(), dispose, leaving, self.now_s))

    def worker_dies(self, name: str) -> None:
        """The worker of a lease."""
        self.take(self.manager.worker_died(self.granted[name].worker_id, "killed by a test", self.now_s))

    def block(self, name: str, is_blocked: bool = True) -> None:
        self.take(self.manager.worker_blocked(self.granted[name].worker_id, b"", is_blocked, self.now_s))

    def other_node(
        self,
        free: ResourceSet,
        version: int = 1,
        total: ResourceSet | None = None,
        lasting: ResourceSet | None = None,
    ) -> None:
        """lasting: what actors have of it."""
        self.cluster.node_joined(THERE, "there", 2, total or free)
        self.cluster.resources_reported(THERE, version, total or free, free, lasting or ResourceSet())
        self.take(self.manager.cluster_changed(self.now_s))

    def wait(self, seconds: float) -> None:
        """Time passes, with ticks, and with looks while something waits."""
        end_s = self.now_s + seconds
        next_tick_s = self.now_s + 0.25
        while self.now_s < end_s:
            self.now_s = min(self.now_s + LOOK_S, end_s)
            if self.now_s >= next_tick_s or self.now_s == end_s:
                next_tick_s = self.now_s + 0.25
                self.take(self.manager.tick(self.now_s))
            if self.manager.num_queued:
                self.take(self.manager.look(self.now_s))

    def register(self, number: int = 1) -> None:
        """The oldest starts become workers."""
        for _ in range(number):
            start = self.starts.pop(0)
            refusal, effects = self.manager.worker_registered(
                start.startup_token, start.worker_id, 100, self.now_s
            )
            assert refusal == ""
            self.take(effects)

    def do(self, event: Callable[[float], list[Effect]]) -> None:
        self.take(event(self.now_s))

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Granted():
                    self.granted[effect.lease_id.decode()] = effect
                case SpilledBack():
                    self.spilled[effect.lease_id.decode()] = effect.node_id
                    if effect.may_wait:
                        self.may_wait.append(effect.lease_id.decode())
                case Rejected():
                    self.rejected[effect.lease_id.decode()] = effect.kind
                    self.messages[effect.lease_id.decode()] = effect.message
                case BundlesHeld():
                    self.held.append(effect.lease_id.decode())
                case StartWorker():
                    self.starts.append(effect)
                case EndWorker():
                    self.ended.append(effect)
                case WarnJob():
                    self.warnings.append(effect)
                case Unclaimed():
                    self.unclaimed.append(effect.lease_id)
                case CollectGarbage():
                    self.collected_at_s.append(self.now_s)
                case ReclaimLease():
                    self.reclaimed.append(effect.lease_id.decode())
        self.manager.check_invariants()
        while self.starts and not self.hold_starts:
            self.register()

    # ---- what can be seen

    @property
    def running(self) -> list[str]:
        """Names of leases that have a worker now."""
        leases = [worker.lease_id for worker in self.pool if worker.lease_id is not None]
        return sorted(lease_id.decode() for lease_id in leases)

    def why(self, name: str) -> str:
        [lease] = [lease for lease in self.manager.leases() if lease.lease_id == name.encode()]
        return self.manager.stories.why(lease)
