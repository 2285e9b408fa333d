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
from ray_mono.raylet.scheduling.bundles import Bundle
from ray_mono.raylet.scheduling.leases import WorkerLease
from ray_mono.raylet.scheduling.ledger import ResourceLedger

Holder = WorkerLease | Bundle
"""Of resources of this node."""


class Counts(Protocol):
    """At one moment."""

    @property
    def available(self) -> ResourceSet: ...

    def seat_for(self, request: WorkerLease, coming: Sequence[Holder]) -> ResourceSet:
        """What it needs by name; of work in any bundle of a group, in the one that it could have soonest.
        coming: what is expected to end for it."""

    def needs(self, request: WorkerLease, coming: Sequence[Holder]) -> ResourceSet:
        """As it is counted."""

    def holds(self, holder: Holder) -> ResourceSet:
        """What would be free if that ended."""

    def units_for(self, request: WorkerLease, coming: Sequence[Holder]) -> Mapping[str, Mapping[int, int]]:
        """The accelerators that it aims at, how much of which, by resource."""


class PlainCounts:
    """Where nobody needs accelerators."""

    def __init__(self, ledger: ResourceLedger) -> None:
        self._ledger = ledger
        self.available = ledger.available

    def seat_for(self, request: WorkerLease, coming: Sequence[Holder]) -> ResourceSet:
        required = request.shape.required
        if not is_in_any(required):
            return required
        soon = ResourceSet.sum_of(self._ledger.held_now(key_of(holder)) for holder in coming)
        return self._ledger.seat_soon(required, soon)

    def needs(self, request: WorkerLease, coming: Sequence[Holder]) -> ResourceSet:
        return self.seat_for(request, coming)

    def holds(self, holder: Holder) -> ResourceSet:
        return self._ledger.held_now(key_of(holder))

    def units_for(self, request: WorkerLease, coming: Sequence[Holder]) -> Mapping[str, Mapping[int, int]]:
        return {}


class UnitCounts(PlainCounts):
    """By unit."""

    def __init__(self, ledger: ResourceLedger) -> None:
        super().__init__(ledger)
        self.available = _by_unit(ledger.available, ledger.free_units())
        self._held: dict[bytes | Bundle, ResourceSet] = {}

    def needs(self, request: WorkerLease, coming: Sequence[Holder]) -> ResourceSet:
        # Where they cannot be it needs what nobody has: accelerators without a number.
        return _by_unit(self.seat_for(request, coming), self.units_for(request, coming))

    def units_for(self, request: WorkerLease, coming: Sequence[Holder]) -> Mapping[str, Mapping[int, int]]:
        """Empty where these do not hold enough of any."""
        soon: dict[str, Counter[int]] = {}
        for holder in coming:
            for name, parts in self._ledger.units_of(key_of(holder)).items():
                soon.setdefault(name, Counter()).update(dict(parts))
        return self._ledger.units_soon(self.seat_for(request, coming), soon) or {}

    def holds(self, holder: Holder) -> ResourceSet:
        key = key_of(holder)
        held = self._held.get(key)
        if held is None:
            units = {name: dict(parts) for name, parts in self._ledger.units_of(key).items()}
            held = self._held[key] = _by_unit(self._ledger.held_now(key), units)
        return held


def key_of(holder: Holder) -> bytes | Bundle:
    """In the ledger."""
    return holder.lease_id if isinstance(holder, WorkerLease) else holder


def _by_unit(resources: ResourceSet, units: Mapping[str, Mapping[int, int]]) -> ResourceSet:
    """units: of some of these resources, how much of which."""
    amounts = {name: amount for name, amount in resources.items() if name not in units}
    for name, parts in units.items():
        amounts |= {f"{name}#{index}": amount for index, amount in parts.items()}
    return ResourceSet(amounts)
