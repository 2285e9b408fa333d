"""How much of everything one machine holds: the second table of docs/scale.md.

    python bench/one_machine.py [--only nodes,actors,drivers,tasks,arguments,returns,objects,array]
                                [--nodes N] [--actors N] …

Of each it tells how long it took, and the memory of the cluster's processes (proportional: shared pages count
once) before and after.

    nodes      raylets that join one cluster, and 100 tasks for each of them
    actors     that live at the same time, and one call of each
    drivers    that join, run a task and leave, DRIVERS_AT_ONCE at a time
    tasks      queued by QUEUEING_DRIVERS drivers at the same time, until the last result is there
    arguments  references to objects that one task has as its arguments
    returns    of one task
    objects    of OBJECT_BYTES in the store that one get brings
    array      of so many GiB that is put, and read in a task
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

import ray_mono as ray
from ray_mono.cluster_utils import Cluster

PYTHON_PATH = sys.path[-1]
DRIVERS_AT_ONCE = 10
QUEUEING_DRIVERS = 4
CPUS = 2
JOIN_TIMEOUT_S = 300.0
OBJECT_BYTES = 128 << 10
MB = 1 << 20

DRIVER = """
import ray_mono as ray
ray.init(address={address!r}, logging_level="ERROR")

@ray.remote
def run(number):
    return number

refs = [run.remote(number) for number in range({num_tasks})]
assert sum(ray.get(refs)) == sum(range({num_tasks}))
"""


@ray.remote
def run(number: int) -> int:
    return number


@ray.remote(num_cpus=0)
class Actor:
    def call(self) -> int:
        return os.getpid()


def memory_mb() -> float:
    """Of this process and all that it started, and those started."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            pass  # it has ended
    return total / MB


@contextmanager
def one_node() -> Iterator[str]:
    """A cluster's address."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS})
    ray.init(address=cluster.address, logging_level="ERROR")
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def nodes(count: int) -> None:
    before_mb, begin_s = memory_mb(), time.perf_counter()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(count - 1):
            cluster.add_node(wait=False, num_cpus=1)
        cluster.wait_for_nodes(JOIN_TIMEOUT_S)
        joined_s = time.perf_counter() - begin_s
        ray.init(address=cluster.address, logging_level="ERROR")
        begin_s = time.perf_counter()
        ray.get([run.options(scheduling_strategy="SPREAD").remote(number) for number in range(100 * count)])
        ran_s = time.perf_counter() - begin_s
        told(f"{count} nodes", f"joined in {joined_s:.1f} s, {100 * count} tasks in {ran_s:.1f} s", before_mb)
    finally:
        ray.shutdown()
        cluster.shutdown()


def actors(count: int) -> None:
    with one_node():
        before_mb, begin_s = memory_mb(), time.perf_counter()
        living = [Actor.remote() for _ in range(count)]
        pids = set(ray.get([actor.call.remote() for actor in living]))
        made_s = time.perf_counter() - begin_s
        begin_s = time.perf_counter()
        ray.get([actor.call.remote() for actor in living])
        called_s = time.perf_counter() - begin_s
        assert len(pids) == count
        told(f"{count} actors", f"made in {made_s:.1f} s, all called in {called_s:.2f} s", before_mb)


def drivers(count: int) -> None:
    with one_node() as address:
        before_mb, begin_s = memory_mb(), time.perf_counter()
        for first in range(0, count, DRIVERS_AT_ONCE):
            _run_drivers(address, min(DRIVERS_AT_ONCE, count - first), num_tasks=1)
        told(f"{count} drivers", f"came and went in {time.perf_counter() - begin_s:.1f} s", before_mb)


def tasks(count: int) -> None:
    with one_node() as address:
        before_mb, begin_s = memory_mb(), time.perf_counter()
        most_mb = _run_drivers(address, QUEUEING_DRIVERS, count // QUEUEING_DRIVERS)
        took_s = time.perf_counter() - begin_s
        what = f"from {QUEUEING_DRIVERS} drivers in {took_s:.1f} s, at most {most_mb:.0f} MB"
        told(f"{count} tasks", what, before_mb)


@ray.remote
def count_of(*values: Any) -> int:
    return len(values)


@ray.remote
def size_of(value: Any) -> int:
    return int(value.nbytes)


def arguments(count: int) -> None:
    with one_node():
        refs = [ray.put(number) for number in range(count)]
        before_mb, begin_s = memory_mb(), time.perf_counter()
        assert ray.get(count_of.remote(*refs)) == count
        told(f"{count} arguments", f"of one task in {time.perf_counter() - begin_s:.2f} s", before_mb)


def returns(count: int) -> None:
    many = ray.remote(num_returns=count)(lambda: range(count))
    with one_node():
        before_mb, begin_s = memory_mb(), time.perf_counter()
        refs: list[Any] = many.remote()
        assert sum(ray.get(refs)) == sum(range(count))
        told(f"{count} returns", f"of one task in {time.perf_counter() - begin_s:.2f} s", before_mb)


def objects(count: int) -> None:
    with one_node():
        refs = [ray.put(np.ones(OBJECT_BYTES, np.uint8)) for _ in range(count)]
        before_mb, begin_s = memory_mb(), time.perf_counter()
        assert len(ray.get(refs)) == count
        told(f"{count} objects", f"in one get in {time.perf_counter() - begin_s:.2f} s", before_mb)


def array(num_gib: int) -> None:
    with one_node():
        before_mb, value = memory_mb(), np.ones(num_gib << 30, np.uint8)
        begin_s = time.perf_counter()
        ref = ray.put(value)
        put_s = time.perf_counter() - begin_s
        del value
        begin_s = time.perf_counter()
        assert ray.get(size_of.remote(ref)) == num_gib << 30
        how = f"put in {put_s:.1f} s, read in a task in {time.perf_counter() - begin_s:.2f} s"
        told(f"an array of {num_gib} GiB", how, before_mb)


def _run_drivers(address: str, count: int, num_tasks: int) -> float:
    """Returns the most memory, in MB, that was in use at one of a few looks."""
    program = DRIVER.format(address=address, num_tasks=num_tasks)
    path = os.pathsep.join([PYTHON_PATH, os.environ.get("PYTHONPATH", "")])
    running = [
        subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path})
        for _ in range(count)
    ]
    most_mb = 0.0
    for process in running:
        while process.poll() is None:
            if num_tasks > 1:
                most_mb = max(most_mb, memory_mb())
            try:
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                pass
        if process.returncode:
            raise SystemExit(f"a driver ended with {process.returncode}")
    return most_mb


def told(what: str, how: str, before_mb: float) -> None:
    print(f"{what}: {how}; {before_mb:.0f} MB before, {memory_mb():.0f} MB after", flush=True)


PARTS: dict[str, Callable[[int], None]] = {
    "nodes": nodes,
    "actors": actors,
    "drivers": drivers,
    "tasks": tasks,
    "arguments": arguments,
    "returns": returns,
    "objects": objects,
    "array": array,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="default: %(default)s")
    counts = {"nodes": 32, "actors": 1_000, "drivers": 100, "tasks": 1_000_000}
    counts |= {"arguments": 10_000, "returns": 3_000, "objects": 10_000, "array": 4}
    for name, count in counts.items():
        parser.add_argument(f"--{name}", type=int, default=count, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    for name in arguments.only.split(","):
        if name not in PARTS:
            parser.error(f"--only must name some of {', '.join(PARTS)}, got {name!r}")
        PARTS[name](getattr(arguments, name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
