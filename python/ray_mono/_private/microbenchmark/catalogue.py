"""All groups of workloads, and what of them a run is about."""

from __future__ import annotations

from dataclasses import replace

from ray_mono._private.microbenchmark import calls
from ray_mono._private.microbenchmark.line import Group, Line

GROUPS = [calls.CALLS]


def select(groups: list[Group], only: str = "", quick: bool = False) -> list[Group]:
    """Groups with those of their workloads that have a line with `only` in its name, or all of a group that is called so. quick: none
    that take long. Raises ValueError when nothing is left."""
    chosen = []
    for group in groups:
        workloads = [
            workload
            for workload in group.workloads
            if not (quick and workload.heavy)
            and (only == group.name or any(only in line.name for line in workload.lines))
        ]
        if workloads:
            chosen.append(replace(group, workloads=workloads))
    if not chosen:
        names = "\n  ".join(f"{group.name}: {line.name}" for group in groups for line in group.lines())
        raise ValueError(f"no workload is about {only!r}; there are\n  {names}")
    return chosen


def lines(groups: list[Group]) -> list[Line]:
    return [line for group in groups for line in group.lines()]
