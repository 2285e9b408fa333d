"""Who gives way: leases that end because others wait, and what is kept for a request that needs much. Pure.

A lease lasts as long as its holder has tasks, which may be for ever. So when a request has waited
RECLAIM_AFTER_S, the holders of leases that hold what it lacks are asked to end them: as many leases as it
takes. A holder that is asked pushes nothing more, and gives the worker back when what it pushed is
answered. Nothing that runs is stopped.

    request waits
      after RECLAIM_AFTER_S   holders are asked
      after HOLD_AFTER_S      what is free is kept for it
      after DRAIN_S           what is free is kept for it half of the time

**Who is asked.** First the leases of the job that holds most, the oldest first. So jobs that never have
enough come to hold the same, if their tasks need the same: where a single lease would do, none of a job is
asked that holds no more of what is missing than the request's own does. (Were it asked, a job of short tasks
would give way to one of long ones again and again, and run a tenth of the time.) Never asked are

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
Nothing is kept for what waits for an actor, a blocked worker or another node. Nothing is kept for what a
single lease would do, since that needs no more than its turn. Once something is kept for a request it stays
kept, also when one more lease would do: else the next in turn would take it just then. Bundles of placement
groups take nothing of what is kept, unless it is kept for them (bundle_demand.py).

Accelerators are counted by unit, and so they are kept (unit_counts.py).

**How long.** Let no task take longer than D. If D is below DRAIN_S, all of them end meanwhile, and the
request has its turn within D + 4 LOOK_S. Nobody knows whether D is longer. So after DRAIN_S the free part
of the node idles for the request half of the time only: while it is 4 to 8 s old, 16 to 32 s, and so on.
One of these times sees all tasks end, and the request has its turn within 8 (D + LOOK_S). The age counts
anew when a request of the same shape was served, or the next in line would have the node at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.effects import ReclaimLease
from ray_mono.raylet.scheduling.leases import Shape, WorkerLease
from ray_mono.raylet.scheduling.unit_counts import Counts

LOOK_S = 0.05
"""How often waiting requests are looked at, while there are any."""
RECLAIM_AFTER_S = 0.05
SLICE_S = 0.1
ASK_AGAIN_S = 0.1
HOLD_AFTER_S = 0.1
DRAIN_S = 2.0
"""Up to this age all that is free is kept for a request. So long a node may idle beside an endless task."""
WAITING_MAX = 100
"""The requests that are looked at, the oldest first: the others have their turn after these."""


def leases_to_end(
    waiting: Sequence[WorkerLease],
    endable: Sequence[WorkerLease],
    counts: Counts,
    held_for: Shape | None,
    now_s: float,
) -> list[ReclaimLease]:
    """Marks leases as asked for, and returns what their holders are told.

    waiting: the first of each line that waits for resources of this node. endable: granted leases that are
    no actor's, and whose workers are not blocked. counts: what is free may be negative. held_for: the shape
    that what is free is kept for.
    """
    num_of_job = Counter(lease.request.job_id for lease in endable)
    held_by_job: dict[bytes, ResourceSet] = {}
    for lease in endable:
        job_id = lease.request.job_id
        held_by_job[job_id] = held_by_job.get(job_id, ResourceSet()) + counts.holds(lease)
    order = sorted(
        endable, key=lambda lease: (-num_of_job[lease.request.job_id], lease.granted_at_s, lease.number)
    )
    # Expected: what is free or will be soon; each request takes its part of it. Late: what was asked for
    # before, and runs something long.
    expected, late = counts.available, ResourceSet()
    for lease in order:
        if lease.asked_at_s is not None and now_s - lease.asked_at_s < ASK_AGAIN_S:
            expected = expected + counts.holds(lease)
        elif lease.asked_at_s is not None:
            late = late + counts.holds(lease)
    effects: list[ReclaimLease] = []
    for request in sorted(_oldest(waiting, now_s), key=lambda request: request.shape != held_for):
        required = counts.needs(request, endable)
        old_s, awaited = SLICE_S, ResourceSet()
        if request.shape == held_for:
            # What comes free is kept for it. So it is the first to count on that, and it waits for what is
            # late.
            old_s, awaited, late = 0.0, late, ResourceSet()
        candidates = [
            lease
            for lease in order
            if lease.asked_at_s is None
            and now_s - lease.granted_at_s >= old_s
            and not lease.is_same_line(request)
        ]
        missing = required.missing_from(expected)
        if request.shape != held_for and any(missing.fits_in(counts.holds(lease)) for lease in candidates):
            own_id = request.request.job_id
            own = held_by_job.get(own_id, ResourceSet())
            candidates = [
                lease
                for lease in candidates
                if lease.request.job_id == own_id
                or _holds_more(held_by_job[lease.request.job_id], own, missing)
            ]
        chosen = _enough(required, expected + awaited, candidates, counts)
        for lease in chosen:
            lease.ask_to_end(now_s)
            expected = expected + counts.holds(lease)
            effects.append(ReclaimLease(lease.lease_id, lease.request.requester))
        if required.fits_in(expected + awaited):
            expected = expected - required.missing_from(awaited)
    return effects


def request_to_hold_for(
    waiting: Sequence[WorkerLease],
    endable: Sequence[WorkerLease],
    counts: Counts,
    served_at_s: Mapping[Shape, float],
    held_for: Shape | None,
    now_s: float,
) -> WorkerLease | None:
    """A request for whose shape what is free is kept now.

    served_at_s: when the last request of a shape got its resources. held_for: the shape until now.
    """
    sizes = {id(held): held for held in map(counts.holds, endable)}.values()
    for request in _oldest(waiting, now_s):
        age_s = now_s - max(request.queued_at_s, served_at_s.get(request.shape, 0.0))
        if age_s < HOLD_AFTER_S:
            continue
        required, within_reach = counts.needs(request, endable), counts.available
        # With what is kept for it already, one lease more may do: it is not yet its turn.
        if request.shape != held_for and any(required.fits_in(counts.available + held) for held in sizes):
            continue  # it needs its turn and nothing else
        for lease in endable:
            if not lease.is_same_line(request):
                within_reach = within_reach + counts.holds(lease)
        if required.fits_in(within_reach):
            # Only for one at a time: what is kept for two may serve neither.
            is_its_time = age_s < DRAIN_S or int(math.log2(age_s / DRAIN_S)) % 2 == 1
            return request if is_its_time else None
    return None


def _oldest(waiting: Sequence[WorkerLease], now_s: float) -> list[WorkerLease]:
    due = [lease for lease in waiting if now_s - lease.queued_at_s >= RECLAIM_AFTER_S]
    return sorted(due, key=lambda lease: lease.number)[:WAITING_MAX]


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
