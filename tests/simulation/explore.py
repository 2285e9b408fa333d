"""Looks for trouble: runs scenario after scenario, one per seed, and prints each seed that fails with its
story.

    python -m tests.simulation.explore --seeds 1000 --start 5000   many seeds
    python -m tests.simulation.explore --seed 5017 --log debug     one again, exactly, with the services' logs

Run from the root of the checkout, with python/ on PYTHONPATH. Exits with 1 when a seed failed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import logging
import sys
import time
import traceback
from collections.abc import Sequence

from tests.simulation.handles import CURRENT_PROCESS
from tests.simulation.scenario import FaultKind, Outcome, draw_scenario, run_scenario

PROGRESS_SEEDS = 100
"""Between two lines that say how far it is."""


class _WhereAndWhen(logging.Filter):
    """Adds the simulated process and the virtual time to log records."""

    def filter(self, record: logging.LogRecord) -> bool:
        process = CURRENT_PROCESS.get()
        record.process_name = process.name if process else "-"
        try:
            record.virtual_s = asyncio.get_running_loop().time()
        except RuntimeError:
            record.virtual_s = 0.0
        return True


def set_up_log(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setLevel(level.upper())
    handler.addFilter(_WhereAndWhen())
    handler.setFormatter(
        logging.Formatter("%(virtual_s)12.6f %(process_name)s %(levelname)s %(name)s: %(message)s")
    )
    # Errors reach the world's own handler whatever is shown.
    logging.basicConfig(level=min(handler.level, logging.ERROR), handlers=[handler])


def run_seed(seed: int, num_tasks: int, without: Sequence[FaultKind] = ()) -> Outcome | str:
    """What came of it: an Outcome, or the story of the failure."""
    scenario = draw_scenario(seed, num_tasks)
    faults = tuple(fault for fault in scenario.faults if fault.kind not in without)
    try:
        return run_scenario(seed, dataclasses.replace(scenario, faults=faults))
    except Exception:
        return traceback.format_exc()


def explore(seeds: range, num_tasks: int, without: Sequence[FaultKind], seconds: float) -> int:
    """Runs the seeds, at most for so many real seconds; returns how many failed."""
    failed: list[int] = []
    totals: collections.Counter[str] = collections.Counter()
    start_s = time.monotonic()
    count = messages = 0
    for seed in seeds:
        result = run_seed(seed, num_tasks, without)
        count += 1
        if count % PROGRESS_SEEDS == 0:
            print(f"{count} seeds in {time.monotonic() - start_s:.0f} s", file=sys.stderr, flush=True)
        if isinstance(result, str):
            failed.append(seed)
            print(f"seed {seed} failed:\n{result}", flush=True)
        else:
            messages += result.num_messages
            totals.update(result.outcomes)
            totals.update(retries=result.retries, grants=result.grants, restarts=result.actor_restarts)
            totals.update(object_reads=result.object_reads[0], object_errors=result.object_reads[1])
            totals.update(actor_calls=result.actor_calls[0], failed_actor_calls=result.actor_calls[1])
        if time.monotonic() - start_s > seconds:
            break
    took_s = time.monotonic() - start_s
    print(f"{count} seeds in {took_s:.0f} s, {messages} messages, in all: {dict(totals)}")
    print(f"failed: {failed}" if failed else "all clean")
    return len(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--start", type=int, default=0, help="the first (default: 0)")
    parser.add_argument("--seed", type=int, help="only this one, with its outcome printed")
    parser.add_argument("--tasks", type=int, default=120, help="tasks per scenario (default: 120)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after so much real time")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=[kind.name for kind in FaultKind],
        help="leave out a kind of fault; may be given several times",
    )
    parser.add_argument("--log", default="critical", help="log level of the services (default: critical)")
    arguments = parser.parse_args()
    set_up_log(arguments.log)
    without = [FaultKind[name] for name in arguments.without]
    if arguments.seed is None:
        seeds = range(arguments.start, arguments.start + arguments.seeds)
        return 1 if explore(seeds, arguments.tasks, without, arguments.seconds) else 0
    print(draw_scenario(arguments.seed, arguments.tasks))
    result = run_seed(arguments.seed, arguments.tasks, without)
    print(result)
    return 1 if isinstance(result, str) else 0


if __name__ == "__main__":
    sys.exit(main())
