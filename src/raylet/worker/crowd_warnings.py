"""When drivers are told that a node runs many more worker processes than it has CPUs: each costs memory, and
together they may use it up.

They are told once at WORKERS_PER_CPU for each CPU, and again each time that the number has doubled.

Idle workers are named where there are more of them than CPUs. There are two reasons for so many:

- A job has more idle workers than CPUs in one runtime environment. Then so many tasks ran at once: some
  waited for others, or asked for less than a CPU.
- No job and no runtime environment is served by a worker of another. A job that has several environments
  could do with fewer of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sized
from typing import Protocol

from ray_mono.raylet.effects import Effect, WarnJob
from ray_mono.raylet.worker.worker_states import Worker, WorkerState

WORKERS_PER_CPU = 4
CPUS_MIN = 2
"""A node of one CPU or none is allowed as many workers as one of two."""


class Workers(Sized, Iterable[Worker], Protocol):
    """A worker pool is one."""


class CrowdWarnings:
    """Of one node."""

    def __init__(self, num_cpus: int, host: str) -> None:
        self._num_cpus = num_cpus
        self._host = host
        self._warn_at = WORKERS_PER_CPU * max(num_cpus, CPUS_MIN)

    def due(self, workers: Workers, num_blocked: int) -> list[Effect]:
        """workers: all of the node. num_blocked: those of them, actors too, that wait in get() or wait()."""
        if len(workers) < self._warn_at:
            return []
        self._warn_at = 2 * len(workers)
        num_actors = sum(worker.state is WorkerState.ACTOR for worker in workers)
        message = f"Node {self._host} runs {len(workers)} worker processes and has {self._num_cpus} CPUs: "
        message += f"{num_actors} are actors"
        if num_blocked:
            message += (
                f", and {num_blocked} wait in get() or wait(), so that others were started to do their work"
            )
        idle = [
            worker.binding
            for worker in workers
            if worker.state is WorkerState.IDLE and worker.binding is not None
        ]
        served = Counter((binding.job_id, binding.runtime_env) for binding in idle)
        ran_at_once = max(served.values(), default=0) > self._num_cpus
        num_served = Counter[bytes]()
        for (job_id, _), number in served.items():
            num_served[job_id] += min(number, self._num_cpus)
        has_environments = max(num_served.values(), default=0) > self._num_cpus
        if len(idle) > self._num_cpus:
            message += f"; {len(idle)} are idle now, and kept for a while for "
            message += (
                "the jobs and runtime environments that they served"
                if len(served) > 1
                else "the job that they served"
            )
        advice = ["nest fewer waits"] * (bool(num_blocked) or ran_at_once)
        advice += ["make fewer actors"] * bool(num_actors)
        advice += ["use fewer runtime environments"] * has_environments + ["let tasks ask for more CPUs"]
        message += f". Each takes memory: {', or '.join(advice)}."
        return [WarnJob(b"", "worker_pool_large", message)]
