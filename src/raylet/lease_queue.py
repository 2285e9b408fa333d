"""Leases that wait for resources: first come first served within one shape and requester, in turn between
both.

Each shape has a line per requester. Taking a lease moves its requester to the end of the shape's round, and
`rotate` moves the shape to the end of the shapes' round, so that neither a requester with ten thousand tasks
nor a shape that keeps fitting starves the others. Every step costs the same however long the queue is.

A shape that needs much can still be overtaken by ones that need little: nothing is held back for it, because
what holds the resources (an actor, a parent that waits for the very tasks behind it) may never give them up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ray_mono.raylet.leases import Lease, Shape

_Line = OrderedDict[bytes, Lease]


class LeaseQueue:
    """A queue of leases by shape and requester."""

    def __init__(self) -> None:
        # Invariant: no empty line and no shape without a line; _length counts the leases in them.
        self._shapes: OrderedDict[Shape, OrderedDict[int, _Line]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Lease]:
        for lines in self._shapes.values():
            for line in lines.values():
                yield from line.values()

    def shapes(self) -> list[Shape]:
        """Every shape that waits, the one whose turn it is first."""
        return list(self._shapes)

    def add(self, lease: Lease) -> None:
        lines = self._shapes.setdefault(lease.shape, OrderedDict())
        line = lines.setdefault(lease.request.requester, OrderedDict())
        if lease.lease_id in line:
            raise RuntimeError(f"lease {lease.lease_id.hex()} is queued already")
        line[lease.lease_id] = lease
        self._length += 1

    def remove(self, lease: Lease) -> None:
        """Takes out one that is queued. Raises KeyError where it is not."""
        requester = lease.request.requester
        lines = self._shapes[lease.shape]
        del lines[requester][lease.lease_id]
        self._length -= 1
        if not lines[requester]:
            del lines[requester]
        if not lines:
            del self._shapes[lease.shape]

    def peek(self, shape: Shape) -> Lease | None:
        """The next of a shape, left where it is."""
        lines = self._shapes.get(shape)
        return next(iter(next(iter(lines.values())).values())) if lines else None

    def pop(self, shape: Shape) -> Lease:
        """Takes the next of a shape; its requester goes to the end of the round."""
        lease = self.peek(shape)
        if lease is None:
            raise RuntimeError(f"nothing of the shape {shape} is queued")
        self._shapes[shape].move_to_end(lease.request.requester)
        self.remove(lease)
        return lease

    def rotate(self, shape: Shape) -> None:
        """The shape had its turn."""
        if shape in self._shapes:
            self._shapes.move_to_end(shape)

    def leases_of(self, shape: Shape) -> Iterator[Lease]:
        for line in self._shapes.get(shape, OrderedDict()).values():
            yield from line.values()

    def heads(self, shape: Shape) -> list[Lease]:
        """The oldest of each requester's line."""
        return [next(iter(line.values())) for line in self._shapes.get(shape, OrderedDict()).values()]

    def count(self, shape: Shape) -> int:
        return sum(len(line) for line in self._shapes.get(shape, OrderedDict()).values())

    def check_invariants(self) -> None:
        """Recounts. Raises RuntimeError."""
        lines = [line for shape_lines in self._shapes.values() for line in shape_lines.values()]
        if not all(lines) or not all(self._shapes.values()) or sum(map(len, lines)) != self._length:
            raise RuntimeError(
                f"the queue counts {self._length} leases in lines of {[len(line) for line in lines]}"
            )
