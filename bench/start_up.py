"""What it costs to begin: init to first result, twenty actors, the memory of an idle worker and of an idle head.

    python bench/start_up.py [--rounds N]

Each round is a fresh process; medians are printed. The first round warms the file caches and is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

NUM_ACTORS = 20


def pss_bytes(pid: int) -> int:
    """Proportional set size: pages shared with others count in part."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no Pss")


def one_round() -> dict[str, float]:
    """One cluster's life, measured."""
    started_s = time.perf_counter()
    import ray_mono as ray

    imported_s = time.perf_counter()
    ray.init(num_cpus=2)
    connected_s = time.perf_counter()

    @ray.remote
    def one() -> int:
        return 1

    ray.get(one.remote())
    first_s = time.perf_counter()

    @ray.remote(num_cpus=0)
    class Actor:
        def pid(self) -> int:
            return os.getpid()

    before_s = time.perf_counter()
    actors = [Actor.remote() for _ in range(NUM_ACTORS)]
    pids = ray.get([actor.pid.remote() for actor in actors])
    actors_s = time.perf_counter() - before_s
    worker_pss = statistics.median(pss_bytes(pid) for pid in pids)

    import psutil

    services = 0
    for child in psutil.Process().children(recursive=True):
        if child.pid not in pids and not child.name().startswith("ray_mono::"):
            services += pss_bytes(child.pid)
    ray.shutdown()
    return {
        "import_s": imported_s - started_s,
        "init_s": connected_s - imported_s,
        "init_to_first_result_s": first_s - imported_s,
        "20_actors_s": actors_s,
        "idle_worker_pss_mb": worker_pss / 1e6,
        "services_pss_mb": services / 1e6,
        "shutdown_s": time.perf_counter() - before_s - actors_s,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: %(default)s)")
    parser.add_argument("--one", action="store_true", help="measure once, in this process, and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one_round()))
        return 0
    rounds = []
    for _ in range(arguments.rounds + 1):
        out = subprocess.run(
            [sys.executable, __file__, "--one"], check=True, capture_output=True, text=True
        ).stdout
        rounds.append(json.loads(out.splitlines()[-1]))
    for name in rounds[0]:
        values = [measured[name] for measured in rounds[1:]]
        print(
            f"{name:26s} median {statistics.median(values):8.3f}   min {min(values):8.3f}   max {max(values):8.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
