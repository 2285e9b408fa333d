"""How many threads numeric libraries start: OMP_NUM_THREADS, the whole CPUs of the running task or actor, at
least 1, as in Ray.

Where the variable is set for the node or by the job's environment, that stays. What was loaded before the
task (numpy, by the template) has read it already.
"""

from __future__ import annotations

import os
from typing import Any

from ray_mono.common.scheduling.resources import CPU, SCALE

VARIABLE = "OMP_NUM_THREADS"


class ThreadLimit:
    """Of one worker process, whose main thread calls it."""

    def __init__(self) -> None:
        self._shown: str | None = None

    def show(self, resources: Any) -> None:
        """A task, or an actor's creation, begins; `resources` (a message) are its."""
        if os.environ.get(VARIABLE) != self._shown:
            return
        self._shown = os.environ[VARIABLE] = str(max(1, resources.amounts.get(CPU, 0) // SCALE))
