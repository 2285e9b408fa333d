"""Leases that have their resources and wait for a worker process, oldest first among those that a worker can
serve now.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from ray_mono.raylet.leases import Binding, Lease


class Reservations:
    """By binding, because a bound worker serves only its own; there are few bindings (jobs times
    environments).
    """

    def __init__(self) -> None:
        # Invariant: no empty group; _length counts the leases in them.
        self._groups: dict[Binding, OrderedDict[bytes, Lease]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Lease]:
        for group in self._groups.values():
            yield from group.values()

    def add(self, lease: Lease) -> None:
        self._groups.setdefault(lease.request.binding, OrderedDict())[lease.lease_id] = lease
        self._length += 1

    def remove(self, lease: Lease) -> None:
        """Raises KeyError where it does not wait here."""
        binding = lease.request.binding
        del self._groups[binding][lease.lease_id]
        self._length -= 1
        if not self._groups[binding]:
            del self._groups[binding]

    def next(self, can_serve: Callable[[Binding], bool]) -> Lease | None:
        """The oldest that a worker is there for; stays in place."""
        heads = [next(iter(group.values())) for binding, group in self._groups.items() if can_serve(binding)]
        return min(heads, key=lambda lease: lease.number, default=None)
