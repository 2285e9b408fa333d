"""The lease manager: who gets a worker on this node, when, and who is sent elsewhere. Pure: events in,
effects out.

A request is queued, or answered at once. Every event that could change an answer (a request, a return, a
death, a block, a report from another node) ends in a scheduling pass (`lease_scheduler.py`). Its effects
say who was granted what, or sent where. So between two events nothing waits that could be placed, and an
event that frees nothing needs no pass.

A lease ends when its requester returns or cancels it, when the requester's connection ends, when the worker
dies, or with the bundle of a placement group that it is in (bundles.py). Bundles that may wait for their turn
are requests themselves, until they are held (bundle_demand.py). An actor's lease outlives the
connection that it was asked for on, and ends with the worker: when that connection ends, and whenever the
raylet registers, the GCS says which of these leases nobody wants (`disowned`). What a worker holds that is
told to end stays held until its process is gone.

Invariants: a lease is in the queue (QUEUED), in the reservations (RESERVED), or has a worker (GRANTED,
CLOSED), and in one of them only; it holds resources in the ledger unless it is QUEUED; a worker has at most
one lease.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_mono.common.our_bug import check
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.effects import (
    GROUP_REMOVED,
    BundlesHeld,
    Effect,
    EndMode,
    ReclaimLease,
    Rejected,
    RejectionKind,
    SpilledBack,
    Unclaimed,
    WarnJob,
)
from ray_mono.raylet.scheduling import explanations
from ray_mono.raylet.scheduling.cluster_view import ClusterView
from ray_mono.raylet.scheduling.instances import indivisible
from ray_mono.raylet.scheduling.lease_queue import LeaseQueue
from ray_mono.raylet.scheduling.lease_scheduler import LeaseScheduler
from ray_mono.raylet.scheduling.lease_stories import LeaseStories
from ray_mono.raylet.scheduling.leases import LeaseRequest, WorkerLease, WorkerLeaseState
from ray_mono.raylet.scheduling.ledger import ResourceLedger
from ray_mono.raylet.scheduling.node_bundles import BundleKey, NodeBundles
from ray_mono.raylet.scheduling.pending_warnings import Circumstances, PendingWarnings
from ray_mono.raylet.scheduling.reservations import Reservations
from ray_mono.raylet.scheduling.unit_counts import Holder
from ray_mono.raylet.worker.worker_pool import WorkerPool
from ray_mono.raylet.worker.worker_states import Worker, WorkerState

LEASES_SHOWN_MAX = 1000
"""A queue of a hundred thousand leases would make a description that nobody reads."""
FINISHED_JOBS_MAX = 10_000
"""Finished jobs that are remembered, to refuse requests that were under way when they ended. Those come
within seconds."""
FAILED_STARTS_WARNING_S = 2.0
"""How long leases wait for workers that fail to start before their drivers hear of it."""


@dataclass(frozen=True)
class LeaseLimits:
    infeasible_warning_s: float
    pending_warning_s: float
    log_dir: str


class LeaseManager:
    """Leases of one node."""

    def __init__(
        self,
        node: NodeSnapshot,
        ledger: ResourceLedger,
        cluster: ClusterView,
        pool: WorkerPool,
        limits: LeaseLimits,
    ) -> None:
        self._node = node
        self._ledger = ledger
        self._cluster = cluster
        self._pool = pool
        self._limits = limits
        self._queue = LeaseQueue()
        self._reserved = Reservations()
        self._bundles = NodeBundles(node.node_id, ledger)
        queue, reserved, bundles = self._queue, self._reserved, self._bundles
        self._scheduler = LeaseScheduler(node, ledger, cluster, pool, queue, reserved, bundles)
        self.stories = LeaseStories(self._scheduler, ledger, cluster, pool)
        self._warnings = PendingWarnings(limits.infeasible_warning_s, limits.pending_warning_s)
        self._leases: dict[bytes, WorkerLease] = {}
        self._by_requester: dict[int, dict[bytes, None]] = {}
        self._finished_jobs: OrderedDict[bytes, None] = OrderedDict()
        self._told_of_failed_starts: set[bytes] = set()
        self._arrivals = 0
        self._is_draining = False

    # ---- requesters

    def request(self, request: LeaseRequest, now_s: float) -> list[Effect]:
        """A lease is asked for. A repeated request for a granted lease is answered with the same grant."""
        known = self._leases.get(request.lease_id)
        if known is not None:
            return self._repeated(known, request)
        if request.job_id in self._finished_jobs and _ends_with_job(request):
            return [
                Rejected(request.lease_id, RejectionKind.JOB_FINISHED, f"job {request.job_id.hex()} is over")
            ]
        shape = request.shape
        fault = indivisible(shape.required)
        if fault:
            text = f"{request.task_name or 'A task'}: {fault}"
            return [Rejected(request.lease_id, RejectionKind.INFEASIBLE, text)]
        self._arrivals += 1
        lease = WorkerLease(request, shape, now_s, self._arrivals)
        if request.grant_or_reject and not self._scheduler.fits_here(shape):
            text = explanations.not_here(shape, self._node.node_id, self._ledger.available)
            return [Rejected(request.lease_id, RejectionKind.NOT_HERE, text)]
        self._leases[request.lease_id] = lease
        self._by_requester.setdefault(request.requester, {})[request.lease_id] = None
        if request.grant_or_reject:
            self._scheduler.reserve(lease, now_s)
        elif not self._scheduler.enqueue(lease):
            return []
        return self._schedule(now_s)

    def cancel(self, lease_id: bytes, now_s: float) -> list[Effect]:
        """The requester needs no worker any more. A lease that was granted stays: it has to be returned."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.has_worker:
            return []
        helps_others = self._scheduler.remove(lease)
        self._forget(lease)
        rejected = Rejected(lease_id, RejectionKind.CANCELLED, "cancelled by its requester")
        return [rejected, *self._schedule(now_s)] if helps_others else [rejected]

    def return_lease(self, lease_id: bytes, dispose: bool, leaving: bool, now_s: float) -> list[Effect]:
        """The requester is done with the worker.

        dispose: its process is ended, not reused. leaving: it ends by itself. An actor's worker that is
        given back otherwise is half made, and is killed before another begins.
        """
        lease = self._leases.get(lease_id)
        worker = self._worker_of(lease)
        if lease is None or worker is None or worker.state is WorkerState.ENDING:
            return []
        is_actor = worker.state is WorkerState.ACTOR
        if dispose or (is_actor and not leaving):
            # At once: what it runs may be begun again elsewhere.
            return self._pool.end(
                worker, EndMode.KILL, "whoever leased it had lost it, or wanted it no more", now_s
            )
        if leaving:
            self._pool.leaves(worker, now_s)
        else:
            self._pool.give_back(worker, now_s)
        self._drop(lease)
        return self._schedule(now_s)

    def returned_elsewhere(self, node_id: bytes, resources: ResourceSet, now_s: float) -> list[Effect]:
        """These are free again on another node, whose own report comes later."""
        self._cluster.returned(node_id, resources)
        return self._schedule(now_s)

    def requester_gone(self, requester: int, now_s: float) -> list[Effect]:
        """A connection ended: nothing that was asked through it is wanted any more, except perhaps actors."""
        effects: list[Effect] = []
        for lease_id in list(self._by_requester.pop(requester, {})):
            effects += self._abandon(
                self._leases[lease_id], RejectionKind.CANCELLED, "whoever leased it is gone", now_s
            )
        return effects + self._schedule(now_s)

    def actor_leases(self) -> list[WorkerLease]:
        """What is granted for actors."""
        return [lease for lease in self._leases.values() if lease.request.for_actor and lease.has_worker]

    def disowned(self, lease_ids: Iterable[bytes], now_s: float) -> list[Effect]:
        """The GCS wants none of these leases, and nobody else could ever end them."""
        effects: list[Effect] = []
        for lease_id in lease_ids:
            effects += self._kill(self._leases.get(lease_id), "the GCS has no actor for it", now_s)
        return effects

    # ---- bundles of placement groups

    def prepare_bundles(
        self, group_id: bytes, wanted: Mapping[int, ResourceSet], now_s: float
    ) -> tuple[str, list[Effect]]:
        """Holds these bundles of a group, by index, all or none. Returns why it does not ("" where it does),
        and what follows."""
        refusal = self._bundles.prepare(group_id, wanted, now_s, self._is_draining, self._scheduler.kept)
        return refusal, self._schedule(now_s)

    def commit_bundles(self, keys: Iterable[BundleKey], now_s: float) -> list[Effect]:
        """Those that are held: work in their groups may use them."""
        self._bundles.commit(keys)
        self._scheduler.total_changed()
        return self._schedule(now_s)

    def return_bundles(
        self, indices: Mapping[bytes, Iterable[int]], is_removed: bool, now_s: float
    ) -> list[Effect]:
        """These bundles of groups end, with what runs in them. is_removed: so do the groups, and what waits
        for them."""
        reason = GROUP_REMOVED if is_removed else "its bundle was taken back"
        effects: list[Effect] = []
        inside: dict[BundleKey, list[bytes]] = {
            (group_id, index): [] for group_id, of_group in indices.items() for index in of_group
        }
        users = self._of_groups(indices)
        for key in filter(self._bundles.is_committed, inside):
            for lease in users:
                if lease.lease_id not in self._leases or not self._ledger.sits_in(lease.lease_id, *key):
                    continue
                inside[key].append(lease.lease_id)
                if lease.has_worker:
                    effects += self._kill(lease, reason, now_s)
                elif not is_removed:
                    self._drop(lease)
                    effects.append(Rejected(lease.lease_id, RejectionKind.NOT_HERE, reason))
        self._bundles.give_back(inside)
        self._scheduler.total_changed()
        return effects + (self.groups_ended(indices, now_s) if is_removed else self._schedule(now_s))

    def groups_ended(self, group_ids: Container[bytes], now_s: float) -> list[Effect]:
        """They are removed, or not there: nothing that waits for them ever runs."""
        effects: list[Effect] = []
        for lease in self._of_groups(group_ids):
            if not lease.has_worker:
                self._drop(lease)
                text = explanations.group_removed(lease.request.strategy.group_id)
                effects.append(Rejected(lease.lease_id, RejectionKind.PLACEMENT_GROUP_REMOVED, text))
        return effects + self._schedule(now_s)

    def _of_groups(self, group_ids: Container[bytes]) -> list[WorkerLease]:
        return [lease for lease in self._leases.values() if lease.request.strategy.group_id in group_ids]

    def holds_bundle(self, key: BundleKey) -> bool:
        """Prepared or committed."""
        return self._bundles.holds(key)

    def holds_some_of(self, group_id: bytes) -> bool:
        return self._bundles.holds_some_of(group_id)

    def held_bundles(self) -> dict[bytes, list[int]]:
        """Those that are prepared or committed: their indices, by group."""
        return self._bundles.held()

    def groups_waited_for(self) -> list[bytes]:
        """The placement groups that leases are queued for."""
        groups = (shape.strategy.group_id for shape in self._queue.shapes())
        return list(dict.fromkeys(group_id for group_id in groups if group_id))

    # ---- workers

    def worker_registered(
        self, startup_token: int, worker_id: bytes, pid: int, now_s: float
    ) -> tuple[str, list[Effect]]:
        """Returns why it is refused ("" where it is not), and what follows."""
        refusal = self._pool.registered(startup_token, worker_id, pid, now_s)
        if not refusal:
            self._told_of_failed_starts.clear()
        return refusal, self._schedule(now_s)

    def worker_died(self, worker_id: bytes, reason: str, now_s: float) -> list[Effect]:
        """Its process or its connection ended: its lease is over."""
        worker = self._pool.died(worker_id, reason, now_s)
        if worker is None:
            return []
        if worker.lease_id is not None:
            self._drop(self._leases[worker.lease_id])
        return self._schedule(now_s)

    def kill_worker(self, worker_id: bytes, force: bool, reason: str, now_s: float) -> list[Effect]:
        worker = self._pool.get(worker_id)
        if worker is None:
            return []
        return self._pool.end(worker, EndMode.KILL if force else EndMode.TERMINATE, reason, now_s)

    def worker_refused_to_end(self, worker_id: bytes, now_s: float) -> list[Effect]:
        self._pool.refused_to_end(worker_id, now_s)
        return self._schedule(now_s)

    def worker_blocked(
        self, worker_id: bytes, lease_id: bytes, is_blocked: bool, now_s: float
    ) -> list[Effect]:
        """The task that runs under the lease waits in get or wait, or runs on. A notice of an earlier lease
        of the worker says nothing about this one."""
        worker = self._pool.get(worker_id)
        if worker is None or worker.lease_id is None or (lease_id and lease_id != worker.lease_id):
            return []
        if not is_blocked:
            self._ledger.unblock(worker.lease_id)
            return []  # less is free than before
        return self._schedule(now_s) if self._ledger.block(worker.lease_id) else []

    # ---- jobs, nodes, time

    def job_finished(self, job_id: bytes, now_s: float) -> list[Effect]:
        """Ends what a job had on this node, except its actors, which the GCS ends unless they are detached,
        and what detached actors need."""
        self._finished_jobs[job_id] = None
        while len(self._finished_jobs) > FINISHED_JOBS_MAX:
            self._finished_jobs.popitem(last=False)
        self._warnings.job_finished(job_id)
        effects: list[Effect] = []
        for lease in list(self._leases.values()):
            if lease.request.job_id == job_id and _ends_with_job(lease.request):
                effects += self._abandon(
                    lease, RejectionKind.JOB_FINISHED, f"job {job_id.hex()} is over", now_s
                )
        return effects + self._pool.job_finished(job_id, now_s) + self._schedule(now_s)

    def job_over(self, job_id: bytes, now_s: float) -> list[Effect]:
        """The last detached actor of a finished job is gone: nobody needs its workers any more."""
        self._warnings.job_finished(job_id)
        return self._pool.job_over(job_id, now_s)

    def node_died(self, node_id: bytes, now_s: float) -> list[Effect]:
        """Another node is dead; connections from it may not have noticed."""
        if not self._cluster.node_died(node_id):
            return []
        effects: list[Effect] = []
        for lease in [lease for lease in self._leases.values() if lease.request.requester_node_id == node_id]:
            reason = f"node {node_id.hex()[:8]}, which leased it, is dead"
            effects += self._abandon(lease, RejectionKind.CANCELLED, reason, now_s)
        return effects + self._schedule(now_s)

    def cluster_changed(self, now_s: float) -> list[Effect]:
        """Another node joined or reported: what waits may fit there."""
        return self._schedule(now_s)

    def drain(self, now_s: float) -> list[Effect]:
        """The node is to end. What has a worker, or resources, may finish. What waits goes elsewhere at once,
        if only to wait there; where it could run nowhere else it waits here, and keeps nobody. Whoever leased
        a worker for tasks is asked to give it back."""
        self._is_draining = True
        self._scheduler.drain()
        self._pool.drain()
        return [*self._ask_back(now_s), *self._schedule(now_s)]

    def _ask_back(self, now_s: float) -> list[Effect]:
        """Leases for tasks whose holders were not asked yet."""
        effects: list[Effect] = []
        for lease in self._leases.values():
            is_for_tasks = lease.state is WorkerLeaseState.GRANTED and not lease.request.for_actor
            if is_for_tasks and lease.asked_at_s is None:
                lease.ask_to_end(now_s)
                effects.append(ReclaimLease(lease.lease_id, lease.request.requester))
        return effects

    def end_idle_workers(self, now_s: float) -> list[Effect]:
        """Asks them. One that owns what others use stays, and is asked again next time."""
        idle = [worker for worker in self._pool if worker.state is WorkerState.IDLE]
        return [
            effect
            for worker in idle
            for effect in self._pool.end(worker, EndMode.ASK, "its node is drained", now_s)
        ]

    def look(self, now_s: float) -> list[Effect]:
        """What waits for others' leases: call it every LOOK_S while leases are queued."""
        leased = [
            self._leases[worker.lease_id]
            for worker in self._pool
            if worker.lease_id and worker.state is WorkerState.LEASED
        ]
        actors = [lease for lease in self._of_actors() if self._ledger.holds(lease.lease_id)]
        lasting: list[Holder] = [*actors, *self._ledger.bundles()]
        return [*self._concluded(self._scheduler.look(leased, lasting, now_s)), *self._schedule(now_s)]

    def tick(self, now_s: float) -> list[Effect]:
        """Timeouts: call it several times a second."""
        self._cluster.tick(now_s)
        effects = self._pool.tick(now_s)
        effects += self._concluded(self._scheduler.tick(now_s, self._limits.infeasible_warning_s))
        effects += self._schedule(now_s)
        if self._is_draining:
            effects += self._ask_back(now_s)
        here, others = self._scheduler.snapshot(), self._cluster.nodes()
        circumstances = Circumstances(here, others, self._held_by_actors())
        effects += self._warnings.sweep(self._queue, self._scheduler.decide, circumstances, now_s)
        return effects + self._warn_of_failed_starts(now_s)

    # ---- what others may know

    @property
    def has_leases(self) -> bool:
        """Whether anything holds resources here. What only waits holds none."""
        return any(lease.state is not WorkerLeaseState.QUEUED for lease in self._leases.values())

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    def leases(self) -> list[WorkerLease]:
        """All of them, in order of arrival."""
        return list(self._leases.values())

    def get(self, lease_id: bytes) -> WorkerLease | None:
        return self._leases.get(lease_id)

    def granted(self, lease_id: bytes) -> WorkerLease | None:
        lease = self._leases.get(lease_id)
        return lease if lease is not None and lease.has_worker else None

    def close(self, lease_id: bytes) -> None:
        """The holder of this granted lease does not answer, and none of its tasks begins any more."""
        self._leases[lease_id].close()

    def queued_demand(self) -> list[tuple[ResourceSet, int]]:
        """What waits for resources, by shape: for the GCS and the autoscaler."""
        return [(shape.required, self._queue.count(shape)) for shape in self._queue.shapes()]

    def describe(self, now_s: float) -> dict[str, Any]:
        """For people."""
        shown = itertools.islice(self._leases.values(), LEASES_SHOWN_MAX)
        return {
            "num_leases": len(self._leases),
            "num_queued": self.num_queued,
            "num_shapes_remembered": self._scheduler.num_shapes_remembered,
            "bundles": self._bundles.describe(),
            "leases": [lease.describe(self.stories.why(lease), now_s) for lease in shown],
        }

    def check_invariants(self) -> None:
        """Recounts leases against queue, ledger and pool. Raises InternalError."""
        self._ledger.check_invariants()
        self._bundles.check_invariants()
        self._scheduler.check_invariants()
        self._pool.check_invariants()
        queued = [lease.lease_id for lease in self._queue]
        reserved = [lease.lease_id for lease in self._reserved]
        granted = [lease.lease_id for lease in self._leases.values() if lease.has_worker]
        counted = f"{len(queued)} queued + {len(reserved)} reserved + {len(granted)} granted"
        is_all = sorted(queued + reserved + granted) == sorted(self._leases)
        check(is_all, f"{counted} leases: not {len(self._leases)}")
        workers = {worker.lease_id: worker.worker_id for worker in self._pool if worker.lease_id is not None}
        leased = {lease_id: self._leases[lease_id].worker_id for lease_id in granted}
        check(workers == leased, "granted leases and leased workers differ")
        holders = set(self._ledger.holders())
        check(
            holders == set(reserved + granted), "leases that hold resources and leases in the ledger differ"
        )

    # ---- inside

    def _repeated(self, lease: WorkerLease, request: LeaseRequest) -> list[Effect]:
        """The answer was lost with its connection, or is still to come. Either way it belongs to the new
        connection now."""
        self._by_requester.get(lease.request.requester, {}).pop(lease.lease_id, None)
        self._by_requester.setdefault(request.requester, {})[lease.lease_id] = None
        if lease.state is WorkerLeaseState.QUEUED:
            self._queue.remove(lease)
        lease.requested_by(request.requester)
        if lease.state is WorkerLeaseState.QUEUED:
            self._queue.add(lease)
        return [self._scheduler.grant_of(lease)] if lease.has_worker else []

    def _schedule(self, now_s: float) -> list[Effect]:
        self._bundles.end_left()
        return self._concluded(self._scheduler.run(now_s))

    def _concluded(self, effects: list[Effect]) -> list[Effect]:
        """Forgets the leases that the scheduler sent away, or made bundles of."""
        for effect in effects:
            if isinstance(effect, (SpilledBack, Rejected, BundlesHeld)):
                self._forget(self._leases[effect.lease_id])
        return effects

    def _drop(self, lease: WorkerLease) -> None:
        """Takes a lease out, wherever it is, with what it holds."""
        if lease.has_worker:
            self._ledger.release(lease.lease_id)
        else:
            self._scheduler.remove(lease)
        self._forget(lease)

    def _forget(self, lease: WorkerLease) -> None:
        lease.end()
        del self._leases[lease.lease_id]
        mates = self._by_requester.get(lease.request.requester)
        if mates is not None:
            mates.pop(lease.lease_id, None)
            if not mates:
                del self._by_requester[lease.request.requester]

    def _abandon(self, lease: WorkerLease, kind: RejectionKind, reason: str, now_s: float) -> list[Effect]:
        """Nobody wants it any more. Only the GCS knows whether an actor is wanted. Any other worker may be in
        the middle of a task, and is ended."""
        if not lease.has_worker:
            self._drop(lease)
            return [Rejected(lease.lease_id, kind, reason)]
        worker = self._worker_of(lease)
        if worker is None:
            return []
        if worker.state is WorkerState.ACTOR:
            return [Unclaimed(lease.lease_id)]
        return self._pool.end(worker, EndMode.KILL, reason, now_s)

    def _kill(self, lease: WorkerLease | None, reason: str, now_s: float) -> list[Effect]:
        """Its worker, if it has one that is not ending yet."""
        worker = self._worker_of(lease)
        if worker is None or worker.state is WorkerState.ENDING:
            return []
        return self._pool.end(worker, EndMode.KILL, reason, now_s)

    def _worker_of(self, lease: WorkerLease | None) -> Worker | None:
        return self._pool.get(lease.worker_id) if lease is not None and lease.worker_id is not None else None

    def is_for_tasks(self, worker: Worker) -> bool:
        """Whether it is leased for tasks."""
        lease = self._leases.get(worker.lease_id or b"")
        return lease is not None and not lease.request.for_actor

    def _of_actors(self) -> list[WorkerLease]:
        return [lease for lease in self._leases.values() if lease.request.for_actor]

    def _held_by_actors(self) -> ResourceSet:
        return self._ledger.held_by([lease.lease_id for lease in self._of_actors()])

    def lasting(self) -> ResourceSet:
        """What actors and bundles have, until these end."""
        return self._held_by_actors() + self._ledger.held_by_bundles()

    def _warn_of_failed_starts(self, now_s: float) -> list[Effect]:
        trouble = self._pool.start_trouble
        if not trouble:
            return []
        oldest: dict[bytes, float] = {}
        for lease in self._reserved:
            oldest.setdefault(lease.request.job_id, lease.queued_at_s)
        due = [job for job, since_s in oldest.items() if now_s - since_s >= FAILED_STARTS_WARNING_S]
        new = [job for job in due if job not in self._told_of_failed_starts]
        self._told_of_failed_starts.update(new)
        return [
            WarnJob(job, "worker_start_failed", explanations.workers_fail(trouble, self._limits.log_dir))
            for job in new
        ]


def _ends_with_job(request: LeaseRequest) -> bool:
    """The GCS decides about actors. What detached actors and those below them run goes on."""
    return not request.for_actor and not request.outlives_job
