"""Several nodes on this machine: calls from one raylet's worker to another's, and objects that have to
travel.

An object travels into memory of the other store that is touched for the first time (cold) or that an earlier
object was freed from (warm). Times are the caller's: from the call to the answer of a task there that has
read the object.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ray_mono.microbenchmark import clusters
from ray_mono.microbenchmark.line import Bench, Group, Line, Unit
from ray_mono.microbenchmark.objects import read
from ray_mono.microbenchmark.timing import seconds

NODES = Group("nodes")

BATCH = 1000
OBJECT_BYTES = 200 * 10**6
LARGE_BYTES = 2 * 10**9
BROADCAST_BYTES = 100 * 10**6
RECEIVERS = 4
SHUFFLE_BYTES = 10**9
SHUFFLE_PARTS = 8
# As often as fills the stores, unmeasured, and as often measured.
WARM_UPS = 4
WARM_REPEATS = 4
# For what was freed to be free on the other node too.
FREED_S = 0.5
TCP_WARM = "floor: TCP stream into shared memory, warm"
TCP_COLD = "floor: TCP stream into shared memory, cold"
THERE = {"num_cpus": 0, "resources": {"there": 1}}


def _two_nodes(ray: Any, store_bytes: int) -> Any:
    return clusters.nodes(ray, {"CPU": 2, "here": 100}, {"CPU": 2, "there": 100}, store_bytes=store_bytes)


# ---- calls

TASKS_SYNC = Line("two nodes: tasks sync", target=2)
TASKS_ASYNC = Line("two nodes: tasks async", target=2)
ACTOR_SYNC = Line("two nodes: 1:1 actor calls sync", target=2)
ACTOR_ASYNC = Line("two nodes: 1:1 actor calls async", target=2)


@NODES.workload(TASKS_SYNC, TASKS_ASYNC, ACTOR_SYNC, ACTOR_ASYNC)
def calls(bench: Bench) -> None:
    ray = bench.ray
    with _two_nodes(ray, 1 << 30):

        @ray.remote(**THERE)
        def small_value() -> bytes:
            return b"ok"

        class Actor:
            def small_value(self) -> bytes:
                return b"ok"

        bench.report_rate(TASKS_SYNC.name, lambda: ray.get(small_value.remote()))
        bench.report_rate(
            TASKS_ASYNC.name, lambda: ray.get([small_value.remote() for _ in range(BATCH)]), BATCH
        )
        actor = ray.remote(**THERE)(Actor).remote()
        bench.report_rate(ACTOR_SYNC.name, lambda: ray.get(actor.small_value.remote()))
        bench.report_rate(
            ACTOR_ASYNC.name, lambda: ray.get([actor.small_value.remote() for _ in range(BATCH)]), BATCH
        )


# ---- objects


def report_cold_and_warm(
    bench: Bench, cold: Line, warm: Line, gigabytes: float, once: Callable[[], float]
) -> None:
    """Once cold, then again in what that freed. once: does it with a new object, and returns the seconds
    of what counts."""
    bench.report(cold.name, [gigabytes / once()])
    samples = []
    for _ in range(WARM_UPS + WARM_REPEATS):
        time.sleep(FREED_S)
        samples.append(gigabytes / once())
    bench.report(warm.name, samples[WARM_UPS:])


def _register_transfer(name: str, size_bytes: int, heavy: bool) -> None:
    cold = Line(f"{name} to another node, cold", Unit.GB_PER_SECOND, 1, TCP_COLD)
    warm = Line(f"{name} to another node, warm", Unit.GB_PER_SECOND, 3, TCP_WARM)

    @NODES.workload(cold, warm, heavy=heavy, timeout_s=300)
    def transfer(bench: Bench) -> None:
        ray = bench.ray
        with _two_nodes(ray, 2 * size_bytes + (1 << 29)):
            read_there = ray.remote(**THERE)(read)
            ray.get(read_there.remote(np.ones(10, np.uint8)))
            value = np.ones(size_bytes, np.uint8)

            def once() -> float:
                reference = ray.put(value)
                return seconds(lambda: ray.get(read_there.remote(reference)))

            report_cold_and_warm(bench, cold, warm, size_bytes / 1e9, once)


_register_transfer("200 MB", OBJECT_BYTES, heavy=False)
_register_transfer("2 GB", LARGE_BYTES, heavy=True)

BROADCAST_COLD = Line("broadcast of 100 MB to 4 raylets, cold", Unit.GB_PER_SECOND, 1)
BROADCAST_WARM = Line("broadcast of 100 MB to 4 raylets, warm", Unit.GB_PER_SECOND, 3)


@NODES.workload(BROADCAST_COLD, BROADCAST_WARM, heavy=True, timeout_s=300)
def broadcast(bench: Bench) -> None:
    """Counts the bytes that all receivers got."""
    ray = bench.ray
    receivers: list[dict[str, float]] = [{"CPU": 1, f"node{i}": 1} for i in range(RECEIVERS)]
    with clusters.nodes(ray, {"CPU": 1}, *receivers, store_bytes=1 << 29):
        readers = [ray.remote(num_cpus=0, resources={f"node{i}": 1})(read) for i in range(RECEIVERS)]
        ray.get([reader.remote(np.ones(10, np.uint8)) for reader in readers])
        value = np.ones(BROADCAST_BYTES, np.uint8)

        def once() -> float:
            reference = ray.put(value)
            return seconds(lambda: ray.get([reader.remote(reference) for reader in readers]))

        report_cold_and_warm(bench, BROADCAST_COLD, BROADCAST_WARM, BROADCAST_BYTES * RECEIVERS / 1e9, once)


SHUFFLE_COLD = Line("shuffle of 1 GB over 2 raylets, cold", Unit.GB_PER_SECOND, 1)
SHUFFLE_WARM = Line("shuffle of 1 GB over 2 raylets, warm", Unit.GB_PER_SECOND, 3)


@NODES.workload(SHUFFLE_COLD, SHUFFLE_WARM, heavy=True, timeout_s=300)
def shuffle(bench: Bench) -> None:
    """Every part is split by tasks on both nodes, and one piece of each goes to each reducer; half of all
    bytes travel."""
    ray = bench.ray
    piece_bytes = SHUFFLE_BYTES // SHUFFLE_PARTS**2
    with _two_nodes(ray, 3 << 30):

        @ray.remote(num_returns=SHUFFLE_PARTS)
        def split(seed: int) -> Any:
            return [np.full(piece_bytes, seed, np.uint8) for _ in range(SHUFFLE_PARTS)]

        @ray.remote
        def total(*pieces: Any) -> int:
            return sum(int(piece[0]) * len(piece) for piece in pieces)

        def places(task: Any) -> list[Any]:
            return [task.options(resources={"here" if i % 2 else "there": 1}) for i in range(SHUFFLE_PARTS)]

        def run() -> None:
            pieces = [task.remote(1) for task in places(split)]
            sums = [task.remote(*[row[i] for row in pieces]) for i, task in enumerate(places(total))]
            if sum(ray.get(sums)) != piece_bytes * SHUFFLE_PARTS**2:
                raise RuntimeError("bytes were lost")

        report_cold_and_warm(bench, SHUFFLE_COLD, SHUFFLE_WARM, SHUFFLE_BYTES / 1e9, lambda: seconds(run))
