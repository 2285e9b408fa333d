"""Leases that wait for resources: jobs in turn, the shapes of a job in turn, the lines of a shape in turn,
and first come first served within a line.

A line is what one requester asks for alike: its tasks of one scheduling key (shape, environment). The job
that was served longest ago is next, also when it was gone meanwhile. So neither a job with ten thousand
tasks, nor a shape that keeps fitting, nor one requester starves the others. Each step costs the same
however long the lines are.

Where a shape needs much, the scheduler keeps free resources for it, not the queue (fair_share.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ray_mono.common.our_bug import InternalError, known
from ray_mono.raylet.scheduling.leases import Shape, WorkerLease
from ray_mono.raylet.scheduling.turns import Turns

_Line = OrderedDict[bytes, WorkerLease]
_Lines = OrderedDict[tuple[int, int], _Line]


class LeaseQueue:
    """A queue of leases by job, shape and line."""

    def __init__(self) -> None:
        # Invariant: no empty line, no shape without a line, no job without a shape. _length counts the
        # leases.
        self._jobs: dict[bytes, OrderedDict[Shape, _Lines]] = {}
        self._length = 0
        self._turns = Turns()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[WorkerLease]:
        for shapes in self._jobs.values():
            for lines in shapes.values():
                for line in lines.values():
                    yield from line.values()

    def jobs(self) -> list[bytes]:
        """Every job that waits, the one whose turn it is first."""
        return sorted(self._jobs, key=self._turns.rank)

    def shapes_of(self, job_id: bytes) -> list[Shape]:
        """Every shape that waits in a job, the one whose turn it is first."""
        return list(self._jobs.get(job_id, ()))

    def shapes(self) -> list[Shape]:
        """Every shape that waits."""
        return list(dict.fromkeys(shape for shapes in self._jobs.values() for shape in shapes))

    def add(self, lease: WorkerLease) -> None:
        lines = self._jobs.setdefault(lease.request.job_id, OrderedDict()).setdefault(
            lease.shape, OrderedDict()
        )
        line = lines.setdefault(lease.request.line, OrderedDict())
        if lease.lease_id in line:
            raise InternalError(f"lease {lease.lease_id.hex()} is queued already")
        line[lease.lease_id] = lease
        self._length += 1

    def remove(self, lease: WorkerLease) -> None:
        """Takes out one that is queued. Raises KeyError where it is not."""
        job_id, name = lease.request.job_id, lease.request.line
        shapes = self._jobs[job_id]
        lines = shapes[lease.shape]
        del lines[name][lease.lease_id]
        self._length -= 1
        if not lines[name]:
            del lines[name]
        if not lines:
            del shapes[lease.shape]
        if not shapes:
            del self._jobs[job_id]

    def peek(self, job_id: bytes, shape: Shape) -> WorkerLease | None:
        """The next of a shape, left where it is."""
        lines = self._jobs[job_id].get(shape) if job_id in self._jobs else None
        return next(iter(next(iter(lines.values())).values())) if lines else None

    def pop(self, job_id: bytes, shape: Shape) -> WorkerLease:
        """Takes the next of a shape. Job, shape and line had their turn."""
        lease = known(self.peek(job_id, shape), "a queued lease of the shape whose turn it is")
        shapes = self._jobs[job_id]
        shapes[shape].move_to_end(lease.request.line)
        shapes.move_to_end(shape)
        self._turns.served(job_id)
        self.remove(lease)
        return lease

    def leases_of(self, shape: Shape) -> Iterator[WorkerLease]:
        for shapes in self._jobs.values():
            for line in shapes.get(shape, OrderedDict()).values():
                yield from line.values()

    def heads(self, shape: Shape) -> list[WorkerLease]:
        """The oldest of each line of a shape, in the order of the jobs' turns."""
        jobs = [self._jobs[job_id] for job_id in self.jobs()]
        lines = [line for shapes in jobs for line in shapes.get(shape, OrderedDict()).values()]
        return [next(iter(line.values())) for line in lines]

    def count(self, shape: Shape) -> int:
        return sum(
            len(line) for shapes in self._jobs.values() for line in shapes.get(shape, OrderedDict()).values()
        )

    def check_invariants(self) -> None:
        """Recounts. Raises InternalError."""
        shapes = [lines for shapes in self._jobs.values() for lines in shapes.values()]
        lines = [line for shape_lines in shapes for line in shape_lines.values()]
        is_tidy = all(lines) and all(shapes) and all(self._jobs.values())
        if not is_tidy or sum(map(len, lines)) != self._length:
            sizes = [len(line) for line in lines]
            raise InternalError(f"the queue counts {self._length} leases in lines of {sizes}")
