"""The scheduling pass: takes leases from the queue to resources here, to another node, or to a worker. Pure.

`run` asks the policy about the shape whose turn it is, one lease of each job a round, as long as anything
can be placed. The answer is here (the ledger reserves its resources), another node (the requester is told,
and asks there), or not now. Then reserved leases get idle workers, jobs in turn again, and the pool starts
what is missing.

A lease that asks for bundles of a placement group (bundle_demand.py) is over when its turn comes: the bundles
hold its resources from then on, and it needs no worker.

A pass costs as much as there are shapes, not leases. What was answered "not now" is asked again only when the
other nodes have changed, or when it fits here. `look` sees to what waits for others' leases (fair_share.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from ray_mono.common.our_bug import check, known
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import could_give_way, stays
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import StrategyKind
from ray_mono.raylet.effects import BundlesHeld, Effect, Granted, Rejected, RejectionKind, SpilledBack
from ray_mono.raylet.scheduling import explanations, fair_share
from ray_mono.raylet.scheduling.cluster_view import ClusterView
from ray_mono.raylet.scheduling.lease_queue import LeaseQueue
from ray_mono.raylet.scheduling.leases import Shape, WorkerLease, WorkerLeaseState
from ray_mono.raylet.scheduling.ledger import ResourceLedger
from ray_mono.raylet.scheduling.node_bundles import NodeBundles
from ray_mono.raylet.scheduling.reservations import Reservations
from ray_mono.raylet.scheduling.scheduling_policy import (
    Decision,
    Infeasible,
    NeverThere,
    NoSuchNode,
    NotFree,
    RunHere,
    SpillTo,
    Wait,
    decide,
)
from ray_mono.raylet.scheduling.unit_counts import Counts, Holder, PlainCounts, UnitCounts, key_of
from ray_mono.raylet.scheduling.usage import Usage
from ray_mono.raylet.worker.worker_pool import WorkerPool

LEAVES_PERIOD_S = 0.5
"""How often what waits for actors to end looks for a node where it need not."""
SHARE_AFTER_S = 0.3
"""How long a request waits for its own node alone."""


class LeaseScheduler:
    """Leases that are QUEUED or RESERVED."""

    def __init__(
        self,
        node: NodeSnapshot,
        ledger: ResourceLedger,
        cluster: ClusterView,
        pool: WorkerPool,
        queue: LeaseQueue,
        reserved: Reservations,
        bundles: NodeBundles,
    ) -> None:
        self._node = node
        self._ledger = ledger
        self._cluster = cluster
        self._pool = pool
        self._queue = queue
        self._reserved = reserved
        self._bundles = bundles
        # The last "not now" per shape. It holds while the cluster's revision is the same and the shape does
        # not fit here.
        self._refusals: dict[Shape, tuple[int, Decision]] = {}
        # Where the last lease with each strategy went, of those that look at the nodes in turn.
        self._last_node_ids = {StrategyKind.SPREAD: b"", StrategyKind.DEFAULT: node.node_id}
        # What is free is kept for this shape, as long as one waits.
        self._held_for: Shape | None = None
        # What it needs, of work in any bundle of a group in the one that it could have soonest.
        self._held_seat = ResourceSet()
        self._num_shared_out = 0
        self._usage = Usage()
        # When what waits here for actors to end looks for another node again.
        self._leaves_at_s: dict[Shape, float] = {}
        # When a shape that waits got its resources last, and when a job's did.
        self._served_at_s: dict[Shape, float] = {}
        self._job_served_at_s: dict[tuple[bytes, Shape], float] = {}

    def reserve(self, lease: WorkerLease, now_s: float) -> None:
        """Gives the node's resources to a lease that is not queued; it waits for a worker from now on."""
        self._takes_kept(lease.shape)
        kept = None if lease.shape is self._held_for else self.kept
        self._ledger.allocate(lease.lease_id, lease.shape.resources, kept)
        lease.reserve(now_s)
        self._reserved.add(lease)

    def _takes_kept(self, shape: Shape) -> None:
        """One of this shape gets its resources now: the accelerators that were kept, if they were for it."""
        if shape is self._held_for:
            self._ledger.keep_units({})

    def enqueue(self, lease: WorkerLease) -> bool:
        """Returns whether it may be placed now. It may not where others of its shape wait."""
        is_first = not self._queue.has(lease.shape)
        self._queue.add(lease)
        return is_first

    def remove(self, lease: WorkerLease) -> bool:
        """Takes out a lease that has no worker yet, and gives back what was reserved for it. Returns whether
        others may be placed now that could not before."""
        if lease.state is WorkerLeaseState.QUEUED:
            self._queue.remove(lease)
            return lease.shape is self._held_for
        self._reserved.remove(lease)
        self._ledger.release(lease.lease_id)
        return True

    def run(self, now_s: float) -> list[Effect]:
        """Places all that can be placed. SpilledBack and Rejected leases are in neither place any more."""
        if self._held_for is not None and not self._queue.has(self._held_for):
            self._held_for = None
            self._ledger.keep_units({})
        effects: list[Effect] = []
        stuck: set[Shape] = set()
        placed = True
        while placed:
            placed = False
            for job_id in self._jobs_in_turn():
                for shape in self._queue.shapes_of(job_id):
                    if shape in stuck:
                        continue
                    if self._place_next(job_id, shape, effects, now_s):
                        placed = True
                        if shape is self._held_for:
                            stuck.clear()  # what was kept for it may be free now
                        break
                    stuck.add(shape)
        if self._node.is_draining:
            self._place_children(now_s)
        while lease := self._reserved.take(self._pool.can_serve):
            worker = self._pool.take(lease.binding, lease.lease_id, lease.request.for_actor, now_s)
            lease.grant(worker.worker_id, now_s)
            effects.append(self.grant_of(lease))
        if self._node.is_draining:
            effects += self._send_away(now_s)
        return effects + self._pool.replenish(len(self._reserved), now_s)

    def _jobs_in_turn(self) -> list[bytes]:
        """Those that have had more of this node lately than others that wait come last."""
        jobs = self._queue.jobs()
        return sorted(jobs, key=self._usage.is_ahead) if len(jobs) > 1 else jobs

    def look(self, leases: Iterable[WorkerLease], lasting: Iterable[Holder], now_s: float) -> list[Effect]:
        """Asks for the ends of leases that others wait for, and chooses whom to keep free resources for.

        leases: those that are granted for tasks. lasting: those that do not give way, of actors and bundles.
        """
        lasting = sorted(lasting, key=lambda holder: holder.held_since_s, reverse=True)
        here = self._with_lasting(lasting)
        waiting: list[WorkerLease] = []
        effects: list[Effect] = []
        for shape in self._queue.shapes():
            decision = self.decide(shape)
            if not isinstance(decision, Wait):
                continue
            if here.node_id not in decision.feasible_node_ids:
                effects += self._send_to_wait(shape, decision, now_s, fair_share.RECLAIM_AFTER_S)
                continue
            if could_give_way(shape.required, [here]):
                effects += self._share_out(shape, decision, now_s)
            elif self._waits_for_lasting(shape, lasting):
                if self._may_leave(shape, decision, now_s):
                    self._leaves_at_s[shape] = now_s + LEAVES_PERIOD_S
                    effects += self._send_to_wait(shape, decision, now_s, SHARE_AFTER_S, True)
                continue
            waiting += self._queue.heads(shape)
        endable = [
            lease
            for lease in leases
            if not lease.request.for_actor and not self._ledger.is_blocked(lease.lease_id)
        ]
        plain = PlainCounts(self._ledger)
        by_unit = any(self._ledger.needs_units(lease.shape.required) for lease in waiting)
        counts: Counts = UnitCounts(self._ledger) if by_unit else plain
        served_at_s, usage = self._served_at_s, self._usage
        look = fair_share.Look(
            waiting, endable, lasting, counts, usage, served_at_s, self._job_served_at_s, now_s
        )
        held = fair_share.held_by_job(endable, plain) if by_unit else look.held_by_job
        wanted_by = {lease.request.job_id for lease in waiting}
        self._usage.count(held, wanted_by, self._ledger.own_total, now_s)
        kept = fair_share.to_keep_for(look, self._held_for)
        self._held_for = None if kept is None else kept.request.shape
        self._held_seat = ResourceSet() if kept is None else counts.seat_for(kept.request, kept.coming)
        self._ledger.keep_units({} if kept is None else counts.units_for(kept.request, kept.coming))
        return effects + fair_share.leases_to_end(look, kept)

    def _with_lasting(self, lasting: Iterable[Holder]) -> NodeSnapshot:
        """This node, and what these hold of it; what blocked ones lend may be had."""
        held = ResourceSet.sum_of(self._ledger.held_now(key_of(holder)) for holder in lasting)
        return replace(self.snapshot(), lasting=held)

    def _waits_for_lasting(self, shape: Shape, lasting: Sequence[Holder]) -> bool:
        """Whether actors and groups have to end for it that it found here. The others end for it."""
        num_overtakers = len(fair_share.overtakers(_oldest(self._queue.heads(shape)), lasting))
        found = lasting[num_overtakers:]
        return not num_overtakers or not could_give_way(shape.required, [self._with_lasting(found)])

    def _place_children(self, now_s: float) -> None:
        """The node is drained, and waits for the drivers and tasks on it. So what those ask for is placed, if
        no other node could ever hold it: say, it has to run in a bundle that is here."""
        for shape in self._queue.shapes():
            if not isinstance(self.decide(shape), Infeasible):
                continue
            for lease in list(self._queue.leases_of(shape)):
                is_from_here = lease.request.owner_node_id == self._node.node_id
                if is_from_here and self._ledger.can_grant(shape.required):
                    self._queue.remove(lease)
                    self.reserve(lease, now_s)
                    self._served_at_s[shape] = now_s

    def _send_away(self, now_s: float) -> list[Effect]:
        """The node is drained: what could run on others waits there. Actors' leases the GCS asks for again,
        elsewhere."""
        effects: list[Effect] = []
        for shape in self._queue.shapes():
            decision = self.decide(shape)
            if isinstance(decision, Wait):
                effects += self._send_to_wait(shape, decision, now_s)
            for lease in [lease for lease in self._queue.leases_of(shape) if lease.request.for_actor]:
                self._queue.remove(lease)
                message = explanations.node_is_drained(self._node.node_id)
                effects.append(Rejected(lease.lease_id, RejectionKind.NOT_HERE, message))
        return effects

    def _share_out(self, shape: Shape, decision: Wait, now_s: float) -> list[Effect]:
        """What has waited here for long and fits on other nodes, too, waits on all of them from now on: each
        gets the next of these requests. Leases end only for what waits beside them, and elsewhere a job may
        hold all there is. Whoever was sent here stays."""
        here = self._node.node_id
        leases = [
            lease
            for lease in self._queue.leases_of(shape)
            if not lease.has_been_shared_out
            and lease.queued_at_s <= now_s - SHARE_AFTER_S
            and lease.request.requester_node_id == here
            and not lease.request.for_actor
            and lease.request.bundles is None
        ]
        if len(decision.feasible_node_ids) < 2 or not leases:
            return []
        nodes = self._others(decision)
        nodes = could_give_way(shape.required, nodes) or nodes
        effects: list[Effect] = []
        for lease in leases:
            place = self._num_shared_out % (len(nodes) + 1)
            self._num_shared_out += 1
            if place == len(nodes):
                lease.stay()
                continue
            self._queue.remove(lease)
            effects.append(_sent_to_wait(lease, nodes[place], now_s))
        return effects

    def _may_leave(self, shape: Shape, decision: Wait, now_s: float) -> bool:
        is_due = any(lease.queued_at_s <= now_s - SHARE_AFTER_S for lease in self._queue.heads(shape))
        return is_due and len(decision.feasible_node_ids) > 1 and now_s >= self._leaves_at_s.get(shape, 0.0)

    def _others(self, decision: Wait) -> list[NodeSnapshot]:
        able = set(decision.feasible_node_ids)
        return [node for node in self._cluster.nodes() if node.node_id in able]

    def _send_to_wait(
        self, shape: Shape, decision: Wait, now_s: float, after_s: float = 0.0, only_if_it_helps: bool = False
    ) -> list[Effect]:
        """What fits on other nodes only has to wait there, because only there do leases end for it; where
        actors and groups leave room for it, if there is such a node. For actors the GCS chooses the node
        itself: again, for the oldest, if it helps. only_if_it_helps: not where there is no such node.
        after_s: only what has waited here so long."""
        nodes = self._others(decision)
        nodes = could_give_way(shape.required, nodes) or ([] if only_if_it_helps else nodes)
        if not nodes:
            return []
        names = [name for name, _ in shape.required.items()]
        node = min(nodes, key=lambda node: (node.utilization(names), node.node_id))
        effects: list[Effect] = []
        for lease in list(self._queue.leases_of(shape)):
            if lease.queued_at_s <= now_s - after_s and not lease.request.for_actor:
                self._queue.remove(lease)
                effects.append(_sent_to_wait(lease, node, now_s))
        actors = [lease for lease in self._queue.leases_of(shape) if lease.queued_at_s <= now_s - after_s]
        if only_if_it_helps and actors and (oldest := _oldest(actors)).request.bundles is None:
            self._queue.remove(oldest)
            text = explanations.kept_out(shape, self._node.node_id)
            effects.append(Rejected(oldest.lease_id, RejectionKind.NOT_HERE, text))
        return effects

    def drain(self) -> None:
        """From now on nothing is placed here."""
        self._node = replace(self._node, is_draining=True)
        self._refusals.clear()

    def total_changed(self) -> None:
        """The node has more or less than before: what could never run here may now, and the other way
        round."""
        self._refusals.clear()

    def fits_here(self, shape: Shape) -> bool:
        """Whether one may have the node's resources now."""
        if self._node.is_draining:
            return False
        is_for_it = shape is self._held_for
        return self._ledger.can_grant(shape.required, is_for_it, None if is_for_it else self.kept)

    @property
    def kept(self) -> ResourceSet | None:
        """What is kept free for the shape that others gave way to, beside the accelerators that the ledger
        keeps; None: nothing."""
        held_for = self._held_for
        if held_for is None or not self._queue.has(held_for):
            return None
        return self._ledger.beside_units(self._held_seat)

    def tick(self, now_s: float, unknown_node_s: float) -> list[Effect]:
        """Refuses what has waited `unknown_node_s` for a node that nobody has heard of. Until then it may be
        joining."""
        shapes = self._queue.shapes()
        self._refusals = {shape: self._refusals[shape] for shape in shapes if shape in self._refusals}
        self._served_at_s = {
            shape: self._served_at_s[shape] for shape in shapes if shape in self._served_at_s
        }
        self._leaves_at_s = {
            shape: self._leaves_at_s[shape] for shape in shapes if shape in self._leaves_at_s
        }
        waiting = {(lease.request.job_id, shape) for shape in shapes for lease in self._queue.heads(shape)}
        self._job_served_at_s = {key: at_s for key, at_s in self._job_served_at_s.items() if key in waiting}
        effects: list[Effect] = []
        for shape in shapes:
            if isinstance(self.decide(shape), NoSuchNode):
                for lease in list(self._queue.leases_of(shape)):
                    if now_s - lease.queued_at_s >= unknown_node_s:
                        self._queue.remove(lease)
                        effects.append(_no_such_node(lease, is_gone=False))
        return effects

    def check_invariants(self) -> None:
        """After a pass. Raises InternalError."""
        self._queue.check_invariants()
        for shape in self._queue.shapes():
            decision = self.decide(shape)
            is_placed = isinstance(decision, RunHere | SpillTo) or decision == NoSuchNode(is_gone=True)
            is_placed = is_placed or isinstance(decision, NotFree | NeverThere)
            check(not is_placed, f"what needs {shape.required} waits, and {decision} is decided")

    def grant_of(self, lease: WorkerLease) -> Granted:
        """The answer to a lease that has a worker."""
        worker_id = known(lease.worker_id, "the worker of a lease that is granted")
        return Granted(lease.lease_id, worker_id, self._ledger.instances_of(lease.lease_id), lease.number)

    def decide(self, shape: Shape) -> Decision:
        """Where the next lease of a shape would go now."""
        fits_here = self.fits_here(shape)
        if fits_here and stays(shape.required, shape.strategy, self.snapshot()):
            return RunHere()  # what the policy would say, without a look at the whole cluster
        refusal = self._refusals.get(shape)
        if refusal is not None and refusal[0] == self._cluster.revision and not fits_here:
            return refusal[1]
        others = self._cluster.nodes()
        here = self.snapshot()
        last_node_id = self._last_node_ids.get(shape.strategy.kind, b"")
        decision = decide(shape.required, shape.strategy, here, fits_here, others, last_node_id)
        if not isinstance(decision, RunHere | SpillTo):
            self._refusals[shape] = (self._cluster.revision, decision)
        return decision

    def snapshot(self) -> NodeSnapshot:
        """This node as it is now."""
        if self._node.available is not self._ledger.available:
            ledger = self._ledger
            self._node = replace(self._node, total=ledger.total, available=ledger.available)
        return self._node

    @property
    def num_shapes_remembered(self) -> int:
        return len(self._refusals.keys() | self._served_at_s.keys() | self._leaves_at_s.keys())

    def _place_next(self, job_id: bytes, shape: Shape, effects: list[Effect], now_s: float) -> bool:
        """Places one lease of the shape, if one is there and can be placed (or refused for good) now."""
        decision = self.decide(shape)
        chosen = self._node
        match decision:
            case RunHere():
                lease = self._queue.pop(job_id, shape)
                if lease.request.bundles is None:
                    self.reserve(lease, now_s)
                else:
                    self._takes_kept(shape)
                    effects.append(self._hold(lease.lease_id, lease.request.bundles, now_s))
                self._served_at_s[shape] = self._job_served_at_s[job_id, shape] = now_s
            case SpillTo(chosen):
                lease = self._queue.pop(job_id, shape)
                self._cluster.hold(chosen.node_id, shape.required, now_s)
                effects.append(SpilledBack(lease.lease_id, chosen.node_id, chosen.host, chosen.port))
            case NoSuchNode(is_gone=True):
                effects.append(_no_such_node(self._queue.pop(job_id, shape), is_gone=True))
            case NotFree():
                lease = self._queue.pop(job_id, shape)
                text = explanations.not_free(lease.request.task_name, shape.required, shape.strategy.node_id)
                effects.append(Rejected(lease.lease_id, RejectionKind.INFEASIBLE, text))
            case NeverThere(node):
                effects.append(_never_there(self._queue.pop(job_id, shape), node))
            case Wait() | Infeasible() | NoSuchNode():
                return False
            case _:
                assert_never(decision)
        kind = shape.strategy.kind
        if kind is StrategyKind.SPREAD or (kind is StrategyKind.DEFAULT and chosen is not self._node):
            self._last_node_ids[kind] = chosen.node_id
        return True

    def _hold(self, group_id: bytes, bundles: Mapping[int, ResourceSet], now_s: float) -> Effect:
        """It is the turn of these. Together they are free; parts of accelerators may not do for each."""
        refusal = self._bundles.prepare(group_id, bundles, now_s)
        return Rejected(group_id, RejectionKind.NOT_HERE, refusal) if refusal else BundlesHeld(group_id)


