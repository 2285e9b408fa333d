"""Whether a change cost speed: measures the code before and after it in turn, each time in fresh processes,
and judges each line.

    python bench/before_after.py --before PYTHON [--rounds N] [--only PATTERN] [--duration-s S] [--json FILE]

PYTHON is an interpreter with the code before the change (say, the virtual environment of a worktree at that
commit). After it comes the code beside this file, twice: how far apart those two lie is what the machine's
noise does to the line.

A line is lost where its median fell by more than LOSS_MAX, and by more than the two identical builds differ.
All of it is lost, and the exit status 1, where a line is, or where the geometric mean of the ratios fell by
more than MEAN_LOSS_MAX.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).absolute().parent.parent))
sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

from bench import fresh_memory, report
from bench.results import Results, geometric_mean
from ray_mono.microbenchmark import catalogue, command
from ray_mono.microbenchmark.line import Group, Line
from ray_mono.microbenchmark.supervisor import Side, Supervisor, supervisor

ROUNDS = 5
LOSS_MAX = 0.05
MEAN_LOSS_MAX = 0.02
BEFORE, AFTER, AGAIN = "before", "after", "after, again"


def noise(line: Line, results: Results) -> float:
    """How far the two identical builds lie apart, as a share."""
    ratio = results.ratio(line, AFTER, AGAIN)
    return 0.0 if ratio is None else max(ratio, 1 / ratio) - 1


def verdict(line: Line, results: Results) -> str:
    """In a word; "lost" begins what must not be."""
    ratio = results.ratio(line, AFTER, BEFORE)
    if ratio is None:
        was_measured = results.cell(line.name, BEFORE).value is not None
        return "lost: not measured" if was_measured else "new"
    return "lost" if ratio < 1 - max(LOSS_MAX, noise(line, results)) else "kept"


def rows(groups: list[Group], results: Results) -> Iterator[list[str]]:
    """The head, then a row for each line."""
    yield ["line", "unit", BEFORE, AFTER, "ratio", "noise", ""]
    for line in catalogue.lines(groups):
        ratio = results.ratio(line, AFTER, BEFORE)
        values = [report.number(results.cell(line.name, side).value) for side in (BEFORE, AFTER)]
        told = "" if ratio is None else f"{ratio:.3f}"
        yield [
            line.name,
            line.unit.value,
            *values,
            told,
            f"{noise(line, results):.1%}",
            verdict(line, results),
        ]


def measure(
    before: str, groups: list[Group], rounds: int, runner: Supervisor
) -> Iterator[tuple[str, Results]]:
    """Yields, as it goes on, what is done and all results so far."""
    ours = [Side(AFTER, "ray_mono"), Side(AGAIN, "ray_mono")]
    sides = [Side(BEFORE, "ray_mono", before, brings_package=True), *ours]
    results = Results()
    for number in range(rounds):
        for group in groups:
            for side in sides:
                for outcome in runner.run(side, group):
                    results.add(side.name, outcome)
            yield f"round {number + 1} of {rounds}: {group.name}", results
        # Whoever comes first in one round comes last in the next.
        sides.reverse()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--before", metavar="PYTHON", required=True, help="an interpreter with the code before"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    command.add_arguments(parser)
    arguments = parser.parse_args()
    try:
        groups = catalogue.select(catalogue.GROUPS, arguments.only, arguments.quick)
    except ValueError as error:
        parser.error(str(error))
    results = Results()
    load = report.load()
    fresh_memory.use()
    with supervisor(arguments.duration_s, arguments.verbose) as runner:
        for done, results in measure(arguments.before, groups, arguments.rounds, runner):
            print(done, file=sys.stderr, flush=True)
            if arguments.json is not None:
                Path(arguments.json).write_text(json.dumps(results.as_json(), indent=1) + "\n")
    table = list(rows(groups, results))
    print(report.as_text(table))
    ratios = [results.ratio(line, AFTER, BEFORE) for line in catalogue.lines(groups)]
    mean = geometric_mean([ratio for ratio in ratios if ratio is not None])
    print(
        f"Geometric mean: {mean or 0:.3f}. {report.machine()};"
        f" load averages {load} before and {report.load()} after."
    )
    is_lost = mean is None or mean < 1 - MEAN_LOSS_MAX
    return int(is_lost or any(row[-1].startswith("lost") for row in table))


if __name__ == "__main__":
    sys.exit(main())
