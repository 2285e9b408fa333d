"""Who gives way: leases that end because others wait, and what is kept for a request that needs much. Pure.

A lease lasts as long as its holder has tasks, which may be for ever. So when a request has waited
RECLAIM_AFTER_S, the holders of leases that hold what it lacks are asked to end them: as many leases as it
takes. A holder that is asked pushes nothing more, and gives the worker back when what it pushed is
answered. Nothing that runs is stopped.

    request waits
      after RECLAIM_AFTER_S   holders are asked
      after HOLD_AFTER_S      what is free is kept for it
      after DRAIN_S           what is free is kept for it half of the time

**Who is asked.** First the leases of the job that holds most of what is missing, the oldest first. So jobs
that never have enough come to hold the same: where a single lease would do, none of a job is asked that holds
no more of what is missing than the request's own does. (Were it asked, a job of short tasks would give way to
one of long ones again and again, and run a tenth of the time.) Where one job's tasks take so much that two
jobs cannot hold it side by side, they hold it in turn, each for as long: a job that is ahead, since it has
had more of the node lately than another that waits (usage.py), comes last when something is free. Until the
others have caught up, or could have, none of its tasks has others' leases ended, nor is anything kept for
it. Never asked are

- a lease of the request's own line, whose tasks are the same;
- an actor's lease, which stays;
- a lease whose worker is blocked: it waits itself;
- a lease younger than SLICE_S, so that those who take turns get something done.

A holder that was asked ASK_AGAIN_S ago runs something long: then others are asked. Nobody is asked in vain:
if all of these leases together would not do, the request waits for something else.

**On other nodes.** Leases end only for what waits beside them. So what has waited at its own raylet for
SHARE_AFTER_S waits on all nodes that could hold it, each of which gets its part (lease_scheduler.py): else a
driver that came first would keep all other nodes than that of the one that came later. Nodes tell what
actors and bundles have there, which do not give way: nothing is sent to wait where these leave too little
for it, if there are others, and what waits at such a node leaves it.

**For whom is kept what is free.** A request that needs more than one lease sets free could be overtaken for
ever by requests that need little. So what is free is kept for the one of these that has waited longest.
Nothing is kept for what waits for a blocked worker, another node, or an actor or a bundle that was there
before it. Nothing is kept where a single lease would do, and may be asked: that needs no more than its turn.
Once something is kept for a request it stays kept, also when one more lease would do: else the next in turn
would take it just then. Bundles of placement groups take nothing of what is kept, unless it is kept for them
(bundle_demand.py).

**Overtakers.** Actors and bundles do not give way. But they may come and go as tasks do, and then those that
come would overtake a large request for ever. What got its resources after a request began to wait has
overtaken it, and is expected to end: had it not been let in, the request would have been served.

Accelerators are counted by unit, and so they are kept (unit_counts.py).

**How long.** Let no task take longer than D. If D is below DRAIN_S, all of them end meanwhile, and the
request has its turn within D + 4 LOOK_S. Nobody knows whether D is longer. So after DRAIN_S the free part
of the node idles for the request half of the time only: while it is 4 to 8 s old, 16 to 32 s, and so on.
One of these times sees all tasks end, and the request has its turn within 8 (D + LOOK_S). The age counts
anew when a request of the same shape was served, or the next in line would have the node at once.

Some tasks may never end. A request that fits beside them has others asked LATE_S after these were. And it is
not expected any more that a lease ends that was asked for longer ago than the request was old when this time
began. So a node idles for the sake of an endless task for DRAIN_S, and for moments after that.

Beside a stream of actors and bundles that live no longer than L, all that was there before the request is
gone after L, and what came later ends within L as well. So it has its turn within 2 L + 4 LOOK_S where that
is below DRAIN_S, and within 8 (L + LOOK_S) in any case. An overtaker that has been there for longer than the
request was old when this time began is no part of such a stream: nothing is kept for the sake of its end. So
actors that stay idle a node for a request no longer than they came after it, in each of these times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import takewhile
from typing import NamedTuple

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.effects import ReclaimLease
from ray_mono.raylet.scheduling.leases import Shape, WorkerLease
from ray_mono.raylet.scheduling.unit_counts import Counts, Holder
from ray_mono.raylet.scheduling.usage import AHEAD_S, Usage

LOOK_S = 0.05
"""How often waiting requests are looked at, while there are any."""
RECLAIM_AFTER_S = 0.05
SLICE_S = 0.1
ASK_AGAIN_S = 0.1
HOLD_AFTER_S = 0.1
DRAIN_S = 2.0
"""Up to this age all that is free is kept for a request. So long a node may idle beside an endless task."""
LATE_S = 1.0
"""Who was asked so long ago runs something long. A request for which what is free is kept does without it, if
it can."""
WAITING_MAX = 100
"""The requests that are looked at, the oldest first: the others have their turn after these."""


Line = tuple[bytes, tuple[int, int], Shape]


def _line_of(lease: WorkerLease) -> Line:
    return lease.request.job_id, lease.line, lease.shape


@dataclass(frozen=True)
class Look:
    """At a node, at one time."""

    waiting: Sequence[WorkerLease]
    """The first of each line that waits for resources of this node."""
    endable: Sequence[WorkerLease]
    """Granted leases that are no actor's, and whose workers are not blocked."""
    lasting: Sequence[Holder]
    """Actors and bundles, the newest first."""
    counts: Counts
    """What is free may be negative."""
    usage: Usage
    served_at_s: Mapping[Shape, float]
    """When the last request of a shape got its resources."""
    job_served_at_s: Mapping[tuple[bytes, Shape], float]
    """The same, of a job's."""
    now_s: float

    @cached_property
    def held_by_job(self) -> dict[bytes, ResourceSet]:
        """What endable leases hold."""
        return held_by_job(self.endable, self.counts)

    @cached_property
    def by_line(self) -> dict[Line, tuple[WorkerLease, list[ResourceSet]]]:
        """One lease of each line, and the different amounts that its leases hold."""
        lines: dict[Line, tuple[WorkerLease, dict[int, ResourceSet]]] = {}
        for lease in self.endable:
            held = self.counts.holds(lease)
            lines.setdefault(_line_of(lease), (lease, {}))[1][id(held)] = held
        return {line: (lease, list(amounts.values())) for line, (lease, amounts) in lines.items()}

    def of_other_lines(self, request: WorkerLease) -> Sequence[WorkerLease]:
        if _line_of(request) not in self.by_line:
            return self.endable
        return [lease for lease in self.endable if not lease.is_same_line(request)]

    def oldest(self) -> list[WorkerLease]:
        due = [lease for lease in self.waiting if self.now_s - lease.queued_at_s >= RECLAIM_AFTER_S]
        return sorted(due, key=lambda lease: lease.number)[:WAITING_MAX]

    def age_s(self, request: WorkerLease) -> float:
        """Since it came, or one like it was served."""
        return self.now_s - max(request.queued_at_s, self.served_at_s.get(request.shape, 0.0))

    def is_others_turn(self, request: WorkerLease) -> bool:
        """Whether its job is ahead of one that wants more as well, and that could not have caught up since
        the request waits. Actors and groups come once."""
        job_id = request.request.job_id
        ahead_s = self.usage.ahead_s(job_id)
        if request.request.for_actor or not ahead_s:
            return False
        since_s = max(request.queued_at_s, self.job_served_at_s.get((job_id, request.shape), 0.0))
        return self.now_s - since_s < ahead_s * self.usage.num_wanting

    def is_askable(self, request: WorkerLease, missing: ResourceSet, lease: WorkerLease) -> bool:
        """Whether it may be asked, where it alone would do. It is not of the request's line."""
        own_id, job_id = request.request.job_id, lease.request.job_id
        if job_id == own_id or self.usage.of(job_id) > self.usage.of(own_id) + AHEAD_S:
            return True
        held = self.held_by_job
        return _holds_more(held[job_id], held.get(own_id, ResourceSet()), missing)

    def needs_its_turn(self, request: WorkerLease, required: ResourceSet) -> bool:
        """Whether it needs no more than one lease sets free, and one of these may be asked; or none may be,
        of any size, since its job holds its share."""
        free = self.counts.available
        missing = required.missing_from(free)
        is_small, may_ask = False, False
        for lease, amounts in self.by_line.values():
            is_askable = not lease.is_same_line(request) and self.is_askable(request, missing, lease)
            would_do = any(required.fits_in(free + held) for held in amounts)
            if is_askable and would_do:
                return True
            is_small, may_ask = is_small or would_do, may_ask or is_askable
        return is_small and not may_ask


