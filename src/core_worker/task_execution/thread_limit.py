"""How many threads numeric libraries start. OMP_NUM_THREADS is set to the whole CPUs of the running task or
actor, to at least 1, as in Ray.

If the variable is set for the node, or by the job's environment, it stays as it is. Libraries that were
loaded before the task (numpy, by the template) have read it already.
"""

from __future__ import annotations

import os
from typing import Any

from ray_mono.common.scheduling.bundle_resources import plain_name
from ray_mono.common.scheduling.resources import CPU, SCALE

VARIABLE = "OMP_NUM_THREADS"


class ThreadLimit:
    """The limit of one worker process. Its main thread calls it."""

    def __init__(self) -> None:
        self._shown: str | None = None

    def show(self, resources: Any) -> None:
        """A task, or an actor's creation, begins. `resources` is the message of its resources."""
        if os.environ.get(VARIABLE) != self._shown:
            return
        cpus = max((n for name, n in resources.amounts.items() if plain_name(name) == CPU), default=0)
        self._shown = os.environ[VARIABLE] = str(max(1, cpus // SCALE))
