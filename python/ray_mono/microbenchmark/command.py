"""The command that measures one side: `ray-mono microbenchmark`, and `bench/microbenchmark.py`, which can
measure another module too.

It prints, for each line, what Ray's microbenchmark prints: name, unit, mean and standard deviation of the
slices.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from ray_mono.microbenchmark import catalogue
from ray_mono.microbenchmark.line import Group, Unit
from ray_mono.microbenchmark.supervisor import Outcome, Side, supervisor

DURATION_S = 2.0


def run(
    side: Side, groups: list[Group], duration_s: float, json_path: str | None = None, verbose: bool = False
) -> int:
    """Measures, prints each line when it is known, writes all of them to `json_path`. Returns the exit
    status: 1 if a line failed."""
    units = {line.name: line.unit for line in catalogue.lines(groups)}
    outcomes: list[Outcome] = []
    with supervisor(duration_s, verbose) as runner:
        for group in groups:
            for outcome in runner.run(side, group):
                outcomes.append(outcome)
                print(described(outcome, units[outcome.line]), flush=True)
    if json_path is not None:
        Path(json_path).write_text(json.dumps(as_json(side, duration_s, outcomes, units), indent=1) + "\n")
    return int(any(outcome.problem and not outcome.problem.startswith("not yet") for outcome in outcomes))


def described(outcome: Outcome, unit: Unit) -> str:
    if outcome.problem:
        return f"{outcome.line}: {outcome.problem}"
    mean, deviation = statistics.fmean(outcome.samples), statistics.pstdev(outcome.samples)
    digits = max(2, 2 - len(str(int(mean))) + 2) if mean < 10 else 2
    words = "per second" if unit is Unit.PER_SECOND else f"in {unit.value}"
    return f"{outcome.line} {words} {mean:.{digits}f} +- {deviation:.{digits}f}"


def as_json(
    side: Side, duration_s: float, outcomes: Iterable[Outcome], units: dict[str, Unit]
) -> dict[str, object]:
    return {
        "module": side.module,
        "cores": os.cpu_count(),
        "duration_s": duration_s,
        "lines": [
            {
                "name": outcome.line,
                "unit": units[outcome.line].value,
                "samples": outcome.samples,
                "problem": outcome.problem,
            }
            for outcome in outcomes
        ],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What all commands that measure take."""
    parser.add_argument(
        "--only",
        default="",
        metavar="PATTERN",
        help="lines with this in their name, or a group of this name; several with commas between them",
    )
    parser.add_argument("--quick", action="store_true", help="leave out what takes minutes or gigabytes")
    parser.add_argument(
        "--duration-s",
        type=float,
        default=DURATION_S,
        metavar="S",
        help="of each line's repetitions (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    parser.add_argument("--verbose", action="store_true", help="show what the measured processes print")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measures a module with the workloads of Ray's microbenchmark and more."
    )
    parser.add_argument(
        "--module", default="ray_mono", help="ray_mono (default), or another with its API, installed here"
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    try:
        groups = catalogue.select(catalogue.GROUPS, arguments.only, arguments.quick)
    except ValueError as error:
        parser.error(str(error))
    side = Side(arguments.module, arguments.module)
    return run(side, groups, arguments.duration_s, arguments.json, arguments.verbose)


if __name__ == "__main__":
    sys.exit(main())
