"""The ledger: what this node has, what is free, and which lease or bundle holds the rest. Pure, and the only
one that counts.

    free + what leases and bundles hold = total        (always, exactly; `check_invariants` recounts it)

A lease whose worker is blocked in `get` gives back its CPUs and nothing else: memory and accelerators stay
where they are. When the value is there the worker goes on at once, without asking. So free CPUs may go
below zero, by exactly what went on. While they are, nothing is granted, so the node works its debt off, and
never owes more than that.

A bundle of a placement group holds what it was prepared with. While it is committed the total has that again,
under the names of its group (bundles.py), and work in the group is granted that. The CPUs of a group may go
below zero as well. Such a debt concerns nobody but who asks for the same names, nor do the debts of the node
concern work in groups: its CPUs are its bundles'. What a bundle gave is gone from the total at once when it
is returned, so whatever is still held of it counts as less than nothing free until it is given back.

The ledger does not know workers, queues or other nodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_mono.common.our_bug import InternalError, check
from ray_mono.common.scheduling.bundle_resources import (
    ANY_BUNDLE,
    BUNDLE,
    group_of_any,
    in_bundle,
    is_in_group,
    name_in,
    named,
    nearest,
    plain_name,
)
from ray_mono.common.scheduling.resources import CPU, GPU, MEMORY, SCALE, UNIT_INSTANCE_RESOURCES, ResourceSet
from ray_mono.raylet.scheduling.bundles import Bundle, BundleState
from ray_mono.raylet.scheduling.instances import Instances, Parts, find, find_soon, room_in

_Units = list[tuple[list[Instances], Parts]]
"""Units, and all the instances that they are taken from."""


@dataclass
class _Holding:
    resources: ResourceSet
    units: _Units = field(default_factory=list)
    is_blocked: bool = False

    @property
    def cpus(self) -> ResourceSet:
        """What it lends while it is blocked."""
        return self.resources.only(CPU) or named(self.resources, CPU)

    @property
    def held_now(self) -> ResourceSet:
        return self.resources - self.cpus if self.is_blocked else self.resources

    @property
    def indices(self) -> dict[str, tuple[int, ...]]:
        """Of the accelerators, by their plain name."""
        found: dict[str, list[int]] = {}
        for pools, parts in self.units:
            found.setdefault(pools[0].plain_name, []).extend(index for index, _ in parts)
        return {name: tuple(dict.fromkeys(indices)) for name, indices in found.items()}

    def block(self, is_blocked: bool) -> None:
        self.is_blocked = is_blocked


class ResourceLedger:
    """Total, free and held resources of one node."""

    def __init__(self, total: ResourceSet) -> None:
        """Raises ValueError where an accelerator's total is not a whole number."""
        self.own_total = total
        # Invariant: the node's own, and what its committed bundles give.
        self.total = total
        # Invariant: total - sum(held_now of every holding).
        self._available = total
        self._holdings: dict[bytes, _Holding] = {}
        self._bundles: dict[Bundle, _Holding] = {}
        # Accelerators that are kept for a request that waits for them: how much of which unit.
        self._kept_units: Mapping[str, Mapping[int, int]] = {}
        self._instances = {
            name: Instances(name, amount) for name, amount in total.items() if name in UNIT_INSTANCE_RESOURCES
        }

    @property
    def available(self) -> ResourceSet:
        """What is free; CPU may be negative, and what groups have."""
        return self._available

    @property
    def is_overdrawn(self) -> bool:
        """Whether resumed workers hold more than there is: then nothing is granted but to work in groups."""
        return self._available.get(CPU) < 0

    def keep_units(self, units: Mapping[str, Mapping[int, int]]) -> None:
        """From now on these accelerators, by resource and index, are kept for one who waits for them."""
        self._kept_units = units

    def can_grant(
        self, required: ResourceSet, for_kept: bool = False, kept: ResourceSet | None = None
    ) -> bool:
        """Whether `required` is free now, whole accelerators included, and for work in any bundle of a group
        all of it in one. for_kept: also accelerators that are kept. kept: not free, beside accelerators."""
        # What is asked most often comes first: what waits does not fit, and few nodes have accelerators.
        return (
            required.fits_in(self._available)
            and (self._available.get(CPU) >= 0 or is_in_group(required))
            and self._seat(required, for_kept, kept) is not None
        )

    def _seat(
        self, required: ResourceSet, for_kept: bool = False, kept: ResourceSet | None = None
    ) -> ResourceSet | None:
        """What it would hold, which has one bundle's names for work in any: of the one of which least is left
        then, so that there is room for what needs more. None where it is not free."""
        free = self._available if kept is None else spare(self._available, kept)
        group_id = group_of_any(required) if self._bundles else None
        if group_id is None:
            return required if self._is_free(required, free, for_kept) else None
        found: list[tuple[tuple[int, ...], int, ResourceSet]] = []
        for bundle in self._bundles:
            if bundle.group_id == group_id:
                seat = in_bundle(required, group_id, bundle.index)
                if self._is_free(seat, free, for_kept):
                    found.append((_left_of(bundle, seat, free), bundle.index, seat))
        return min(found, key=lambda each: each[:2])[2] if found else None

    def _is_free(self, needs: ResourceSet, free: ResourceSet, for_kept: bool) -> bool:
        return needs.fits_in(free) and (not self._instances or self._find_units(needs, for_kept) is not None)

    def seat_soon(self, required: ResourceSet, coming: ResourceSet) -> ResourceSet:
        """For work in any bundle: the one that lacks least when what is coming is free. Of other work: what
        it needs."""
        return nearest(required, self.total, self._available + coming)

    def is_in_parts(self, required: ResourceSet) -> bool:
        """As much is free, but of several accelerators, and it needs whole ones or more of one."""
        return required.fits_in(self._available) and self._find_units(required, for_kept=True) is None

    def needs_units(self, required: ResourceSet) -> bool:
        """Whether accelerators of this node are among it."""
        return bool(self._instances) and any(name in self._instances for name, _ in required.items())

    def beside_units(self, required: ResourceSet) -> ResourceSet:
        """All of it but accelerators of this node."""
        if not self._instances:
            return required
        return required.only(*(name for name, _ in required.items() if name not in self._instances))

    def _pools_for(self, required: ResourceSet) -> list[tuple[int, dict[str, Instances]]]:
        """The accelerators among it: how much is needed, and the instances by name from which to take the
        same units."""
        together: dict[tuple[str, int], dict[str, Instances]] = defaultdict(dict)
        for name, amount in required.items():
            if name in self._instances:
                together[self._instances[name].plain_name, amount][name] = self._instances[name]
        return [(amount, pools) for (_, amount), pools in together.items()]

    def _find_units(self, required: ResourceSet, for_kept: bool = False) -> _Units | None:
        """The accelerators for this; None where they are not free."""
        units: _Units = []
        for amount, pools in self._pools_for(required):
            kept = None
            if self._kept_units and not for_kept:
                kept = next((self._kept_units[name] for name in pools if name in self._kept_units), None)
            parts = find(room_in([*pools.values()], kept), amount)
            if parts is None:
                return None
            units.append(([*pools.values()], parts))
        return units

    # ---- by unit, for who gives way (unit_counts.py)

    def free_units(self) -> dict[str, Mapping[int, int]]:
        """What is free of each accelerator, by resource and index."""
        return {name: instances.free for name, instances in self._instances.items()}

    def _holding(self, holder: bytes | Bundle) -> _Holding:
        """Of a lease, by its id, or of a bundle. Raises KeyError for one that holds nothing."""
        return self._bundles[holder] if isinstance(holder, Bundle) else self._holdings[holder]

    def units_of(self, holder: bytes | Bundle) -> dict[str, Parts]:
        """What a lease or a bundle holds of which accelerators, by resource."""
        holding = self._holding(holder)
        names = {id(instances): name for name, instances in self._instances.items()}
        return {names[id(pool)]: parts for pools, parts in holding.units for pool in pools}

    def units_soon(
        self, required: ResourceSet, coming: Mapping[str, Mapping[int, int]]
    ) -> dict[str, dict[int, int]] | None:
        """The accelerators that could be free soonest for this, by resource and index; None where they could
        not. coming: what leases that may end hold."""
        found: dict[str, dict[int, int]] = {}
        for amount, pools in self._pools_for(required):
            parts = find_soon(room_in([*pools.values()]), coming.get(next(iter(pools)), {}), amount)
            if parts is None:
                return None
            found |= {name: dict(parts) for name in pools}
        return found

    def allocate(
        self, lease_id: bytes, resources: ResourceSet, kept: ResourceSet | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Gives `resources` to a lease; returns the indices of the accelerators it got, by plain name. kept:
        as in can_grant.

        Raises InternalError where they are not free or the lease holds some already.
        """
        if lease_id in self._holdings:
            raise InternalError(f"lease {lease_id.hex()} holds resources already")
        seat = self._seat(resources, kept=kept) if self.can_grant(resources, kept=kept) else None
        if seat is None:
            raise InternalError(f"lease {lease_id.hex()} needs {resources}, free is {self._available}")
        self._holdings[lease_id] = holding = self._hold(seat)
        return holding.indices

    def _hold(self, resources: ResourceSet) -> _Holding:
        """These are free."""
        holding = _Holding(resources)
        if self._instances:
            holding.units = self._find_units(resources) or []
            for pools, parts in holding.units:
                for pool in pools:
                    pool.take(parts)
        self._available = self._available - resources
        return holding

    def _free(self, holdings: Sequence[_Holding]) -> None:
        for holding in holdings:
            for pools, parts in holding.units:
                for pool in pools:
                    pool.give(parts)
        self._available = self._available + ResourceSet.sum_of(holding.held_now for holding in holdings)

    def held(self, lease_id: bytes) -> ResourceSet:
        """What a lease holds, blocked or not. Raises KeyError for one that holds nothing."""
        return self._holdings[lease_id].resources

    def held_now(self, holder: bytes | Bundle) -> ResourceSet:
        """As held, of a bundle as well; of a blocked lease without what it lends."""
        return self._holding(holder).held_now

    def sits_in(self, lease_id: bytes, group_id: bytes, index: int) -> bool:
        """Whether a lease holds something of this bundle."""
        holding = self._holdings.get(lease_id)
        return holding is not None and holding.resources.get(name_in(BUNDLE, group_id, index)) > 0

    def instances_of(self, lease_id: bytes) -> dict[str, tuple[int, ...]]:
        """The indices that `allocate` returned for this lease."""
        return self._holdings[lease_id].indices

    def release(self, lease_id: bytes) -> None:
        """The lease ended: what it still holds is free. Raises KeyError for a lease that holds nothing."""
        self._free((self._holdings.pop(lease_id),))

    # ---- blocked workers

    def block(self, lease_id: bytes) -> bool:
        """The lease's worker waits: its CPUs are free. Returns whether these are any."""
        holding = self._holdings.get(lease_id)
        if holding is None or holding.is_blocked:
            return False
        holding.block(True)
        cpus = holding.cpus
        self._available = self._available + cpus
        return bool(cpus)

    def unblock(self, lease_id: bytes) -> None:
        """The lease's worker runs again, at once. CPU may be negative now."""
        holding = self._holdings.get(lease_id)
        if holding is not None and holding.is_blocked:
            holding.block(False)
            self._available = self._available - holding.cpus

    def count_blocked(self) -> int:
        return sum(holding.is_blocked for holding in self._holdings.values())

    def is_blocked(self, lease_id: bytes) -> bool:
        holding = self._holdings.get(lease_id)
        return holding is not None and holding.is_blocked

    # ---- bundles

    def hold_bundle(self, bundle: Bundle) -> None:
        """It is prepared. Raises InternalError where its resources are not free."""
        if bundle in self._bundles or not self.can_grant(bundle.resources):
            raise InternalError(f"a bundle needs {bundle.resources}, free is {self._available}")
        self._bundles[bundle] = self._hold(bundle.resources)

    # Many at once: each of these steps costs as much as the node has names of resources.

    def open_bundles(self, bundles: Sequence[Bundle]) -> None:
        """They are committed: work in their groups may have what they give."""
        given = ResourceSet.sum_of(bundle.given for bundle in bundles)
        self.total = self.total + given
        self._available = self._available + given
        for bundle in bundles:
            for pool, parts in self._pools_of(bundle):
                pool.grow(parts)

    def close_bundles(self, bundles: Sequence[Bundle]) -> None:
        """They were committed, and are returned. They hold their own resources until `release_bundles`."""
        given = ResourceSet.sum_of(bundle.given for bundle in bundles)
        self.total = self.total - given
        self._available = self._available - given
        for bundle in bundles:
            for pool, parts in self._pools_of(bundle):
                pool.shrink(parts)

    def release_bundles(self, bundles: Iterable[Bundle]) -> None:
        """What they were prepared with is free. Raises KeyError where one holds nothing."""
        self._free([self._bundles.pop(bundle) for bundle in bundles])
        ended = [name for name, pool in self._instances.items() if pool.is_empty and name != pool.plain_name]
        for name in ended:
            del self._instances[name]

    def _pools_of(self, bundle: Bundle) -> list[tuple[Instances, Parts]]:
        """The instances of its group that its accelerators count for, with these."""
        found = []
        for pools, parts in self._bundles[bundle].units:
            for index in (ANY_BUNDLE, bundle.index):
                name = name_in(pools[0].plain_name, bundle.group_id, index)
                found.append((self._instances.setdefault(name, Instances(name)), parts))
        return found

    # ---- what others may know

    def holders(self) -> list[bytes]:
        """The leases that hold something, or nothing but their place."""
        return list(self._holdings)

    def bundles(self) -> list[Bundle]:
        """Those that hold something."""
        return list(self._bundles)

    def holds(self, lease_id: bytes) -> bool:
        return lease_id in self._holdings

    def held_by_bundles(self) -> ResourceSet:
        """What bundles hold of the node's own."""
        return ResourceSet.sum_of(bundle.resources for bundle in self._bundles)

    def held_by(self, lease_ids: list[bytes]) -> ResourceSet:
        """What these leases hold together, blocked or not."""
        return ResourceSet.sum_of(
            self._holdings[lease_id].resources for lease_id in lease_ids if lease_id in self._holdings
        )

    def describe(self) -> dict[str, Any]:
        """For people."""
        total, available = self.total.to_units(), self._available.to_units()
        return {"total": total, "available": available, "is_overdrawn": self.is_overdrawn}

    def check_invariants(self) -> None:
        """Recounts everything. Raises InternalError naming both sides of what does not add up."""
        holdings = [*self._holdings.values(), *self._bundles.values()]
        held = ResourceSet.sum_of(holding.held_now for holding in holdings)
        if held + self._available != self.total:
            raise InternalError(f"held {held} + free {self._available} is not the total {self.total}")
        given = ResourceSet.sum_of(
            bundle.given for bundle in self._bundles if bundle.state is BundleState.COMMITTED
        )
        check(
            self.total == self.own_total + given,
            f"the node has {self.own_total}, its bundles give {given}, and the total is {self.total}",
        )
        ending = {bundle.group_id.hex() for bundle in self._bundles if bundle.state is BundleState.ENDING}
        for name, amount in self._available.items():
            if amount < 0 and plain_name(name) != CPU and not name.endswith(tuple(ending)):
                raise InternalError(f"{name} is overdrawn by {-amount / SCALE:g}: only CPUs may be")
        self._check_units(holdings)

    def _check_units(self, holdings: list[_Holding]) -> None:
        for name, instances in self._instances.items():
            if sum(instances.free.values()) != self._available.get(name):
                free = instances.free
                raise InternalError(f"units of {name}: {free} free, the ledger has {self._available}")
        for holding in holdings:
            for pools, _ in holding.units:
                known = all(any(pool is each for each in self._instances.values()) for pool in pools)
                check(known, f"what holds {holding.resources} has units that are not the ledger's")


def _left_of(bundle: Bundle, seat: ResourceSet, free: ResourceSet) -> tuple[int, ...]:
    """How much of the bundle work in it leaves: what is scarce first, as bundles are placed."""
    left = {
        name: free.get(full_name) - seat.get(full_name)
        for name, _ in bundle.resources.items()
        for full_name in [name_in(name, bundle.group_id, bundle.index)]
    }
    custom = sum(amount for name, amount in left.items() if name not in (CPU, GPU, MEMORY))
    return left.get(GPU, 0), custom, left.get(MEMORY, 0), left.get(CPU, 0)


def spare(available: ResourceSet, held: ResourceSet) -> ResourceSet:
    """What others may take while `held` is kept."""
    return ResourceSet(
        {name: amount - min(amount, held.get(name)) for name, amount in available.items() if amount > 0}
    )