class Kept(NamedTuple):
    """For whom what is free is kept."""

    request: WorkerLease
    coming: Sequence[Holder]
    """All of which it is expected that they end for it."""
    overtakers: Sequence[Holder]
    """Those of these that do not give way."""


def overtakers(request: WorkerLease, lasting: Sequence[Holder]) -> list[Holder]:
    """lasting: actors and bundles, the newest first."""
    return list(takewhile(lambda holder: holder.held_since_s > request.waits_since_s, lasting))


def leases_to_end(look: Look, kept: Kept | None) -> list[ReclaimLease]:
    """Marks leases as asked for, and returns what their holders are told. kept: for whose shape what is free
    is kept."""
    counts, now_s = look.counts, look.now_s
    held_for = None if kept is None else kept.request.shape
    # Expected: what is free or will be soon; each request takes its part of it. Late: what was asked for
    # before, and runs something long; very late: what may run for ever.
    expected, late, very_late = counts.available, ResourceSet(), ResourceSet()
    for lease in look.endable:
        if lease.asked_at_s is not None and now_s - lease.asked_at_s < ASK_AGAIN_S:
            expected = expected + counts.holds(lease)
        elif lease.asked_at_s is not None and now_s - lease.asked_at_s < LATE_S:
            late = late + counts.holds(lease)
        elif lease.asked_at_s is not None:
            very_late = very_late + counts.holds(lease)
    effects: list[ReclaimLease] = []
    for request in sorted(look.oldest(), key=lambda request: request.shape != held_for):
        others = look.of_other_lines(request)
        coming: Sequence[Holder] = others
        old_s, awaited = SLICE_S, ResourceSet()
        if kept is not None and request.shape == held_for:
            # What comes free is kept for it. So it is the first to count on that, and it waits for what is
            # late, and for what has overtaken it.
            coming = kept.coming
            old_s, awaited, late = 0.0, late, ResourceSet()
            awaited = awaited + ResourceSet.sum_of(map(counts.holds, kept.overtakers))
        required = counts.needs(request, coming)
        missing = required.missing_from(expected)
        candidates = [
            lease for lease in others if lease.asked_at_s is None and now_s - lease.granted_at_s >= old_s
        ]
        if request.shape != held_for:
            candidates = _askable(look, request, missing, candidates)
        by_most = partial(_most_of, missing, look.held_by_job)
        candidates.sort(key=lambda lease: (-by_most(lease), lease.granted_at_s, lease.number))
        chosen = _enough(required, expected + awaited, candidates, counts)
        if kept is not None and request.shape == held_for and not chosen:
            if not required.fits_in(expected + awaited):
                awaited = awaited + very_late
            chosen = _enough(required, expected + awaited, candidates, counts)
        for lease in chosen:
            lease.ask_to_end(now_s)
            expected = expected + counts.holds(lease)
            effects.append(ReclaimLease(lease.lease_id, lease.request.requester))
        if required.fits_in(expected + awaited):
            expected = expected - required.missing_from(awaited)
    return effects


