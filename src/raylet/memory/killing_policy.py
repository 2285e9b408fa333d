"""Which worker is killed where a node runs short of memory: Ray's policy by groups of owners. Pure.

- What may be run again (a task with retries, an actor with restarts) goes before what may not.
- Workers that may be run again are grouped by whose tasks and actors they run. The largest group goes first;
  of groups of one size the one whose oldest task began last. So every owner keeps something that runs.
- What may not be run again is a group of its own each.
- Of a group the one goes whose task began last: least is lost. Of those that one look found begun, the one
  whose worker was leased last.
- The last one of a group is not run again. It would be killed again and again: with all others of its owner
  gone the node has not enough memory for it. (Of an actor the GCS decides, by its restarts.)
- One that is between two tasks just now counts in its group. It is not killed: it has next to nothing.

Nothing but workers with a task or an actor is ever named: no driver, no service, no idle worker (which is
asked to end, memory_guard.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class RunningWorker:
    """A worker with a lease, and what it runs."""

    worker_id: bytes
    pid: int
    job_id: bytes
    runs: str
    """As a sentence has it: "task f", "actor A"; empty between two tasks."""
    is_actor: bool
    owner_id: bytes
    is_retriable: bool
    began_at_s: float
    """As a look found it: looks are some time apart."""
    leased_at_s: float
    used_bytes: int


@dataclass(frozen=True)
class Victim:
    worker: RunningWorker
    is_last: bool
    """No other worker runs what may be run again for its owner, or this may not be."""


def choose(workers: Iterable[RunningWorker]) -> Victim | None:
    """Who is killed; None where there is nobody."""
    groups: dict[tuple[bool, bytes], list[RunningWorker]] = {}
    for worker in workers:
        owner = worker.owner_id if worker.is_retriable else worker.worker_id
        groups.setdefault((worker.is_retriable, owner), []).append(worker)
    of_some = [group for group in groups.values() if any(worker.runs for worker in group)]
    if not of_some:
        return None
    chosen = max(of_some, key=_rank)
    newest = max((worker for worker in chosen if worker.runs), key=_age)
    return Victim(newest, is_last=not newest.is_retriable or len(chosen) == 1)


def _rank(group: list[RunningWorker]) -> tuple[bool, int, tuple[float, float, bytes]]:
    """The group of the highest loses one."""
    oldest = min((worker for worker in group if worker.runs), key=_age)
    return oldest.is_retriable, len(group), _age(oldest)


def _age(worker: RunningWorker) -> tuple[float, float, bytes]:
    """By id where all else is alike, so that the same snapshot gives the same answer."""
    return worker.began_at_s, worker.leased_at_s, worker.worker_id
