"""When drivers are told that a node runs many more worker processes than it has CPUs: each costs memory, and together they may use it up.

Once at WORKERS_PER_CPU for each CPU, and again each time that the number has doubled.
"""

from __future__ import annotations

from ray_mono.raylet.effects import Effect, WarnJob

WORKERS_PER_CPU = 4
CPUS_MIN = 2
"""A node of one CPU or none is allowed as many workers as one of two."""


class CrowdWarnings:
    """Of one node."""

    def __init__(self, num_cpus: int, host: str) -> None:
        self._num_cpus = num_cpus
        self._host = host
        self._warn_at = WORKERS_PER_CPU * max(num_cpus, CPUS_MIN)

    def due(self, num_workers: int, num_actors: int, num_blocked: int) -> list[Effect]:
        """num_actors: how many of the workers are actors'. num_blocked: how many wait in get() or wait(), actors among them."""
        if num_workers < self._warn_at:
            return []
        self._warn_at = 2 * num_workers
        message = f"Node {self._host} runs {num_workers} worker processes and has {self._num_cpus} CPUs: {num_actors} are actors"
        if num_blocked:
            message += f", and {num_blocked} wait in get() or wait(), so that others were started to do their work"
        num_others = num_workers - num_actors - num_blocked
        if num_others > self._num_cpus:
            message += f"; {num_others} are kept for the jobs and runtime environments that they served"
        advice = ["nest fewer waits"] * bool(num_blocked) + ["make fewer actors"] * bool(num_actors)
        advice += ["use fewer runtime environments"] * (num_others > self._num_cpus) + ["let tasks ask for more CPUs"]
        message += f". Each takes memory: {', or '.join(advice)}."
        return [WarnJob(b"", "worker_pool_large", message)]