def _askable(
    look: Look, request: WorkerLease, missing: ResourceSet, candidates: Sequence[WorkerLease]
) -> list[WorkerLease]:
    """Those of these that may be asked for a request for which nothing is kept."""
    own_id = request.request.job_id
    if look.is_others_turn(request):
        return [lease for lease in candidates if lease.request.job_id == own_id]
    if not any(missing.fits_in(look.counts.holds(lease)) for lease in candidates):
        return list(candidates)
    return [lease for lease in candidates if look.is_askable(request, missing, lease)]


def to_keep_for(look: Look, held_for: Shape | None) -> Kept | None:
    """A request for whose shape what is free is kept now. held_for: the shape until now."""
    counts, now_s = look.counts, look.now_s
    for request in look.oldest():
        age_s = look.age_s(request)
        if age_s < HOLD_AFTER_S:
            continue
        is_its_time, began_s = _time_of(age_s)
        over = overtakers(request, look.lasting)
        passing = [holder for holder in over if now_s - holder.held_since_s <= began_s]
        ends = [lease for lease in look.of_other_lines(request) if not lease.is_late(now_s - began_s)]
        coming = [*ends, *passing]
        required, within_reach = counts.needs(request, coming), counts.available
        # With what is kept for it already, one lease more may do: it is not yet its turn.
        if request.shape != held_for and (
            look.needs_its_turn(request, required)
            or any(required.fits_in(counts.available + counts.holds(holder)) for holder in passing)
        ):
            continue  # it needs its turn and nothing else
        if look.is_others_turn(request):
            continue
        for holder in coming:
            within_reach = within_reach + counts.holds(holder)
        if required.fits_in(within_reach):
            # Only for one at a time: what is kept for two may serve neither.
            return Kept(request, coming, passing) if is_its_time else None
    return None


def _time_of(age_s: float) -> tuple[bool, float]:
    """Whether what is free is kept for a request of that age, and the age at which the present time of
    keeping, or of not keeping, began; DRAIN_S for the first one."""
    if age_s < DRAIN_S:
        return True, DRAIN_S
    number = int(math.log2(age_s / DRAIN_S))
    return number % 2 == 1, DRAIN_S * 2.0**number


def held_by_job(leases: Sequence[WorkerLease], counts: Counts) -> dict[bytes, ResourceSet]:
    held: dict[bytes, ResourceSet] = {}
    for lease in leases:
        job_id = lease.request.job_id
        held[job_id] = held.get(job_id, ResourceSet()) + counts.holds(lease)
    return held


def _most_of(missing: ResourceSet, held: Mapping[bytes, ResourceSet], lease: WorkerLease) -> float:
    """How much of what is missing the lease's job holds."""
    by_job = held[lease.request.job_id]
    return max((by_job.get(name) / amount for name, amount in missing.items()), default=0.0)


def _holds_more(some: ResourceSet, others: ResourceSet, of: ResourceSet) -> bool:
    return all(some.get(name) > others.get(name) for name, _ in of.items())


def _enough(
    required: ResourceSet, expected: ResourceSet, candidates: Sequence[WorkerLease], counts: Counts
) -> list[WorkerLease]:
    """The first candidates whose ends make it fit; none where all of them do not."""
    chosen: list[WorkerLease] = []
    missing = required.missing_from(expected)
    for lease in candidates:
        if not missing:
            break
        held = counts.holds(lease)
        if any(held.get(name) for name, _ in missing.items()):
            chosen.append(lease)
            expected = expected + held
            missing = required.missing_from(expected)
    return [] if missing else chosen
