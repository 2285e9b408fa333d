"""What each job has had of this node lately, while others waited. Pure.

Who holds most now says little where tasks differ: a job whose task takes the whole node, and one of many
small tasks, hold it in turn. So for how long counts as well. It is counted in seconds of the whole node: half
of its CPUs for two seconds are one. Where a job has several resources, the one counts of which it has most.

A job that comes is taken to have had as much as the one of those that wait that had least: it owes nothing,
and is owed no more than that one. So is one that wants no more than it has. Nobody is owed more than
OWED_MAX_S, and for so long it is known what a job had that has left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set

from ray_mono.common.scheduling.resources import ResourceSet

AHEAD_S = 0.5
"""Of the whole node: of jobs that differ less none is ahead."""
OWED_MAX_S = 10.0
FORGET_AFTER_S = 1.0
"""When nobody has waited for so long all begin anew."""


class Usage:
    """Of the jobs that hold leases for tasks on one node, or wait for them."""

    def __init__(self) -> None:
        self._used_s: dict[bytes, float] = {}
        # When they were there last.
        self._seen_at_s: dict[bytes, float] = {}
        self._counted_at_s = -math.inf
        # What the one of those that wait has had that had least, and how many wait.
        self._least_s = 0.0
        self._num_wanting = 0

    def count(
        self, held: Mapping[bytes, ResourceSet], wanted_by: Set[bytes], total: ResourceSet, now_s: float
    ) -> None:
        """To be called every LOOK_S while leases wait. held: by job. wanted_by: the jobs that want more."""
        passed_s = now_s - self._counted_at_s
        self._counted_at_s = now_s
        if passed_s > FORGET_AFTER_S:
            self._used_s, passed_s = {}, 0.0
        used_s = self._used_s
        least_s = self._least_of(wanted_by & used_s.keys())
        for job_id in held.keys() | wanted_by:
            used_s.setdefault(job_id, least_s)
            self._seen_at_s[job_id] = now_s
            if job_id not in wanted_by:
                used_s[job_id] = max(used_s[job_id], least_s)
        for job_id, resources in held.items():
            used_s[job_id] += passed_s * _share(resources, total)
        floor_s = max(used_s.values(), default=0.0) - OWED_MAX_S
        self._used_s = {
            job_id: max(used, floor_s)
            for job_id, used in used_s.items()
            if now_s - self._seen_at_s[job_id] <= OWED_MAX_S
        }
        self._seen_at_s = {job_id: self._seen_at_s[job_id] for job_id in self._used_s}
        self._least_s, self._num_wanting = self._least_of(wanted_by), len(wanted_by)

    def _least_of(self, job_ids: Iterable[bytes]) -> float:
        most_s = max(self._used_s.values(), default=0.0)
        return min((self._used_s[job_id] for job_id in job_ids), default=most_s)

    @property
    def num_wanting(self) -> int:
        """Of the jobs that want more."""
        return self._num_wanting

    def ahead_s(self, job_id: bytes) -> float:
        """Of the one that has had least of those that want more, and by more than AHEAD_S; 0: it is not."""
        ahead_s = self.of(job_id) - self._least_s
        return ahead_s if ahead_s > AHEAD_S else 0.0

    def is_ahead(self, job_id: bytes) -> bool:
        return self.ahead_s(job_id) > 0

    def of(self, job_id: bytes) -> float:
        """In seconds of the whole node, since some time that is the same for all."""
        return self._used_s.get(job_id, 0.0)


def _share(held: ResourceSet, total: ResourceSet) -> float:
    return max((amount / total.get(name) for name, amount in held.items() if total.get(name)), default=0.0)
