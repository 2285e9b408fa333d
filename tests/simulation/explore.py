"""Looks for trouble: runs scenario after scenario, one per seed, and prints each seed that fails with its
story.

    python -m tests.simulation.explore --seeds 1000 --start 5000   many seeds; --jobs 2: two at a time
    python -m tests.simulation.explore --seed 5017 --log debug     one again, exactly, with the services' logs
    python -m tests.simulation.explore --seed 5017 --trace         all messages; made smaller if it fails

Run from the root of the checkout, with python/ on PYTHONPATH. Exits with 1 when a seed failed, and with 130
where it was interrupted. A seed that ends its process, or takes more than a quarter of an hour, has failed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import faulthandler
import functools
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.queues import SimpleQueue

from ray_mono.raylet.config import RayletConfig
from tests.simulation.explorer_draws import draw_any
from tests.simulation.handles import CURRENT_PROCESS
from tests.simulation.scenario import FaultKind, Outcome, Scenario, run_scenario
from tests.simulation.shrink import as_python, shrink
from tests.simulation.trace import Trace

PROGRESS_SEEDS = 100
"""Between two lines that say how far it is."""
SEED_S_MAX = 900.0
"""Of real time, for one seed."""
ENDED_ITS_PROCESS = f"It ended its process, or took more than {SEED_S_MAX:g} s: see above."
STDERR = 2
"""Whatever stands in for sys.stderr."""
INTERRUPTED = 130
"""The exit status that shells give to what Ctrl-C ended."""


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


def draw(seed: int, num_tasks: int, without: Sequence[FaultKind] = ()) -> Scenario:
    scenario = draw_any(seed, num_tasks)
    faults = tuple(fault for fault in scenario.faults if fault.kind not in without)
    head_faults = () if FaultKind.RESTART_GCS in without else scenario.head_faults
    return dataclasses.replace(scenario, faults=faults, head_faults=head_faults)


def drawn(scenario: Scenario) -> collections.Counter[str]:
    """What may go wrong in it, counted."""
    counts = collections.Counter(fault.kind.name for fault in scenario.faults)
    counts.update(f"RESTART_GCS at a commit {fault.step.name}" for fault in scenario.head_faults)
    for name, is_drawn in (
        ("scenarios", True),
        ("of losses", scenario.losses),
        ("harmless", scenario.is_harmless),
        ("with placement groups", scenario.groups),
        ("nodes that run short of memory", scenario.memory_faults),
        (
            "short leases from the head",
            scenario.gcs_reconnect_timeout_s < RayletConfig.gcs_reconnect_timeout_s,
        ),
        ("connections that break", scenario.knobs.break_probability),
        ("slow messages", scenario.knobs.slow_probability),
        ("a slow disk of the head", scenario.disk.slow_probability),
        ("unreadable spilled objects", scenario.unreadable_probability),
        ("callbacks that take time", scenario.slip_s),
        ("messages heard in batches", scenario.knobs.grain_s),
    ):
        counts[name] += bool(is_drawn)
    return counts


def run(seed: int, scenario: Scenario, trace: Trace | None = None) -> Outcome | Exception:
    """What came of it, or how it failed. Ends the process where that takes more real time than any seed may:
    a loop without end in the services or in the simulation itself."""
    faulthandler.dump_traceback_later(SEED_S_MAX, exit=True, file=STDERR)
    try:
        return run_scenario(seed, scenario, trace=trace)
    except Exception as error:
        return error
    finally:
        faulthandler.cancel_dump_traceback_later()


def story_of(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


@dataclass(frozen=True)
class Result:
    """Of one seed: what came of it, or how it failed; and what it cost."""

    seed: int
    outcome: Outcome | None
    story: str
    cpu_s: float
    drawn: collections.Counter[str]


def result_of(seed: int, num_tasks: int, without: Sequence[FaultKind]) -> Result:
    start_s = time.process_time()
    scenario = draw(seed, num_tasks, without)
    result = run(seed, scenario)
    cpu_s = time.process_time() - start_s
    if isinstance(result, Exception):
        return Result(seed, None, story_of(result), cpu_s, drawn(scenario))
    return Result(seed, result, "", cpu_s, drawn(scenario))


def _begin_job(cpus: SimpleQueue[int]) -> None:
    """In a process that runs seeds. It keeps to one CPU: of its threads one runs at a time, and to wake one
    that rests on another CPU costs several times as much."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.sched_setaffinity(0, {cpus.get()})


def results_of(
    seeds: range, num_tasks: int, without: Sequence[FaultKind], jobs: int
) -> Generator[Result, None, None]:
    """In the order of the seeds. jobs: so many processes run them, which end with the generator."""
    run_one = functools.partial(result_of, num_tasks=num_tasks, without=without)
    while seeds:
        # Forked, so that they log as this one does. They are forked before the executor has threads. Of
        # Ctrl-C this process hears, which then lets them end their seeds.
        forks = multiprocessing.get_context("fork")
        cpus: SimpleQueue[int] = forks.SimpleQueue()
        for cpu in islice(cycle(sorted(os.sched_getaffinity(0))), jobs):
            cpus.put(cpu)
        pool = ProcessPoolExecutor(jobs, forks, _begin_job, (cpus,))
        try:
            for result in pool.map(run_one, seeds):
                seeds = seeds[1:]
                yield result
        except BrokenProcessPool:
            if jobs == 1:
                yield Result(seeds[0], None, ENDED_ITS_PROCESS, 0.0, collections.Counter())
            else:
                # It was one of those that ran, most likely one of these.
                yield from results_of(seeds[:jobs], num_tasks, without, 1)
            seeds = seeds[jobs:]
        finally:
            pool.shutdown(cancel_futures=True)


