"""What each job has had of this node lately, while others waited. Pure.

Who holds most now says little where tasks differ: a job whose task takes the whole node, and one of many
small tasks, hold it in turn. So for how long counts as well. It is counted in seconds of the whole node: half
of its CPUs for two seconds are one. Where a job has several resources, the one counts of which it has most.

A job that comes, or wants no more than it has, is taken to have had as much as the one that had most: it is
owed nothing, and owes nothing. Nobody is owed more than OWED_MAX_S.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set

from ray_mono.common.scheduling.resources import ResourceSet

OWED_MAX_S = 10.0
FORGET_AFTER_S = 1.0
"""When nobody has waited for so long all begin anew."""


class Usage:
    """Of the jobs that hold leases for tasks on one node, or wait for them."""

    def __init__(self) -> None:
        self._used_s: dict[bytes, float] = {}
        self._counted_at_s = -math.inf

    def count(
        self, held: Mapping[bytes, ResourceSet], wanted_by: Set[bytes], total: ResourceSet, now_s: float
    ) -> None:
        """To be called every LOOK_S while leases wait. held: by job. wanted_by: the jobs that want more."""
        passed_s = now_s - self._counted_at_s
        self._counted_at_s = now_s
        if passed_s > FORGET_AFTER_S:
            self._used_s, passed_s = {}, 0.0
        most_s = max(self._used_s.values(), default=0.0)
        used_s = {job_id: self._used_s.get(job_id, most_s) for job_id in held.keys() | wanted_by}
        for job_id, resources in held.items():
            used_s[job_id] += passed_s * _share(resources, total)
        most_s = max(used_s.values(), default=0.0)
        least_s = most_s - OWED_MAX_S
        self._used_s = {
            job_id: max(used, least_s) if job_id in wanted_by else most_s for job_id, used in used_s.items()
        }

    def of(self, job_id: bytes) -> float:
        """In seconds of the whole node, since some time that is the same for all."""
        return self._used_s.get(job_id, 0.0)


def _share(held: ResourceSet, total: ResourceSet) -> float:
    return max((amount / total.get(name) for name, amount in held.items() if total.get(name)), default=0.0)
