"""Accelerators by index: which GPU a lease holds, not only how much.

A lease of one or more holds whole units that were wholly free. A lease of less than one shares a single
unit: the fullest one that still has room (the lowest index among equals). So whole units stay free for
those who need them.

Amounts are ten-thousandths of a unit. Nothing here knows of leases: the ledger keeps what `take` gave, and
hands it to `give`.
"""

from __future__ import annotations

from ray_mono.common.our_bug import InternalError
from ray_mono.common.scheduling.resources import SCALE, UNIT_INSTANCE_RESOURCES, ResourceSet

Parts = tuple[tuple[int, int], ...]
"""(index, amount) of each unit that is held."""


def indivisible(required: ResourceSet) -> str | None:
    """Why no node whatsoever can hold `required`, or None: accelerators above one come whole."""
    for name, amount in required.items():
        if name in UNIT_INSTANCE_RESOURCES and amount > SCALE and amount % SCALE:
            return f"{name} above 1 has to be a whole number, got {amount / SCALE:g}"
    return None


class Instances:
    """The units of one resource on this node."""

    def __init__(self, name: str, total: int) -> None:
        """total: a whole number of units. Raises ValueError naming the resource otherwise."""
        if total % SCALE:
            raise ValueError(f"resource {name!r} is counted in whole units on a node, got {total / SCALE:g}")
        self._free = [SCALE] * (total // SCALE)

    @property
    def free(self) -> tuple[int, ...]:
        """What is left of each unit, by index."""
        return tuple(self._free)

    def find(self, amount: int) -> Parts | None:
        """The units that `take` would hold for `amount`, or None where it does not fit now."""
        if amount < SCALE:
            room = [(free, index) for index, free in enumerate(self._free) if free >= amount]
            return ((min(room)[1], amount),) if room else None
        if amount % SCALE:
            return None
        whole = [index for index, free in enumerate(self._free) if free == SCALE][: amount // SCALE]
        return tuple((index, SCALE) for index in whole) if len(whole) == amount // SCALE else None

    def take(self, amount: int) -> Parts:
        parts = self.find(amount)
        if parts is None:
            raise InternalError(f"no unit has {amount / SCALE:g} free: {self._free}")
        for index, part in parts:
            self._free[index] -= part
        return parts

    def give(self, parts: Parts) -> None:
        for index, part in parts:
            self._free[index] += part
            if self._free[index] > SCALE:
                raise InternalError(f"unit {index} was given back more than it has: {self._free}")
