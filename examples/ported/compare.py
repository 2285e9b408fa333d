"""Runs the programs of this folder, which are written for Ray, under ray_mono.compat, and compares what they
print.

    python examples/ported/compare.py [--peer PYTHON [--record]] [NAME ...]

Everything that a program prints to its standard output is the same in every run, so expected/NAME.txt holds
it. Those files were made by Ray 2.60 itself: `--record` writes them anew with the Ray of the interpreter that
`--peer` names. `--peer` without it runs each program, unchanged, with that Ray too, and wants the same output
from both.

The exit status is 1 if any output differs, or a program fails.
"""

from __future__ import annotations

import argparse
import difflib
import os
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).absolute().parent
PROGRAMS = ("batch_prediction", "map_reduce", "monte_carlo_pi", "parameter_server", "web_crawler")
PROGRAM_TIMEOUT_S = 100.0


class ProgramFailed(Exception):
    """A program ended with another status than 0, or not in time; the message has what it wrote to stderr."""


def run_under_compat(name: str, *arguments: str) -> str:
    """What the program prints on ray_mono, with this interpreter. Raises ProgramFailed."""
    # Whatever this process can import, ray_mono among it.
    paths = os.pathsep.join(path for path in sys.path if path)
    return _run([sys.executable, "-m", "ray_mono.compat"], name, arguments, {"PYTHONPATH": paths})


def run_with_ray(python: str, name: str, *arguments: str) -> str:
    """What the program prints with the Ray that `python` has installed. Raises ProgramFailed."""
    return _run([python], name, arguments, {"RAY_USAGE_STATS_ENABLED": "0"})


def expected(name: str) -> str:
    return _expected_path(name).read_text()


def difference(wanted: str, got: str, of_wanted: str, of_got: str) -> str:
    """The lines that differ; nothing if none does."""
    lines = difflib.unified_diff(wanted.splitlines(), got.splitlines(), of_wanted, of_got, lineterm="")
    return "\n".join(lines)


def _expected_path(name: str) -> Path:
    return FOLDER / "expected" / f"{name}.txt"


def _run(command: list[str], name: str, arguments: tuple[str, ...], environment: dict[str, str]) -> str:
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        done = subprocess.run(
            [*command, str(FOLDER / f"{name}.py"), *arguments],
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROGRAM_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramFailed(f"{name} did not end within {PROGRAM_TIMEOUT_S:g} s:\n{error.stderr!r}") from None
    if done.returncode != 0:
        raise ProgramFailed(f"{name} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _check(name: str, peer: str | None) -> bool:
    """Whether all outputs agree; says so, and what differs."""
    started_s = time.perf_counter()
    try:
        ours = run_under_compat(name)
        ours_s = time.perf_counter() - started_s
        found = difference(expected(name), ours, "expected", "ray_mono")
        times = f"ray_mono {ours_s:.1f} s"
        if peer:
            started_s = time.perf_counter()
            theirs = run_with_ray(peer, name)
            times += f", Ray {time.perf_counter() - started_s:.1f} s"
            found += difference(theirs, ours, "Ray", "ray_mono")
    except ProgramFailed as error:
        print(f"{name}: {error}")
        return False
    print(f"{name}: {'different' if found else 'the same'} ({times})" + f"\n{found}" * bool(found))
    return not found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has Ray installed")
    parser.add_argument("--record", action="store_true", help="write expected/ from what the peer prints")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"default: all of {', '.join(PROGRAMS)}")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(PROGRAMS)
    if unknown:
        parser.error(f"no such program: {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMS)}")
    if arguments.record and not arguments.peer:
        parser.error("--record needs --peer: expected output is made by Ray")
    names = arguments.names or PROGRAMS
    if arguments.record:
        for name in names:
            _expected_path(name).write_text(run_with_ray(arguments.peer, name))
        return 0
    # All of them run, also after one that differs.
    return 0 if all([_check(name, arguments.peer) for name in names]) else 1


if __name__ == "__main__":
    sys.exit(main())