def explore(
    seeds: range, num_tasks: int, without: Sequence[FaultKind], seconds: float | None, jobs: int
) -> int:
    """Runs the seeds, at most for so many real seconds; returns how many failed. Raises KeyboardInterrupt
    after it has told what it found until then."""
    failed: list[int] = []
    totals: collections.Counter[str] = collections.Counter()
    all_drawn: collections.Counter[str] = collections.Counter()
    start_s = time.monotonic()
    count = messages = 0
    cpu_s = 0.0
    try:
        with contextlib.closing(results_of(seeds, num_tasks, without, jobs)) as results:
            for result in results:
                count += 1
                cpu_s += result.cpu_s
                all_drawn += result.drawn
                if count % PROGRESS_SEEDS == 0:
                    print(f"{count} seeds in {time.monotonic() - start_s:.0f} s", file=sys.stderr, flush=True)
                if result.outcome is None:
                    failed.append(result.seed)
                    print(f"seed {result.seed} failed:\n{result.story}", flush=True)
                else:
                    messages += result.outcome.num_messages
                    totals.update(_counts(result.outcome))
                if seconds is not None and time.monotonic() - start_s > seconds:
                    break
    finally:
        took_s = time.monotonic() - start_s
        print(f"{count} seeds in {took_s:.0f} s, {messages} messages, in all: {dict(totals)}")
        print(f"drawn: {dict(sorted(all_drawn.items()))}")
        print(f"{count / took_s:.2f} seeds/s, {cpu_s / max(1, count):.2f} s of CPU each")
        if count < len(seeds):
            left = f"--start {seeds[count]} --seeds {len(seeds) - count}"
            print(f"stopped after {count} of {len(seeds)} seeds: {left} runs the others")
        print(f"failed: {failed}; --seed N --trace tells more of one" if failed else "all clean", flush=True)
    return len(failed)


def _counts(outcome: Outcome) -> dict[str, int]:
    return {
        **outcome.outcomes,
        "retries": outcome.retries,
        "grants": outcome.grants,
        "restarts": outcome.actor_restarts,
        "object_reads": outcome.object_reads[0],
        "object_errors": outcome.object_reads[1],
        "groups": outcome.groups[0],
        "group_removals": outcome.groups[1],
        "actor_calls": outcome.actor_calls[0],
        "failed_actor_calls": outcome.actor_calls[1],
    }


def replay(seed: int, scenario: Scenario, shrink_seconds: float | None) -> int:
    """Runs one seed and prints what came of it; returns 1 if it failed. shrink_seconds: also print all
    messages, and if it fails, of something smaller that fails alike, after so many real seconds."""
    print(scenario)
    trace = Trace(kept=None)
    result = run(seed, scenario, trace)
    print(story_of(result) if isinstance(result, Exception) else result, flush=True)
    if shrink_seconds is not None:
        if isinstance(result, Exception):

            def failure_of(smaller: Scenario) -> Exception | None:
                failure = run(seed, smaller)
                return failure if isinstance(failure, Exception) else None

            shrunk = shrink(scenario, result, failure_of, shrink_seconds)
            trace = Trace(kept=None)
            run(seed, shrunk.scenario, trace)
            print(f"after {shrunk.num_runs} runs, this is left of it:")
            print(f"run_scenario({seed}, {as_python(shrunk.scenario)})\n{story_of(shrunk.error)}")
        print("\n".join(str(record) for record in trace.records()))
    return 1 if isinstance(result, Exception) else 0


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    about, examples, notes = (__doc__ or "\n\n\n\n").split("\n\n")
    parser = argparse.ArgumentParser(
        description=f"{about}\n\n{examples}\n\n{notes}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=_above(1, int), default=100, help="how many (default: 100)")
    parser.add_argument("--start", type=int, default=0, help="the first (default: 0)")
    parser.add_argument("--seed", type=int, help="only this one, with its outcome printed")
    parser.add_argument(
        "--trace",
        action="store_true",
        help="with --seed: print every message; if it fails, of the smallest scenario found that fails alike",
    )
    parser.add_argument(
        "--shrink-seconds",
        type=_above(0, float),
        default=120.0,
        help="with --trace: how long to look for a smaller scenario (default: 120)",
    )
    parser.add_argument("--tasks", type=_above(0, int), default=120, help="per scenario (default: 120)")
    parser.add_argument(
        "--jobs", type=_above(1, int), default=1, help="so many processes run seeds (default: 1)"
    )
    parser.add_argument(
        "--seconds", type=_above(0, float), help="stop after so much real time (default: after the last seed)"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=[kind.name for kind in FaultKind],
        help="leave out a kind of fault; may be given several times",
    )
    parser.add_argument(
        "--log",
        default="critical",
        choices=["debug", "info", "warning", "error", "critical"],
        help="level of what the services log (default: critical)",
    )
    arguments = parser.parse_args(argv)
    if arguments.trace and arguments.seed is None:
        parser.error("--trace prints the messages of one seed: give --seed N as well")
    return arguments


def _above(least: float, type_: Callable[[str], float]) -> Callable[[str], float]:
    """A number that is at least so much."""

    def read(text: str) -> float:
        number = type_(text)
        if not number >= least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return number

    read.__name__ = type_.__name__
    return read


def main(argv: Sequence[str] | None = None) -> int:
    arguments = arguments_of(argv)
    set_up_log(arguments.log)
    without = [FaultKind[name] for name in arguments.without]
    try:
        if arguments.seed is None:
            seeds = range(arguments.start, arguments.start + arguments.seeds)
            return 1 if explore(seeds, arguments.tasks, without, arguments.seconds, arguments.jobs) else 0
        scenario = draw(arguments.seed, arguments.tasks, without)
        return replay(arguments.seed, scenario, arguments.shrink_seconds if arguments.trace else None)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
