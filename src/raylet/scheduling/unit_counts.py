"""How who gives way is counted: what requests need and leases hold, in resources that add up.

Accelerators do not: of four GPUs with 0.3 free of each, 1.2 is free, and nobody who needs 0.5 fits. So where
a request needs accelerators each unit is a resource of its own ("GPU#2"). A request aims at the units that
could be free for it soonest, and these are kept for it (fair_share.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from ray_mono.common.scheduling.bundle_resources import is_in_any
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.scheduling.leases import WorkerLease
from ray_mono.raylet.scheduling.ledger import ResourceLedger


class Counts(Protocol):
    """At one moment."""

    @property
    def available(self) -> ResourceSet: ...

    def seat_for(self, request: WorkerLease, endable: Sequence[WorkerLease]) -> ResourceSet:
        """What it needs by name; of work in any bundle of a group, in the one that it could have soonest.
        endable: leases that may end; those of its own line do not for it."""

    def needs(self, request: WorkerLease, endable: Sequence[WorkerLease]) -> ResourceSet:
        """As it is counted."""

    def holds(self, lease: WorkerLease) -> ResourceSet: ...

    def units_for(
        self, request: WorkerLease, endable: Sequence[WorkerLease]
    ) -> Mapping[str, Mapping[int, int]]:
        """The accelerators that it aims at, how much of which, by resource."""


class PlainCounts:
    """Where nobody needs accelerators."""

    def __init__(self, ledger: ResourceLedger) -> None:
        self._ledger = ledger
        self.available = ledger.available

    def seat_for(self, request: WorkerLease, endable: Sequence[WorkerLease]) -> ResourceSet:
        required = request.shape.required
        if not is_in_any(required):
            return required
        others = [lease for lease in endable if not lease.is_same_line(request)]
        coming = ResourceSet.sum_of(self._ledger.held(lease.lease_id) for lease in others)
        return self._ledger.seat_soon(required, coming)

    def needs(self, request: WorkerLease, endable: Sequence[WorkerLease]) -> ResourceSet:
        return self.seat_for(request, endable)

    def holds(self, lease: WorkerLease) -> ResourceSet:
        return self._ledger.held(lease.lease_id)

    def units_for(
        self, request: WorkerLease, endable: Sequence[WorkerLease]
    ) -> Mapping[str, Mapping[int, int]]:
        return {}


class UnitCounts(PlainCounts):
    """By unit."""

    def __init__(self, ledger: ResourceLedger) -> None:
        super().__init__(ledger)
        self.available = _by_unit(ledger.available, ledger.free_units())
        self._held: dict[bytes, ResourceSet] = {}

    def needs(self, request: WorkerLease, endable: Sequence[WorkerLease]) -> ResourceSet:
        # Where they cannot be it needs what nobody has: accelerators without a number.
        return _by_unit(self.seat_for(request, endable), self.units_for(request, endable))

    def units_for(
        self, request: WorkerLease, endable: Sequence[WorkerLease]
    ) -> Mapping[str, Mapping[int, int]]:
        """Empty where these leases do not hold enough of any."""
        coming: dict[str, Counter[int]] = {}
        for lease in endable:
            if lease.is_same_line(request):
                continue
            for name, parts in self._ledger.units_of(lease.lease_id).items():
                coming.setdefault(name, Counter()).update(dict(parts))
        return self._ledger.units_soon(self.seat_for(request, endable), coming) or {}

    def holds(self, lease: WorkerLease) -> ResourceSet:
        held = self._held.get(lease.lease_id)
        if held is None:
            units = {name: dict(parts) for name, parts in self._ledger.units_of(lease.lease_id).items()}
            held = self._held[lease.lease_id] = _by_unit(self._ledger.held(lease.lease_id), units)
        return held


def _by_unit(resources: ResourceSet, units: Mapping[str, Mapping[int, int]]) -> ResourceSet:
    """units: of some of these resources, how much of which."""
    amounts = {name: amount for name, amount in resources.items() if name not in units}
    for name, parts in units.items():
        amounts |= {f"{name}#{index}": amount for index, amount in parts.items()}
    return ResourceSet(amounts)
