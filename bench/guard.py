"""Whether ray_mono is still as near to what the machine can do as it was: its own lines against sockets,
copies and forks.

    python bench/guard.py [--rounds N] [--record]          (or: ./bazelw run //bench:guard)

Each round measures the floors and then the lines; a line's ratio says how near it came to its floor, whatever
the machine. It is lost, and the exit status 1, where the median ratio is more than LOSS_MAX below the one
recorded in bench/guard.json. --record replaces that by what is measured now: after a gain, or where a loss is
wanted and the change says why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).absolute().parent.parent))
sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

from bench import floors, report
from bench.results import Results, better
from ray_mono.microbenchmark import calls, catalogue, objects, start
from ray_mono.microbenchmark.line import Line
from ray_mono.microbenchmark.supervisor import Side, Supervisor, supervisor

RECORD = Path(__file__).absolute().parent / "guard.json"
OURS = Side("ray_mono", "ray_mono")
# Two runs on a machine that does nothing else lie within half of that.
LOSS_MAX = 0.3
ROUNDS = 3
DURATION_S = 1.0

# Each line and the floor it is held against. Those that need no round trip pass the echo, and may not lose
# that either. The echo is the one whose pace does not depend on what else the machine does.
GUARDED = {
    "single client get calls (Plasma Store)": calls.ECHO_ONE_CPU,
    "single client put calls (Plasma Store)": calls.ECHO_ONE_CPU,
    "single client tasks sync": calls.ECHO_ONE_CPU,
    "single client tasks async": calls.ECHO_PIPELINED,
    "1:1 actor calls sync": calls.ECHO_ONE_CPU,
    "1:1 actor calls async": calls.ECHO_PIPELINED,
    "1:1 actor calls concurrent": calls.ECHO_PIPELINED,
    "1:1 async-actor calls sync": calls.ECHO_ONE_CPU,
    "1:1 async-actor calls async": calls.ECHO_PIPELINED,
    "n:n actor calls async": calls.ECHO_PIPELINED,
    "single client put gigabytes": calls.MEMCPY_800,
    "put of 100 MB, warm": objects.memcpy_floor("100 MB", "warm"),
    "20 actors ready (num_cpus=0)": start.forks_floor(20),
}


def guarded_lines() -> list[Line]:
    """With the floors that they are guarded by."""
    by_name = {line.name: line for line in catalogue.lines(catalogue.GROUPS)}
    return [replace(by_name[name], floor=floor) for name, floor in GUARDED.items()]


def measure_round(runner: Supervisor) -> dict[str, float]:
    """Each line's nearness to its floor; without those that failed."""
    results = Results()
    for outcome in floors.measure(runner, GUARDED.values()):
        results.add(floors.SIDE.name, outcome)
    for group in catalogue.GROUPS:
        workloads = [
            workload for workload in group.workloads if any(line.name in GUARDED for line in workload.lines)
        ]
        if workloads:
            for outcome in runner.run(OURS, replace(group, workloads=workloads)):
                results.add(OURS.name, outcome)
    found = {
        line.name: better(
            line, results.cell(line.name, OURS.name).value, results.cell(line.floor, floors.SIDE.name).value
        )
        for line in guarded_lines()
    }
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def verdict(measured: float | None, recorded: float | None) -> str:
    """In a word; "lost" is what the guard is for."""
    if measured is None:
        return "lost: not measured"
    if recorded is None:
        return "new"
    return "lost" if measured < recorded * (1 - LOSS_MAX) else "kept"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument(
        "--duration-s", type=float, default=DURATION_S, metavar="S", help="default: %(default)s"
    )
    parser.add_argument("--record", action="store_true", help=f"write what is measured to {RECORD.name}")
    arguments = parser.parse_args()
    with supervisor(arguments.duration_s) as runner:
        rounds = [measure_round(runner) for _ in range(arguments.rounds)]
    measured = {
        name: statistics.median(ratios)
        for name in GUARDED
        if (ratios := [found[name] for found in rounds if name in found])
    }
    recorded: dict[str, float] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    table = [["line", "floor", "recorded", "measured", ""]]
    for line in guarded_lines():
        now, before = measured.get(line.name), recorded.get(line.name)
        table.append(
            [
                line.name,
                line.floor.removeprefix("floor: "),
                report.number(before),
                report.number(now),
                verdict(now, before),
            ]
        )
    print(report.as_text(table))
    if arguments.record:
        # `bazel run` works on a copy; it says where the original is.
        workspace = os.environ.get("BUILD_WORKSPACE_DIRECTORY")
        path = Path(workspace, "bench", RECORD.name) if workspace else RECORD
        path.write_text(
            json.dumps({name: round(ratio, 4) for name, ratio in measured.items()}, indent=1) + "\n"
        )
        print(f"recorded in {path}")
        return 0
    return int(any(row[-1].startswith("lost") for row in table))


if __name__ == "__main__":
    sys.exit(main())
