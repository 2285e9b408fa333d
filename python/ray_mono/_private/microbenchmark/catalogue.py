"""All groups of workloads, and what of them a run is about."""

from __future__ import annotations

from dataclasses import replace

from ray_mono._private.microbenchmark import calls, later, nodes, objects, scale, start
from ray_mono._private.microbenchmark.line import Group, Line

GROUPS = [
    calls.CALLS,
    later.PLACEMENT,
    later.CLIENT,
    start.START,
    scale.SCALE,
    scale.FLAT,
    objects.OBJECTS,
    objects.SHARED,
    nodes.NODES,
]


def select(groups: list[Group], only: str = "", quick: bool = False) -> list[Group]:
    """The group that is called so, or else groups with those of their workloads that have a line with `only` in its name. quick: none
    that take long. Raises ValueError when nothing is left."""
    is_group = any(group.name == only for group in groups)
    chosen = []
    for group in groups:
        if is_group and group.name != only:
            continue
        workloads = [
            workload
            for workload in group.workloads
            if not (quick and workload.heavy)
            and (is_group or any(only in line.name for line in workload.lines))
        ]
        if workloads:
            chosen.append(replace(group, workloads=workloads))
    if not chosen:
        names = "\n  ".join(f"{group.name}: {line.name}" for group in groups for line in group.lines())
        raise ValueError(f"no workload is about {only!r}; there are\n  {names}")
    return chosen


def lines(groups: list[Group]) -> list[Line]:
    return [line for group in groups for line in group.lines()]
