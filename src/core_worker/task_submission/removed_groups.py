"""The placement groups that this process has removed, or was told to be removed: the latest ones.

Whoever removes a group need not wait: no task that is submitted to it afterwards runs, though nodes may hold
its bundles for a moment.
"""

from __future__ import annotations

from collections.abc import Callable

REMOVED_MAX = 10_000
"""Older ones are forgotten: what is submitted to them is refused by raylets."""


class RemovedGroups:
    """Of one process. Lock held."""

    def __init__(self, end_leases: Callable[[bytes], bool]) -> None:
        """end_leases(group id) is called once for each that is kept; it returns whether there are any."""
        self._end_leases = end_leases
        self._ids: dict[bytes, None] = {}

    def __contains__(self, group_id: bytes) -> bool:
        return group_id in self._ids

    def add(self, group_id: bytes) -> bool:
        """Returns whether leases end by that."""
        if group_id in self._ids:
            return False
        self._ids[group_id] = None
        if len(self._ids) > REMOVED_MAX:
            del self._ids[next(iter(self._ids))]
        return self._end_leases(group_id)
