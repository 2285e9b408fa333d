"""What is told of a worker that was killed for its node's memory: to whoever waits for what it ran, and to
the driver."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray_mono.raylet.memory.killing_policy import Victim
from ray_mono.raylet.memory.memory_usage import MemoryUsage
from ray_mono.raylet.memory.process_memory import ProcessMemory

SHOWN_MAX = 10
"""Processes that are listed: those that use most."""
ADVICE = (
    "Give the node more memory, or run less at a time: let each task or actor ask for more CPUs"
    " (num_cpus=...) or for memory (memory=...). RAY_MONO_memory_usage_threshold, set where the node is"
    " started, moves the threshold, and RAY_MONO_memory_monitor_refresh_ms=0 turns this off: then the kernel"
    " chooses what it kills."
)


class OomReport:
    """Words it for one node."""

    def __init__(self, host: str, node_id: bytes, threshold: float) -> None:
        self._node = f"Node {host} ({node_id.hex()})"
        self._threshold = threshold

    def cause(
        self,
        victim: Victim,
        usage: MemoryUsage,
        processes: Iterable[ProcessMemory],
        runs: Mapping[int, str],
    ) -> str:
        """For the error. runs: what the processes of the cluster run, by pid."""
        text = f"{self._short_of(usage)}, so it killed {_named(victim)}."
        if victim.is_last and victim.worker.is_retriable and not victim.worker.is_actor:
            text += (
                " It is not run again: nothing else ran there for the same owner that could make room for"
                " another attempt."
            )
        lines = [f"{'PID':>10}  {'MEMORY':>10}  WHAT"]
        biggest = sorted(processes, key=lambda process: (-process.used_bytes, process.pid))[:SHOWN_MAX]
        for process in biggest:
            what = runs.get(process.pid, process.name)
            lines.append(f"{process.pid:>10}  {in_units(process.used_bytes):>10}  {what}")
        return f"{text} What used most there:\n" + "\n".join(lines) + f"\n{ADVICE}"

    def warning(self, victim: Victim, usage: MemoryUsage, times: int) -> str:
        """For the driver. times: how many workers of its job were killed for memory, this one counted."""
        so_far = f" {times} workers of this job so far were killed for it." if times > 1 else ""
        return f"{self._short_of(usage)}, so it killed {_named(victim)}.{so_far} {ADVICE}"

    def _short_of(self, usage: MemoryUsage) -> str:
        return (
            f"{self._node} runs short of memory: {in_units(usage.used_bytes)} of the"
            f" {in_units(usage.limit_bytes)} of {usage.of} were used, which is more than"
            f" {self._threshold:.1%}"
        )


def _named(victim: Victim) -> str:
    worker = victim.worker
    return f"the worker with pid {worker.pid}, which ran {worker.runs} and used {in_units(worker.used_bytes)}"


def in_units(amount_bytes: int) -> str:
    """1.50 GiB, 12.0 MiB."""
    if amount_bytes >= 1 << 30:
        return f"{amount_bytes / (1 << 30):.2f} GiB"
    return f"{amount_bytes / (1 << 20):.1f} MiB"
