"""Which GPUs user code sees: CUDA_VISIBLE_DEVICES is set for a task or actor that was given some.

A raylet counts its node's GPUs from 0. If CUDA_VISIBLE_DEVICES was set for the node, or by the job's
environment, the raylet's numbers are places in that list, and user code gets the names that stand there. A
task without GPUs finds the variable as it was, as in Ray.
"""

from __future__ import annotations

import os
from typing import Any

from ray_mono.common.scheduling.resources import GPU

VARIABLE = "CUDA_VISIBLE_DEVICES"
LEFT_ALONE_BY = "RAY_MONO_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""If this is set to 1, every task sees the GPUs that the node sees, and chooses among them by its GPU ids."""
_NONE_VISIBLE = ("", "NoDevFiles")


class VisibleDevices:
    """The devices of one worker process. Its main thread calls it."""

    def __init__(self) -> None:
        # What the variable was before the present task; None: it was not set.
        self._original: str | None = None
        self.is_set = False

    def show(self, resource_ids: dict[str, list[Any]]) -> None:
        """A task, or an actor's creation, begins. Replaces the numbers of its GPUs by their names, if they
        have names."""
        if self.is_set:
            self.is_set = False
            if self._original is None:
                os.environ.pop(VARIABLE, None)
            else:
                os.environ[VARIABLE] = self._original
        if not resource_ids.get(GPU):
            return
        original = os.environ.get(VARIABLE)
        resource_ids[GPU] = _names(resource_ids[GPU], original)
        if os.environ.get(LEFT_ALONE_BY, "0").lower() in ("1", "true"):
            return
        self._original = original
        self.is_set = True
        os.environ[VARIABLE] = ",".join(map(str, resource_ids[GPU]))


def _names(numbers: list[int], original: str | None) -> list[Any]:
    if original is None:
        return numbers
    names = [] if original in _NONE_VISIBLE else original.split(",")
    # The job's environment may name fewer GPUs than the node has. Then the task gets all of those.
    return [names[number] for number in numbers] if max(numbers) < len(names) else names
