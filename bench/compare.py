"""Measures ray_mono and Ray in turn, A B A B, each time in fresh processes, and prints medians and ratios.

    python bench/compare.py --peer PYTHON [--rounds N] [--only PATTERN] [--quick] [--dask PYTHON] [--json FILE] [--markdown FILE]

PYTHON is an interpreter that has Ray (pip install "ray[default]"), or Dask's `distributed`. A ratio says how many times better
ray_mono is: more per second, or less time, memory or CPU. The floors (bench/floors.py) are measured in the same rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "python"))

from bench import floors, report
from bench.results import Results
from ray_mono._private.microbenchmark import catalogue, command
from ray_mono._private.microbenchmark.line import Group
from ray_mono._private.microbenchmark.supervisor import Side, Supervisor, supervisor

OURS = "ray_mono"
PEER = "Ray"
DASK = "Dask"
FLOOR = "floor"


def sides(peer: str, dask: str | None) -> list[Side]:
    """Those that are measured against each other, in the order of their turns."""
    found = [Side(OURS, "ray_mono"), Side(PEER, "ray", python=peer)]
    if dask is not None:
        found.append(Side(DASK, "distributed", dask, "bench.dask_workloads", str(ROOT)))
    return found


def measure_floors(runner: Supervisor, groups: list[Group], results: Results) -> None:
    """Those that the lines of these groups name, once."""
    named = {line.floor for line in catalogue.lines(groups)}
    workloads = [
        workload
        for workload in floors.FLOORS.workloads
        if named.intersection(line.name for line in workload.lines)
    ]
    if workloads:
        side = Side(FLOOR, "bench.floors", catalogue="bench.floors", catalogue_path=str(ROOT))
        for outcome in runner.run(side, replace(floors.FLOORS, workloads=workloads)):
            results.add(FLOOR, outcome)


def measure(all_sides: list[Side], groups: list[Group], rounds: int, duration_s: float, verbose: bool) -> Results:
    """Group by group, the sides in turn within each; what is heavy in the first round only."""
    results = Results()
    with supervisor(duration_s, verbose) as runner:
        for number in range(rounds):
            measure_floors(runner, groups, results)
            for group in groups:
                now = [workload for workload in group.workloads if not number or not workload.heavy]
                for side in all_sides:
                    theirs = [workload for workload in now if side.name != DASK or workload.name in DASK_LINES]
                    if not theirs:
                        continue
                    say(f"round {number + 1} of {rounds}: {group.name}: {side.name}")
                    for outcome in runner.run(side, replace(group, workloads=theirs)):
                        results.add(side.name, outcome)
    return results
