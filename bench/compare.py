"""Measures ray_mono and Ray in turn, A B A B, each time in fresh processes, and prints medians and ratios.

    python bench/compare.py --peer PYTHON [--rounds N] [--only PATTERN] [--quick] [--dask PYTHON]
                            [--json FILE] [--markdown FILE]

PYTHON is an interpreter that has Ray (pip install "ray[default]"), or Dask's `distributed`. A ratio says how
many times better ray_mono is: more per second, or less time, memory or CPU. The floors (bench/floors.py) are
measured in the same rounds. Before the first round the machine's memory is used once (bench/fresh_memory.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).absolute().parent.parent))
sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

from bench import dask_workloads, floors, fresh_memory, report
from bench.results import Results
from ray_mono.microbenchmark import catalogue, command
from ray_mono.microbenchmark.line import Group
from ray_mono.microbenchmark.supervisor import Side, Supervisor, supervisor

OURS = Side("ray_mono", "ray_mono")
ROOT = Path(__file__).absolute().parent.parent
ROUNDS = 3


def ray_side(python: str) -> Side:
    return Side("Ray", "ray", python)


def dask_side(python: str) -> Side:
    return Side("Dask", "distributed", python, "bench.dask_workloads", str(ROOT))


def part_of(side: Side, group: Group) -> Group:
    """The group as this side can measure it: Dask has fewer workloads, of its own."""
    if side.module != "distributed":
        return group
    names = {workload.name for workload in group.workloads}
    for other in dask_workloads.GROUPS:
        if other.name == group.name:
            return replace(
                other, workloads=[workload for workload in other.workloads if workload.name in names]
            )
    return replace(group, workloads=[])


def again(group: Group, results: Results) -> Group:
    """What of it is worth another round: nothing heavy, and nothing that we cannot do yet."""
    return replace(
        group,
        workloads=[
            workload
            for workload in group.workloads
            if not workload.heavy and not results.cell(workload.name, OURS.name).problem.startswith("not yet")
        ],
    )


def measure(
    sides: list[Side], groups: list[Group], rounds: int, runner: Supervisor
) -> Iterator[tuple[str, Results]]:
    """Group by group, and within each the sides in turn. Yields, as it goes on, what is done and all results
    so far."""
    results = Results()
    for number in range(rounds):
        for outcome in floors.measure(runner, {line.floor for line in catalogue.lines(groups)}):
            results.add(floors.SIDE.name, outcome)
        for whole in groups:
            group = again(whole, results) if number else whole
            for side in sides:
                began_s = time.monotonic()
                for outcome in runner.run(side, part_of(side, group)):
                    results.add(side.name, outcome)
                taken_s = time.monotonic() - began_s
                yield f"round {number + 1} of {rounds}, {group.name}, {side.name}: {taken_s:.0f} s", results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter with Ray")
    parser.add_argument("--dask", metavar="PYTHON", help="an interpreter with Dask's distributed and numpy")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="default: %(default)s; heavy lines get one"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    command.add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.peer is None and arguments.dask is None:
        parser.error("nothing to compare with: give --peer PYTHON, --dask PYTHON or both")
    try:
        groups = catalogue.select(catalogue.GROUPS, arguments.only, arguments.quick)
    except ValueError as error:
        parser.error(str(error))
    peers = [ray_side(arguments.peer)] if arguments.peer else []
    peers += [dask_side(arguments.dask)] if arguments.dask else []
    rounds = 1 if arguments.quick else arguments.rounds
    load = report.load()
    results = Results()
    if not arguments.quick:
        fresh_memory.use()
    with supervisor(arguments.duration_s, arguments.verbose) as runner:
        for done, results in measure([OURS, *peers], groups, rounds, runner):
            print(done, file=sys.stderr, flush=True)
            if arguments.json is not None:
                found = {"machine": report.machine(), "rounds": rounds, "cells": results.as_json()}
                Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")

    names = report.Names(OURS.name, tuple(peer.name for peer in peers), floors.SIDE.name)
    tables = [
        list(report.rows(groups, results, names)),
        report.floor_rows(list(floors.FLOORS.lines()), results, names),
    ]
    notes = [
        report.mean_line(groups, results, names),
        f"{report.machine()}; load averages {load} before and {report.load()} after. Rounds: {rounds}, of"
        f" {arguments.duration_s:g} s a line.",
    ]
    print("\n\n".join([*map(report.as_text, tables), *notes]))
    if arguments.markdown is not None:
        Path(arguments.markdown).write_text("\n\n".join([*map(report.as_markdown, tables), *notes]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
