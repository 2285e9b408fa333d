"""The workloads that Dask's `distributed` can do too, under the names of the lines that they answer to.

Two worker processes of one thread each stand against two CPUs. Dask has no actors' pace, objects or leases to
compare beyond these.
"""

from __future__ import annotations

import contextlib
import operator
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ray_mono.microbenchmark import nodes, scale
from ray_mono.microbenchmark.calls import BATCH
from ray_mono.microbenchmark.line import Bench, Group, Line, Unit
from ray_mono.microbenchmark.timing import repeated_seconds, seconds


@contextlib.contextmanager
def local_cluster(distributed: Any) -> Iterator[None]:
    """Two workers; the client is the default one."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=0,
            local_directory=scratch,
        ) as cluster,
        distributed.Client(cluster),
    ):
        yield


CALLS = Group("calls", local_cluster)
SCALE = Group("scale", local_cluster)
NODES = Group("nodes", local_cluster)
GROUPS = [CALLS, SCALE, NODES]


def small_value() -> bytes:
    return b"ok"


def nothing() -> None:
    pass


def next_of(value: int) -> int:
    return value + 1


def identity(value: int) -> int:
    return value


def split(count: int, size_bytes: int) -> list[Any]:
    return [np.full(size_bytes, 1, np.uint8) for _ in range(count)]


def total(*pieces: Any) -> int:
    return sum(int(piece[0]) * len(piece) for piece in pieces)


def submit(distributed: Any, function: Callable[..., object], *arguments: object, **options: Any) -> Any:
    """A future of a call that is made anew, even if the same call was made before."""
    return distributed.default_client().submit(function, *arguments, pure=False, **options)


@CALLS.rate("single client tasks sync")
def tasks_sync(distributed: Any) -> Callable[[], object]:
    return lambda: submit(distributed, small_value).result()


@CALLS.rate("single client tasks async", BATCH)
def tasks_async(distributed: Any) -> Callable[[], object]:
    return lambda: distributed.default_client().gather(
        [submit(distributed, small_value) for _ in range(BATCH)]
    )


def _timed(name: str, prepare: Callable[[Any], Callable[[], object]]) -> None:
    @SCALE.workload(Line(name, Unit.SECONDS))
    def measure(bench: Bench) -> None:
        bench.report(name, repeated_seconds(prepare(bench.ray), bench.duration_s))


def chain(distributed: Any) -> Callable[[], object]:
    def run() -> None:
        future = submit(distributed, next_of, 0)
        for _ in range(scale.CHAIN - 1):
            future = submit(distributed, next_of, future)
        if future.result() != scale.CHAIN:
            raise RuntimeError("the chain lost a link")

    return run


def tree_reduce(distributed: Any) -> Callable[[], object]:
    def run() -> None:
        level = [submit(distributed, identity, i) for i in range(scale.LEAVES)]
        while len(level) > 1:
            level = [
                submit(distributed, operator.add, left, right)
                for left, right in zip(level[::2], level[1::2], strict=True)
            ]
        if level[0].result() != scale.LEAVES * (scale.LEAVES - 1) // 2:
            raise RuntimeError("the tree lost a leaf")

    return run


def queued(distributed: Any) -> Callable[[], object]:
    return lambda: distributed.default_client().gather(
        [submit(distributed, nothing) for _ in range(scale.QUEUED)]
    )


_timed(scale.CHAIN_NAME, chain)
_timed(scale.TREE_NAME, tree_reduce)
_timed(scale.QUEUED_NAME, queued)


@NODES.workload(nodes.SHUFFLE_COLD, nodes.SHUFFLE_WARM, heavy=True, timeout_s=240)
def shuffle(bench: Bench) -> None:
    """By the same tasks, placed in turn on the two workers; a task has one result here, so that pieces are
    picked by a task each."""
    distributed = bench.ray
    parts = nodes.SHUFFLE_PARTS
    piece_bytes = nodes.SHUFFLE_BYTES // parts**2
    workers = sorted(distributed.default_client().scheduler_info()["workers"])

    def run() -> None:
        rows = [
            submit(distributed, split, parts, piece_bytes, workers=[workers[i % 2]]) for i in range(parts)
        ]
        sums = [
            submit(
                distributed,
                total,
                *[submit(distributed, operator.getitem, row, i) for row in rows],
                workers=[workers[i % 2]],
            )
            for i in range(parts)
        ]
        if sum(distributed.default_client().gather(sums)) != piece_bytes * parts**2:
            raise RuntimeError("bytes were lost")

    nodes.report_cold_and_warm(
        bench, nodes.SHUFFLE_COLD, nodes.SHUFFLE_WARM, nodes.SHUFFLE_BYTES / 1e9, lambda: seconds(run)
    )
