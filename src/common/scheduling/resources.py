"""Amounts of resources: exact integers in ten-thousandths of a unit, so that ten tenths are one on every
node.

A ResourceSet is an immutable value; arithmetic gives new ones, and zero amounts do not exist in it. On the
wire it is `ResourceSet.amounts`. Names are Ray's: CPU, GPU, memory, object_store_memory, and whatever the
user invents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from ray_mono.protobuf import common_pb2

SCALE = 10_000
CPU = "CPU"
GPU = "GPU"
MEMORY = "memory"
OBJECT_STORE_MEMORY = "object_store_memory"
NODE_PREFIX = "node:"
"""Each node has one of "node:<its address>", to be asked for by name."""
GROUP_MARK = "_group_"
"""In the names that resources have in placement groups (bundle_resources.py)."""
# Whole numbers above one only: a task cannot hold 1.5 accelerators (Ray's rule).
UNIT_INSTANCE_RESOURCES = frozenset({GPU})


class ResourceSet:
    """Amounts by name. Iterates in name order, so that decisions do not depend on insertion order."""

    __slots__ = ("_amounts",)

    def __init__(self, amounts: Mapping[str, int] | None = None) -> None:
        """amounts: ten-thousandths by name; may be negative (a ledger that resumed blocked tasks)."""
        self._amounts = {name: amount for name, amount in sorted((amounts or {}).items()) if amount}

    @classmethod
    def from_units(cls, units: Mapping[str, float]) -> ResourceSet:
        """From user units, e.g. {"CPU": 0.5}. What is finer than 0.0001 is cut off, so that six sixths fit
        into one. Raises ValueError naming the resource that is negative, or smaller than that."""
        amounts = {}
        for name, amount in units.items():
            if isinstance(amount, bool) or not isinstance(amount, (int, float)):
                raise ValueError(f"resource {name!r} must be a number, got {amount!r}")
            if not 0 <= amount < float("inf"):
                raise ValueError(f"resource {name!r} must be a finite number of at least 0, got {amount!r}")
            scaled = _scaled(amount)
            if amount and not scaled:
                raise ValueError(f"resource {name!r} is {amount!r}: the smallest amount is {1 / SCALE}")
            amounts[name] = scaled
        return cls(amounts)

    @classmethod
    def from_proto(cls, message: common_pb2.ResourceSet) -> ResourceSet:
        amounts = message.amounts
        # Not by items(): a map of a message gives them through three classes of Python code.
        return _in_order({name: amounts[name] for name in sorted(amounts) if amounts[name]})

    @classmethod
    def sum_of(cls, sets: Iterable[ResourceSet]) -> ResourceSet:
        amounts: dict[str, int] = {}
        for each in sets:
            for name, amount in each._amounts.items():
                amounts[name] = amounts.get(name, 0) + amount
        return cls(amounts)

    def to_proto(self) -> common_pb2.ResourceSet:
        return common_pb2.ResourceSet(amounts=self._amounts)

    def to_units(self) -> dict[str, float]:
        """User units, as `cluster_resources()` shows them (always floats, as in Ray)."""
        return {name: amount / SCALE for name, amount in self._amounts.items()}

    def get(self, name: str) -> int:
        return self._amounts.get(name, 0)

    def items(self) -> Iterator[tuple[str, int]]:
        return iter(self._amounts.items())

    def fits_in(self, available: ResourceSet) -> bool:
        """Whether every amount is there in `available`. Nothing fits where an amount asked for is negative
        there."""
        free = available._amounts
        for name, amount in self._amounts.items():
            if free.get(name, 0) < amount:
                return False
        return True

    def missing_from(self, available: ResourceSet) -> ResourceSet:
        """What `available` lacks of this, for messages."""
        return ResourceSet(
            {
                name: amount - available.get(name)
                for name, amount in self._amounts.items()
                if amount > available.get(name)
            }
        )

    def only(self, *names: str) -> ResourceSet:
        return _in_order({name: amount for name, amount in self._amounts.items() if name in names})

    def __add__(self, other: ResourceSet) -> ResourceSet:
        return self._plus(other, 1)

    def __sub__(self, other: ResourceSet) -> ResourceSet:
        return self._plus(other, -1)

    def _plus(self, other: ResourceSet, sign: int) -> ResourceSet:
        """Kept short: a raylet does this several times for each lease."""
        amounts = dict(self._amounts)
        is_sorted = True
        for name, amount in other._amounts.items():
            is_sorted = is_sorted and name in amounts
            amounts[name] = amounts.get(name, 0) + sign * amount
            if not amounts[name]:
                del amounts[name]
        made = ResourceSet.__new__(ResourceSet)
        made._amounts = amounts if is_sorted else dict(sorted(amounts.items()))
        return made

    def __bool__(self) -> bool:
        return bool(self._amounts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResourceSet) and self._amounts == other._amounts

    def __hash__(self) -> int:
        return hash(tuple(self._amounts.items()))

    def __str__(self) -> str:
        """For people: {CPU: 1, A: 0.5, memory: 1.5 GiB}."""
        return "{" + ", ".join(_told(name, amount) for name, amount in self._amounts.items()) + "}"

    def beside(self, asked_for: ResourceSet) -> str:
        """For people, beside what somebody asks for: {A: 0, CPU: 8}. Everything asked for, zero included,
        and what else there is, except memory, the markers of single nodes, and what placement groups have,
        which say nothing to one who did not ask for them."""
        names = {
            name for name in self._amounts if not name.startswith(NODE_PREFIX) and GROUP_MARK not in name
        }
        names -= {MEMORY, OBJECT_STORE_MEMORY}
        return (
            "{"
            + ", ".join(_told(name, self.get(name)) for name in sorted(names | set(asked_for._amounts)))
            + "}"
        )

    __repr__ = __str__


def _scaled(units: float) -> int:
    """In ten-thousandths. What only binary fractions lack (0.57 * 10_000 is 5699.999…) is not cut off."""
    scaled = units * SCALE
    nearest = round(scaled)
    return nearest if math.isclose(scaled, nearest, rel_tol=1e-12, abs_tol=1e-6) else math.floor(scaled)


def _in_order(amounts: dict[str, int]) -> ResourceSet:
    """A set of amounts that are in name order and not zero, as they are."""
    made = ResourceSet.__new__(ResourceSet)
    made._amounts = amounts
    return made


def _told(name: str, amount: int) -> str:
    units = amount / SCALE
    if name in (MEMORY, OBJECT_STORE_MEMORY) and units >= 1 << 20:
        power, unit = (30, "GiB") if units >= 1 << 30 else (20, "MiB")
        return f"{name}: {units / (1 << power):.4g} {unit}"
    return f"{name}: {units:g}"
