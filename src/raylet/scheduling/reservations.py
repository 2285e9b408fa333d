"""Leases that have their resources and wait for a worker process: jobs in turn, and of a job the oldest
that a worker can serve now.

A job that makes a thousand actors at once needs as many new processes. It keeps no other job waiting.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from ray_mono.common.scheduling.turns import Turns
from ray_mono.raylet.scheduling.leases import WorkerLease
from ray_mono.raylet.worker.binding import Binding


class Reservations:
    """In groups by binding, since a bound worker serves only its own, and those for actors apart, since no
    bound worker serves these. There are few bindings (jobs times environments)."""

    def __init__(self) -> None:
        # Invariant: no empty group; _length counts the leases in them.
        self._groups: dict[tuple[Binding, bool], OrderedDict[bytes, WorkerLease]] = {}
        self._length = 0
        self._turns = Turns()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[WorkerLease]:
        for group in self._groups.values():
            yield from group.values()

    def add(self, lease: WorkerLease) -> None:
        self._groups.setdefault(_group(lease), OrderedDict())[lease.lease_id] = lease
        self._length += 1

    def remove(self, lease: WorkerLease) -> None:
        """Raises KeyError where it does not wait here."""
        group = _group(lease)
        del self._groups[group][lease.lease_id]
        self._length -= 1
        if not self._groups[group]:
            del self._groups[group]

    def take(self, can_serve: Callable[[Binding, bool], bool]) -> WorkerLease | None:
        """Takes out the lease whose turn it is, among those that there is a worker for.

        can_serve(binding, for_actor): whether there is one.
        """
        if not self._groups:
            return None
        heads = [next(iter(leases.values())) for group, leases in self._groups.items() if can_serve(*group)]
        if not heads:
            return None
        lease = min(heads, key=lambda lease: (self._turns.rank(lease.request.job_id), lease.number))
        self.remove(lease)
        self._turns.served(lease.request.job_id)
        return lease


def _group(lease: WorkerLease) -> tuple[Binding, bool]:
    return lease.binding, lease.request.for_actor
