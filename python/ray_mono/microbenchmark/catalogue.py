"""All groups of workloads, and what of them a run is about."""

from __future__ import annotations

from dataclasses import replace

from ray_mono.microbenchmark import calls, later, maps, nodes, objects, placement_groups, scale, start
from ray_mono.microbenchmark.line import Group, Line, Workload

GROUPS = [
    calls.CALLS,
    maps.MAPS,
    placement_groups.PLACEMENT,
    later.CLIENT,
    start.START,
    scale.SCALE,
    scale.FLAT,
    objects.OBJECTS,
    objects.SHARED,
    nodes.NODES,
]


def select(groups: list[Group], only: str = "", quick: bool = False) -> list[Group]:
    """Of each pattern in `only` (several are separated by commas): the group that is called so, or else the
    workloads that have a line with it in its name. quick: none that take long. Raises ValueError for a
    pattern that finds nothing."""
    names = {group.name for group in groups}
    patterns = [pattern.strip() for pattern in only.split(",")]
    found: set[str] = set()

    def is_wanted(group: Group, workload: Workload) -> bool:
        by = {
            pattern
            for pattern in patterns
            if (
                pattern == group.name
                if pattern in names
                else any(pattern in line.name for line in workload.lines)
            )
        }
        found.update(by)
        return bool(by)

    chosen = []
    for group in groups:
        workloads = [
            workload
            for workload in group.workloads
            if is_wanted(group, workload) and not (quick and workload.heavy)
        ]
        if workloads:
            chosen.append(replace(group, workloads=workloads))
    missed = [pattern for pattern in patterns if pattern not in found]
    if missed or not chosen:
        there = "\n  ".join(f"{group.name}: {line.name}" for group in groups for line in group.lines())
        raise ValueError(
            f"no workload is about {', '.join(map(repr, missed or patterns))}; there are\n  {there}"
        )
    return chosen


def lines(groups: list[Group]) -> list[Line]:
    return [line for group in groups for line in group.lines()]
