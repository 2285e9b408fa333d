"""Leases that wait for resources: jobs in turn, the shapes of a job in turn, in a shape what is nested
deepest first, the lines of one depth in turn, and first come first served within a line.

A line is what one requester asks for alike: its tasks of one scheduling key (shape, environment) and depth.
The job that was served longest ago is next, also when it was gone meanwhile. So neither a job with ten
thousand tasks, nor a shape that keeps fitting, nor one requester starves the others. Each step costs the same
however long the lines are.

Tasks wait for those that are nested deeper. So a recursion that runs in breadth has as many blocked workers
as it has branches, and one that runs in depth as many as it has levels. (With fib(10) on two CPUs these are
88 workers and 20, and the former takes three times as long.) Every TURN_EVERY-th of a shape goes by turns all
the same, so that no depth starves another.

Where a shape needs much, the scheduler keeps free resources for it, not the queue (fair_share.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ray_mono.common.our_bug import InternalError, known
from ray_mono.common.scheduling.turns import Turns
from ray_mono.raylet.scheduling.leases import Shape, WorkerLease

TURN_EVERY = 8

_Line = OrderedDict[bytes, WorkerLease]
_Lines = OrderedDict[tuple[int, int], _Line]


class _Waiting:
    """What waits of one shape in one job. Never empty, nor is one of its lines."""

    __slots__ = ("depths", "num_served")

    def __init__(self) -> None:
        # The one that had its turn last is last.
        self.depths: OrderedDict[int, _Lines] = OrderedDict()
        self.num_served = 0

    def __iter__(self) -> Iterator[_Line]:
        for lines in self.depths.values():
            yield from lines.values()

    def add(self, lease: WorkerLease) -> None:
        lines = self.depths.setdefault(lease.request.depth, OrderedDict())
        line = lines.setdefault(lease.line, OrderedDict())
        if lease.lease_id in line:
            raise InternalError(f"lease {lease.lease_id.hex()} is queued already")
        line[lease.lease_id] = lease

    def remove(self, lease: WorkerLease) -> None:
        depth, name = lease.request.depth, lease.line
        lines = self.depths[depth]
        del lines[name][lease.lease_id]
        if not lines[name]:
            del lines[name]
        if not lines:
            del self.depths[depth]

    def next(self) -> WorkerLease:
        by_turn = len(self.depths) == 1 or self.num_served % TURN_EVERY == TURN_EVERY - 1
        depth = next(iter(self.depths)) if by_turn else max(self.depths)
        return next(iter(next(iter(self.depths[depth].values())).values()))

    def served(self, lease: WorkerLease) -> None:
        """Its line and its depth had their turn."""
        self.num_served += 1
        self.depths[lease.request.depth].move_to_end(lease.line)
        self.depths.move_to_end(lease.request.depth)


class LeaseQueue:
    """A queue of leases by job, shape and line."""

    def __init__(self) -> None:
        # Invariant: no empty line, no shape without one, no job without a shape. _length counts the leases.
        self._jobs: dict[bytes, OrderedDict[Shape, _Waiting]] = {}
        self._length = 0
        self._turns = Turns()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[WorkerLease]:
        for shapes in self._jobs.values():
            for waiting in shapes.values():
                for line in waiting:
                    yield from line.values()

    def jobs(self) -> list[bytes]:
        """Every job that waits, the one whose turn it is first."""
        return sorted(self._jobs, key=self._turns.rank) if len(self._jobs) > 1 else list(self._jobs)

    def shapes_of(self, job_id: bytes) -> list[Shape]:
        """Every shape that waits in a job, the one whose turn it is first."""
        return list(self._jobs.get(job_id, ()))

    def shapes(self) -> list[Shape]:
        """Every shape that waits."""
        return list(dict.fromkeys(shape for shapes in self._jobs.values() for shape in shapes))

    def add(self, lease: WorkerLease) -> None:
        shapes = self._jobs.setdefault(lease.request.job_id, OrderedDict())
        if lease.shape not in shapes:
            shapes[lease.shape] = _Waiting()
        shapes[lease.shape].add(lease)
        self._length += 1

    def remove(self, lease: WorkerLease) -> None:
        """Takes out one that is queued. Raises KeyError where it is not."""
        job_id = lease.request.job_id
        shapes = self._jobs[job_id]
        waiting = shapes[lease.shape]
        waiting.remove(lease)
        self._length -= 1
        if not waiting.depths:
            del shapes[lease.shape]
        if not shapes:
            del self._jobs[job_id]

    def peek(self, job_id: bytes, shape: Shape) -> WorkerLease | None:
        """The next of a shape, left where it is."""
        waiting = self._jobs[job_id].get(shape) if job_id in self._jobs else None
        return waiting.next() if waiting is not None else None

    def pop(self, job_id: bytes, shape: Shape) -> WorkerLease:
        """Takes the next of a shape. Job, shape, depth and line had their turn."""
        lease = known(self.peek(job_id, shape), "a queued lease of the shape whose turn it is")
        shapes = self._jobs[job_id]
        shapes[shape].served(lease)
        shapes.move_to_end(shape)
        self._turns.served(job_id)
        self.remove(lease)
        return lease

    def leases_of(self, shape: Shape) -> Iterator[WorkerLease]:
        for shapes in self._jobs.values():
            for line in shapes.get(shape, ()):
                yield from line.values()

    def heads(self, shape: Shape) -> list[WorkerLease]:
        """The oldest of each line of a shape, in the order of the jobs' turns."""
        jobs = [self._jobs[job_id] for job_id in self.jobs()]
        return [next(iter(line.values())) for shapes in jobs for line in shapes.get(shape, ())]

    def has(self, shape: Shape) -> bool:
        """Whether any of a shape wait."""
        for shapes in self._jobs.values():
            if shape in shapes:
                return True
        return False

    def count(self, shape: Shape) -> int:
        return sum(len(line) for shapes in self._jobs.values() for line in shapes.get(shape, ()))

    def check_invariants(self) -> None:
        """Recounts. Raises InternalError."""
        waiting = [each for shapes in self._jobs.values() for each in shapes.values()]
        lines = [line for each in waiting for line in each]
        levels = [level for each in waiting for level in each.depths.values()]
        is_tidy = all(lines) and all(levels) and all(each.depths for each in waiting)
        if not is_tidy or not all(self._jobs.values()) or sum(map(len, lines)) != self._length:
            sizes = [len(line) for line in lines]
            raise InternalError(f"the queue counts {self._length} leases in lines of {sizes}")
