"""The ledger: what this node has, what is free, and which lease holds the rest. Pure, and the only one that
counts.

    free + what leases hold = total        (always, exactly; `check_invariants` recounts it)

A lease whose worker is blocked in `get` gives back its CPUs and nothing else: memory and accelerators stay
where they are. When the value is there the worker goes on at once, without asking. So free CPUs may go
below zero, by exactly what went on. While anything is below zero nothing is granted, so the node works its
debt off, and never owes more than that.

The ledger does not know workers, queues or other nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ray_mono.common.our_bug import InternalError
from ray_mono.common.scheduling.resources import CPU, SCALE, UNIT_INSTANCE_RESOURCES, ResourceSet
from ray_mono.raylet.scheduling.instances import Instances, Parts


@dataclass
class _Holding:
    resources: ResourceSet
    parts: dict[str, Parts] = field(default_factory=dict)
    is_blocked: bool = False

    @property
    def held_now(self) -> ResourceSet:
        return self.resources - self.resources.only(CPU) if self.is_blocked else self.resources

    def block(self, is_blocked: bool) -> None:
        self.is_blocked = is_blocked


class ResourceLedger:
    """Total, free and held resources of one node."""

    def __init__(self, total: ResourceSet) -> None:
        """Raises ValueError where an accelerator's total is not a whole number."""
        self.total = total
        # Invariant: total - sum(held_now of every holding).
        self._available = total
        self._holdings: dict[bytes, _Holding] = {}
        self._instances = {
            name: Instances(name, amount) for name, amount in total.items() if name in UNIT_INSTANCE_RESOURCES
        }

    @property
    def available(self) -> ResourceSet:
        """What is free; CPU may be negative."""
        return self._available

    @property
    def is_overdrawn(self) -> bool:
        """Whether resumed workers hold more than there is: then nothing is granted."""
        return self._available.is_overdrawn

    def can_grant(self, required: ResourceSet) -> bool:
        """Whether `required` is free now, whole accelerators included."""
        # What is asked most often comes first: what waits does not fit, and few nodes have accelerators.
        return (
            required.fits_in(self._available)
            and not self._available.is_overdrawn
            and (not self._instances or self._has_units(required))
        )

    def _has_units(self, required: ResourceSet) -> bool:
        return all(
            self._instances[name].find(amount) is not None
            for name, amount in required.items()
            if name in self._instances
        )

    def allocate(self, lease_id: bytes, resources: ResourceSet) -> dict[str, tuple[int, ...]]:
        """Gives `resources` to a lease; returns the indices of the accelerators it got, by name.

        Raises InternalError where they are not free or the lease holds some already.
        """
        if lease_id in self._holdings:
            raise InternalError(f"lease {lease_id.hex()} holds resources already")
        if not self.can_grant(resources):
            raise InternalError(f"lease {lease_id.hex()} needs {resources}, free is {self._available}")
        holding = _Holding(resources)
        for name, amount in resources.items():
            if name in self._instances:
                holding.parts[name] = self._instances[name].take(amount)
        self._holdings[lease_id] = holding
        self._available = self._available - resources
        return {name: tuple(index for index, _ in parts) for name, parts in holding.parts.items()}

    def instances_of(self, lease_id: bytes) -> dict[str, tuple[int, ...]]:
        """The indices that `allocate` returned for this lease."""
        return {
            name: tuple(index for index, _ in parts) for name, parts in self._holdings[lease_id].parts.items()
        }

    def release(self, lease_id: bytes) -> None:
        """The lease ended: what it still holds is free. Raises KeyError for a lease that holds nothing."""
        holding = self._holdings.pop(lease_id)
        for name, parts in holding.parts.items():
            self._instances[name].give(parts)
        self._available = self._available + holding.held_now

    def block(self, lease_id: bytes) -> bool:
        """The lease's worker waits: its CPUs are free. Returns whether these are any."""
        holding = self._holdings.get(lease_id)
        if holding is None or holding.is_blocked:
            return False
        holding.block(True)
        self._available = self._available + holding.resources.only(CPU)
        return bool(holding.resources.get(CPU))

    def unblock(self, lease_id: bytes) -> None:
        """The lease's worker runs again, at once. CPU may be negative now."""
        holding = self._holdings.get(lease_id)
        if holding is not None and holding.is_blocked:
            holding.block(False)
            self._available = self._available - holding.resources.only(CPU)

    def count_blocked(self) -> int:
        return sum(holding.is_blocked for holding in self._holdings.values())

    def is_blocked(self, lease_id: bytes) -> bool:
        holding = self._holdings.get(lease_id)
        return holding is not None and holding.is_blocked

    def holders(self) -> list[bytes]:
        """The leases that hold something, or nothing but their place."""
        return list(self._holdings)

    def held_by(self, lease_ids: list[bytes]) -> ResourceSet:
        """What these leases hold together, blocked or not."""
        total = ResourceSet()
        for lease_id in lease_ids:
            if lease_id in self._holdings:
                total = total + self._holdings[lease_id].resources
        return total

    def describe(self) -> dict[str, Any]:
        """For people."""
        total, available = self.total.to_units(), self._available.to_units()
        return {"total": total, "available": available, "is_overdrawn": self.is_overdrawn}

    def check_invariants(self) -> None:
        """Recounts everything. Raises InternalError naming both sides of what does not add up."""
        held = ResourceSet()
        for holding in self._holdings.values():
            held = held + holding.held_now
        if held + self._available != self.total:
            raise InternalError(f"held {held} + free {self._available} is not the total {self.total}")
        for name, amount in self._available.items():
            if amount < 0 and name != CPU:
                raise InternalError(f"{name} is overdrawn by {-amount / SCALE:g}: only CPUs may be")
        for name, instances in self._instances.items():
            if sum(instances.free) != self._available.get(name):
                free = instances.free
                raise InternalError(f"units of {name}: {free} free, the ledger has {self._available}")
