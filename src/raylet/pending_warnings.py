"""When a driver is told that its task cannot be placed: once per shape and job, and only after it has waited
a while.

Looks at every shape that waits (not at every lease). A shape that no node could ever hold is told after
`infeasible_s`; one that would fit, but only into what living actors of this node hold, after `pending_s`.
Says nothing about shapes that simply wait their turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ray_mono.common.resources import ResourceSet
from ray_mono.raylet import explanations
from ray_mono.raylet.effects import WarnJob
from ray_mono.raylet.lease_queue import LeaseQueue
from ray_mono.raylet.leases import Lease, Shape
from ray_mono.raylet.scheduling_policy import Decision, Infeasible, NodeSnapshot, Wait


@dataclass(frozen=True)
class Circumstances:
    """What a sweep is judged by."""

    here: NodeSnapshot
    others: list[NodeSnapshot]
    held_by_actors: ResourceSet


class PendingWarnings:
    """Remembers what was said to whom."""

    def __init__(self, infeasible_s: float, pending_s: float) -> None:
        self._infeasible_s = infeasible_s
        self._pending_s = pending_s
        self._said: set[tuple[Shape, bytes]] = set()

    def job_finished(self, job_id: bytes) -> None:
        self._said = {(shape, job) for shape, job in self._said if job != job_id}

    def sweep(
        self, queue: LeaseQueue, decide: Callable[[Shape], Decision], world: Circumstances, now_s: float
    ) -> list[WarnJob]:
        """The warnings that are due now."""
        warnings = []
        for shape in queue.shapes():
            decision = decide(shape)
            for job_id, lease in self._oldest_per_job(queue, shape).items():
                message = self._message(lease, decision, world, now_s - lease.queued_at_s)
                if message and (shape, job_id) not in self._said:
                    self._said.add((shape, job_id))
                    warnings.append(WarnJob(job_id, "infeasible_task", message))
        return warnings

    def _message(self, lease: Lease, decision: Decision, world: Circumstances, waited_s: float) -> str:
        if lease.request.for_actor:
            return ""  # the GCS, which asked, knows all nodes and tells the driver itself
        name = lease.request.task_name or "A task"
        required = lease.shape.required
        if isinstance(decision, Infeasible) and waited_s >= self._infeasible_s:
            return explanations.infeasible(name, required, lease.shape.strategy, [world.here, *world.others])
        beside_actors = world.here.total - world.held_by_actors
        if (
            isinstance(decision, Wait)
            and waited_s >= self._pending_s
            and decision.feasible_node_ids == (world.here.node_id,)
            and not required.fits_in(beside_actors)
        ):
            return explanations.held_by_actors(
                name, required, world.held_by_actors, world.here.total, waited_s
            )
        return ""

    @staticmethod
    def _oldest_per_job(queue: LeaseQueue, shape: Shape) -> dict[bytes, Lease]:
        """The head of each line is its oldest."""
        oldest: dict[bytes, Lease] = {}
        for lease in queue.heads(shape):
            known = oldest.get(lease.request.job_id)
            if known is None or lease.number < known.number:
                oldest[lease.request.job_id] = lease
        return oldest
