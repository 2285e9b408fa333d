"""Whose turn it is: the job that was served longest ago, also where it waits anew."""

from __future__ import annotations

from collections import OrderedDict

JOBS_REMEMBERED_MAX = 1000
"""Of how many jobs it is known when they had their last turn; one that is forgotten is next."""


class Turns:
    """The turns of jobs that wait for one thing."""

    def __init__(self) -> None:
        # The last one last.
        self._served: OrderedDict[bytes, int] = OrderedDict()
        self._num_turns = 0

    def served(self, job_id: bytes) -> None:
        self._num_turns += 1
        self._served[job_id] = self._num_turns
        self._served.move_to_end(job_id)
        if len(self._served) > JOBS_REMEMBERED_MAX:
            self._served.popitem(last=False)

    def rank(self, job_id: bytes) -> int:
        """The lowest is next; 0 for one that had no turn yet."""
        return self._served.get(job_id, 0)
