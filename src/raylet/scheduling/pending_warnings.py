"""When a driver is told that its task cannot be placed: once per shape and job, and only after it has
waited a while.

Looks at every shape that waits, not at every lease. A driver is told of a shape that no node could ever
hold after `infeasible_s`, and of one that would fit, but only into what living actors of this node hold,
after `pending_s`. So is one that waits for a placement group which has no place itself. Nothing is said of
shapes that simply wait for their turn.

Before that, garbage is collected everywhere: handles in cycles keep actors that nobody can reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray_mono.common.scheduling.bundle_resources import fits
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.effects import CollectGarbage, WarnJob
from ray_mono.raylet.scheduling import explanations
from ray_mono.raylet.scheduling.lease_queue import LeaseQueue
from ray_mono.raylet.scheduling.leases import Shape, WorkerLease
from ray_mono.raylet.scheduling.scheduling_policy import Decision, Infeasible, Wait

COLLECT_AFTER_S = 2.0
COLLECT_PERIOD_S = 30.0


@dataclass(frozen=True)
class Circumstances:
    """What a sweep is judged by."""

    here: NodeSnapshot
    others: Sequence[NodeSnapshot]
    held_by_actors: ResourceSet


class PendingWarnings:
    """Remembers what was said to whom."""

    def __init__(self, infeasible_s: float, pending_s: float) -> None:
        self._infeasible_s = infeasible_s
        self._pending_s = pending_s
        self._said: set[tuple[Shape, bytes]] = set()
        self._collect_from_s = -math.inf

    def job_finished(self, job_id: bytes) -> None:
        self._said = {(shape, job) for shape, job in self._said if job != job_id}

    def sweep(
        self,
        queue: LeaseQueue,
        decide: Callable[[Shape], Decision],
        circumstances: Circumstances,
        now_s: float,
    ) -> list[WarnJob | CollectGarbage]:
        """What is due now."""
        due: list[WarnJob | CollectGarbage] = []
        for shape in queue.shapes():
            decision = decide(shape)
            is_kept_out = isinstance(decision, Wait) and not fits(
                shape.required, circumstances.here.total - circumstances.held_by_actors
            )
            for job_id, lease in self._oldest_per_job(queue, shape).items():
                waited_s = now_s - lease.queued_at_s
                if is_kept_out and waited_s >= COLLECT_AFTER_S and now_s >= self._collect_from_s:
                    self._collect_from_s = now_s + COLLECT_PERIOD_S
                    due.append(CollectGarbage())
                message = self._message(lease, decision, is_kept_out, circumstances, waited_s)
                if message and (shape, job_id) not in self._said:
                    self._said.add((shape, job_id))
                    due.append(WarnJob(job_id, "infeasible_task", message))
        return due

    def _message(
        self,
        lease: WorkerLease,
        decision: Decision,
        is_kept_out: bool,
        circumstances: Circumstances,
        waited_s: float,
    ) -> str:
        if lease.request.for_actor:
            return ""  # the GCS, which asked, knows all nodes and tells the driver itself
        name = lease.request.task_name or "A task"
        required, strategy = lease.shape.required, lease.shape.strategy
        nodes = [circumstances.here, *circumstances.others]
        if strategy.group_id and isinstance(decision, Infeasible):
            # A group may wait long for its place, which is no fault of what waits for the group.
            is_placed = explanations.is_placed(strategy, nodes)
            is_due = waited_s >= (self._infeasible_s if is_placed else self._pending_s)
            return explanations.in_group(name, required, strategy, nodes) if is_due else ""
        if isinstance(decision, Infeasible) and waited_s >= self._infeasible_s:
            return explanations.infeasible(name, required, strategy, nodes)
        if (
            isinstance(decision, Wait)
            and is_kept_out
            and waited_s >= self._pending_s
            and decision.feasible_node_ids == (circumstances.here.node_id,)
        ):
            if strategy.group_id:
                return explanations.held_by_actors_in_group(name, required, strategy, waited_s)
            return explanations.held_by_actors(
                name, required, circumstances.held_by_actors, circumstances.here.total, waited_s
            )
        return ""

    @staticmethod
    def _oldest_per_job(queue: LeaseQueue, shape: Shape) -> dict[bytes, WorkerLease]:
        """The head of each line is its oldest."""
        oldest: dict[bytes, WorkerLease] = {}
        for lease in queue.heads(shape):
            known = oldest.get(lease.request.job_id)
            if known is None or lease.number < known.number:
                oldest[lease.request.job_id] = lease
        return oldest
