"""The process that measures: runs workloads of one group in turn and tells what comes out of them, a line of
JSON each.

    python -m ray_mono.microbenchmark.child --module ray_mono --catalogue MODULE --group calls \
        --workloads '["1:1 actor calls sync"]' --duration-s 2 --events-fd 5

It ends after the first workload that fails, since what is left of the cluster is not to be measured: the
supervisor starts another one for the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import importlib
import json
import signal
import sys
import time
import traceback
from typing import Any, TextIO

from ray_mono.microbenchmark.line import Bench, Group, Workload

# What was made by one line ends before the next begins.
SETTLE_SHARE = 0.25
SETTLE_MAX_S = 1.0
# Of exactly these types: an error that a task raised is of a type made from its own.
MISSING_FEATURE = (NotImplementedError, AttributeError, ImportError, ModuleNotFoundError)


class Events:
    """What the supervisor hears: objects with "event" being workload, line, done or failed."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def tell(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
        self._file.flush()


def run(ray: Any, group: Group, workloads: list[Workload], duration_s: float, events: Events) -> None:
    """Measures the workloads, in this order, until one fails."""
    with contextlib.ExitStack() as stack:
        try:
            if group.cluster is not None:
                stack.enter_context(group.cluster(ray))
        except MISSING_FEATURE:
            traceback.print_exc()
            if not all(workload.needs for workload in workloads):
                raise
            for workload in workloads:
                events.tell("workload", name=workload.name)
                events.tell("failed", why=f"not yet: {workload.needs}")
            return
        for workload in workloads:
            if not measure(ray, workload, duration_s, events):
                return
            gc.collect()
            time.sleep(min(SETTLE_MAX_S, duration_s * SETTLE_SHARE))


def measure(ray: Any, workload: Workload, duration_s: float, events: Events) -> bool:
    """Whether it came to its end, or lacks only a feature that is not there yet."""

    def report(name: str, samples: list[float]) -> None:
        events.tell("line", name=name, samples=samples)

    events.tell("workload", name=workload.name)
    try:
        workload.measure(Bench(ray, duration_s, report))
    except Exception as error:
        traceback.print_exc()
        if workload.needs and type(error) in MISSING_FEATURE:
            events.tell("failed", why=f"not yet: {workload.needs}")
            return True
        text = str(error).strip().splitlines()
        events.tell("failed", why=f"{type(error).__name__}: {text[-1] if text else ''}"[:300])
        return False
    events.tell("done")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--module", required=True, help="the module to measure")
    parser.add_argument("--catalogue", required=True, help="the module whose GROUPS has the group")
    parser.add_argument("--group", required=True)
    parser.add_argument("--workloads", required=True, type=json.loads, help="names, as JSON")
    parser.add_argument("--duration-s", type=float, required=True)
    parser.add_argument("--events-fd", type=int, required=True)
    arguments = parser.parse_args()
    # A supervisor that loses patience asks where it hangs.
    faulthandler.register(signal.SIGUSR2)
    groups: list[Group] = importlib.import_module(arguments.catalogue).GROUPS
    group = next(group for group in groups if group.name == arguments.group)
    by_name = {workload.name: workload for workload in group.workloads}
    with open(arguments.events_fd, "w") as file:
        run(
            importlib.import_module(arguments.module),
            group,
            [by_name[name] for name in arguments.workloads],
            arguments.duration_s,
            Events(file),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
