"""Large values on one node: put and get by size, into memory that is touched for the first time (cold) and
again (warm).

Every byte of the values was written; a get is timed until one byte of each page has been read, since mapping
alone moves nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ray_mono.microbenchmark import clusters
from ray_mono.microbenchmark.line import Bench, Group, Line, Unit
from ray_mono.microbenchmark.timing import repeated_seconds, seconds

OBJECTS = Group("objects")

SIZES = {"1 MB": 10**6, "100 MB": 10**8, "1 GB": 10**9}
# How many are kept at once, so that each takes memory that none had before.
COLD_COUNT = {"1 MB": 100, "100 MB": 8, "1 GB": 2}
# A store of so many times what is kept at first, which is then put once to use all of it.
STORE_FACTOR = 2.5
PAGE_BYTES = 4096
READERS = 100


def memcpy_floor(size: str, temperature: str) -> str:
    return f"floor: memcpy of {size} into shared memory, {temperature}"


def read(array: Any) -> int:
    """Touches every page."""
    return int(array[::PAGE_BYTES].sum())


def _register_size(name: str, size_bytes: int) -> None:
    gigabytes = size_bytes / 1e9

    def line(what: str, temperature: str, floor: str = "") -> Line:
        target = 1.0 if temperature == "warm" and size_bytes >= 10**8 else None
        return Line(f"{what} of {name}, {temperature}", Unit.GB_PER_SECOND, target, floor)

    cold_put = line("put", "cold", memcpy_floor(name, "cold"))
    warm_put = line("put", "warm", memcpy_floor(name, "warm"))
    cold_get, warm_get = line("get", "cold"), line("get", "warm")

    @OBJECTS.workload(cold_put, warm_put, cold_get, warm_get, heavy=size_bytes >= 10**9)
    def put_and_get(bench: Bench) -> None:
        ray = bench.ray
        store_bytes = int(STORE_FACTOR * COLD_COUNT[name] * size_bytes)
        ray.init(address="local", num_cpus=2, object_store_memory=store_bytes)
        value = np.ones(size_bytes, np.uint8)
        kept: list[Any] = []
        times = [seconds(lambda: kept.append(ray.put(value))) for _ in range(COLD_COUNT[name])]
        bench.report(cold_put.name, [gigabytes / taken_s for taken_s in times])
        kept.clear()
        for _ in range(store_bytes // size_bytes):
            ray.put(value)
        bench.report_rate(warm_put.name, lambda: ray.put(value), gigabytes)

        @ray.remote
        def make() -> Any:
            return np.ones(size_bytes, np.uint8)

        made = [make.remote() for _ in range(2)]
        ray.wait(made, num_returns=2)
        times = [
            seconds(partial(lambda reference: read(ray.get(reference)), reference)) for reference in made
        ]
        bench.report(cold_get.name, [gigabytes / taken_s for taken_s in times])
        bench.report_rate(warm_get.name, lambda: read(ray.get(made[0])), gigabytes)
        ray.shutdown()


for _name, _size_bytes in SIZES.items():
    _register_size(_name, _size_bytes)

SHARED = Group("shared", clusters.local(address="local", num_cpus=2, object_store_memory=1 << 30))


@SHARED.workload(Line("the same 100 MB argument to 100 tasks", Unit.SECONDS))
def shared_argument(bench: Bench) -> None:
    ray = bench.ray

    @ray.remote
    def last(array: Any) -> int:
        return int(array[-1])

    reference = ray.put(np.ones(10**8, np.uint8))

    def run() -> None:
        if sum(ray.get([last.remote(reference) for _ in range(READERS)])) != READERS:
            raise RuntimeError("a task read something else")

    bench.report("the same 100 MB argument to 100 tasks", repeated_seconds(run, bench.duration_s))
