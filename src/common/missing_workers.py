"""Which workers are dead by what the head says of all. One that it does not have may live: its store was
lost, and the worker's node has yet to come. Who is missing there for as long as such a one may run is dead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

Worker = TypeVar("Worker", bound=bytes)


class MissingWorkers(Generic[Worker]):
    """Of one process that asks the head again and again. Times are of its monotonic clock."""

    def __init__(self) -> None:
        self._since_s: dict[Worker, float] = {}

    def __bool__(self) -> bool:
        return bool(self._since_s)

    def clear(self) -> None:
        """Nobody is missing yet: there is another head, or nobody was asked for."""
        self._since_s.clear()

    def dead(
        self, asked: Iterable[Worker], is_alive: Mapping[Worker, bool], dead_after_s: float, now_s: float
    ) -> list[Worker]:
        """Those of the workers that are asked for now. is_alive, dead_after_s: what the head says of those
        that it has, and of others (GetAllWorkersReply.missing_dead_after_s; 0: they may run for ever)."""
        before, self._since_s = self._since_s, {}
        dead = []
        for worker in dict.fromkeys(asked):
            if worker in is_alive:
                is_dead = not is_alive[worker]
            else:
                since_s = self._since_s[worker] = before.get(worker, now_s)
                is_dead = 0 < dead_after_s <= now_s - since_s
            if is_dead:
                dead.append(worker)
        return dead
