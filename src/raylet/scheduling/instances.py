"""Accelerators by index: which GPU a lease holds, not only how much.

A lease of one or more holds whole units that were wholly free. A lease of less than one shares a single
unit: the fullest one that still has room (the lowest index among equals). So whole units stay free for
those who need them. A bundle of a placement group may hold whole ones and a part of another.

A placement group has instances of its own, of the units that its bundles hold: all of them under
GPU_group_G, those of bundle 1 under GPU_group_1_G. Work in bundle 1 asks for both, and gets the same units of
both.

Amounts are ten-thousandths of a unit. Nothing here knows of leases or bundles: the ledger keeps what `find`
chose, and hands it to `take` and `give`, or to `grow` and `shrink`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_mono.common.our_bug import InternalError
from ray_mono.common.scheduling.bundle_resources import plain_name
from ray_mono.common.scheduling.resources import SCALE, UNIT_INSTANCE_RESOURCES, ResourceSet

Parts = tuple[tuple[int, int], ...]
"""(index, amount) of each unit that is held."""


def indivisible(required: ResourceSet) -> str | None:
    """Why no node whatsoever can hold `required`, or None: accelerators above one come whole."""
    for name, amount in required.items():
        if amount > SCALE and amount % SCALE and plain_name(name) in UNIT_INSTANCE_RESOURCES:
            return f"{plain_name(name)} above 1 has to be a whole number, got {amount / SCALE:g}"
    return None


class Instances:
    """The units of one resource on this node."""

    def __init__(self, name: str, total: int = 0) -> None:
        """total: a whole number of units. Raises ValueError naming the resource otherwise."""
        if total % SCALE:
            raise ValueError(f"resource {name!r} is counted in whole units on a node, got {total / SCALE:g}")
        self.plain_name = plain_name(name)
        # What there is of each unit, and what of that is free, by index. In a group there may be a part of a
        # unit, and less than nothing free: work may hold what its group has no more.
        self._size = dict.fromkeys(range(total // SCALE), SCALE)
        self._free = dict(self._size)

    @property
    def free(self) -> Mapping[int, int]:
        """What is left of each unit, by index."""
        return self._free

    @property
    def is_empty(self) -> bool:
        """Nothing is there, and nothing is held."""
        return not any(self._size.values()) and not any(self._free.values())

    def take(self, parts: Parts) -> None:
        for index, part in parts:
            self._free[index] -= part

    def give(self, parts: Parts) -> None:
        for index, part in parts:
            self._free[index] += part
            if self._free[index] > self._size[index]:
                raise InternalError(f"unit {index} was given back more than it has: {self._free}")

    def grow(self, parts: Parts) -> None:
        """There is more of these units from now on."""
        for index, part in parts:
            self._size[index] = self._size.get(index, 0) + part
            self._free[index] = self._free.get(index, 0) + part

    def shrink(self, parts: Parts) -> None:
        """There is less of them, also where it is held."""
        for index, part in parts:
            self._size[index] -= part
            self._free[index] -= part


def room_in(pools: Sequence[Instances], kept: Mapping[int, int] | None = None) -> dict[int, int]:
    """What is free of each unit in all of these. kept: less this."""
    first, *others = [pool.free for pool in pools]
    room = {index: min([free, *(other.get(index, 0) for other in others)]) for index, free in first.items()}
    return {index: free - kept.get(index, 0) for index, free in room.items()} if kept else room


def find(room: Mapping[int, int], amount: int) -> Parts | None:
    """The units for `amount`; None where it does not fit. room: what is free of each."""
    num_whole, part = divmod(amount, SCALE)
    whole = [index for index in sorted(room) if room[index] >= SCALE][:num_whole]
    if len(whole) < num_whole:
        return None
    parts = tuple((index, SCALE) for index in whole)
    if not part:
        return parts
    able = [(free, index) for index, free in room.items() if free >= part and index not in whole]
    return (*parts, (min(able)[1], part)) if able else None


def find_soon(room: Mapping[int, int], coming: Mapping[int, int], amount: int) -> Parts | None:
    """As find, the units that will have most room for `amount` when what is coming is free, those first of
    which most is free now; None where it would not fit then."""
    num_whole, part = divmod(amount, SCALE)
    soon = {index: free + coming.get(index, 0) for index, free in room.items()}
    order = sorted(room, key=lambda index: (-room[index], index))
    whole = [index for index in order if soon[index] >= SCALE][:num_whole]
    able = [index for index in order if soon[index] >= part and index not in whole][:1] if part else []
    if len(whole) < num_whole or (part and not able):
        return None
    return (*((index, SCALE) for index in whole), *((index, part) for index in able))