def _oldest(leases: Iterable[WorkerLease]) -> WorkerLease:
    return min(leases, key=lambda lease: lease.waits_since_s)


def _sent_to_wait(lease: WorkerLease, node: NodeSnapshot, now_s: float) -> Effect:
    waited_s = now_s - lease.waits_since_s
    return SpilledBack(lease.lease_id, node.node_id, node.host, node.port, may_wait=True, waited_s=waited_s)


def _no_such_node(lease: WorkerLease, is_gone: bool) -> Rejected:
    node_id = lease.shape.strategy.node_id
    if lease.request.bundles is not None:
        # They were asked for at their node, and nowhere else.
        return Rejected(lease.lease_id, RejectionKind.NOT_HERE, explanations.node_is_drained(node_id))
    text = explanations.no_such_node(lease.request.task_name, node_id, is_gone)
    return Rejected(lease.lease_id, RejectionKind.INFEASIBLE, text)


def _never_there(lease: WorkerLease, node: NodeSnapshot) -> Rejected:
    text = explanations.never_there(lease.request.task_name, lease.shape.required, lease.shape.strategy, node)
    kind = RejectionKind.INFEASIBLE if lease.request.bundles is None else RejectionKind.NOT_HERE
    return Rejected(lease.lease_id, kind, text)
