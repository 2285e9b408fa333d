"""Estimates pi by throwing darts: tasks throw them, an actor counts how far they are, the driver shows it.

    python monte_carlo_pi.py [--tasks N] [--samples N] [--seed N]

Every task throws darts at the unit square and reports to the actor each time a tenth of its own are thrown.
The driver asks the actor for the state of all of them, prints each tenth of the whole as it is passed, and at
last adds up the hits.
"""

from __future__ import annotations

import argparse
import math
import random
import time

import ray

REPORTS_PER_TASK = 10
POLL_S = 0.02


@ray.remote
class Progress:
    """Counts the darts thrown, by task."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._thrown: dict[int, int] = {}

    def report(self, task: int, thrown: int) -> None:
        self._thrown[task] = thrown

    def fraction(self) -> float:
        """Of all darts, how many are thrown: 0 to 1."""
        return sum(self._thrown.values()) / self._num_samples


@ray.remote
def throw(task: int, num_samples: int, seed: int, progress: ray.actor.ActorHandle) -> int:
    """How many of num_samples random points of the unit square lie within the quarter circle."""
    rng = random.Random(seed * 1_000_003 + task)
    hits = thrown = 0
    for part in range(1, REPORTS_PER_TASK + 1):
        goal = num_samples * part // REPORTS_PER_TASK
        hits += sum(math.hypot(rng.random(), rng.random()) <= 1.0 for _ in range(goal - thrown))
        thrown = goal
        progress.report.remote(task, thrown)
    return hits


def show_progress(progress: ray.actor.ActorHandle) -> None:
    """Prints every tenth of the work as it is passed; returns when all of it is done."""
    shown = 0
    while shown < 10:
        reached = int(ray.get(progress.fraction.remote()) * 10)
        for tenth in range(shown + 1, reached + 1):
            print(f"{tenth * 10:>3} % of the darts are thrown")
        shown = reached
        time.sleep(POLL_S)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=100_000, help="per task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.tasks < 1 or arguments.samples < REPORTS_PER_TASK:
        parser.error(f"--tasks must be at least 1 and --samples at least {REPORTS_PER_TASK}")

    ray.init(num_cpus=4)
    total = arguments.tasks * arguments.samples
    progress = Progress.remote(total)
    hits = [
        throw.remote(task, arguments.samples, arguments.seed, progress) for task in range(arguments.tasks)
    ]
    show_progress(progress)
    estimate = 4 * sum(ray.get(hits)) / total
    print(
        f"{total} darts by {arguments.tasks} tasks: pi is about {estimate:.5f},"
        f" {abs(estimate - math.pi):.5f} off"
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
