"""`map` beside the loop of `.remote()` that it stands for: in one process, in turn, so that the ratio says
something on a busy machine, too."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

from ray_mono.microbenchmark import clusters
from ray_mono.microbenchmark.line import Bench, Group, Line, Unit

MAPS = Group("map", clusters.local(address="local"))

EMPTY_CALLS = 100_000
ROUNDS = 5
NEEDS = "map"


def _lines(kind: str) -> tuple[Line, Line, Line]:
    of = f"{EMPTY_CALLS:,} empty {kind}"
    return (
        Line(f"{of}: loop of .remote()"),
        Line(f"{of}: map"),
        Line(f"{of}: map against the loop", Unit.TIMES),
    )


TASKS, CALLS = _lines("tasks"), _lines("actor calls")


def _compare(bench: Bench, lines: tuple[Line, Line, Line], called: Any) -> None:
    """called: what has `remote` and `map`."""
    get, items = bench.ray.get, range(EMPTY_CALLS)
    called_by_map = called.map
    samples: tuple[list[float], list[float]] = ([], [])
    ways: tuple[Callable[[], list[Any]], ...] = (
        lambda: [called.remote(item) for item in items],
        lambda: called_by_map(items),
    )
    for way in ways:
        get(way())
    for _ in range(ROUNDS):
        for way, found in zip(ways, samples, strict=True):
            gc.collect()
            start_s = time.perf_counter()
            get(way())
            found.append(EMPTY_CALLS / (time.perf_counter() - start_s))
    for line, found in zip(lines, samples, strict=False):
        bench.report(line.name, found)
    loop, mapped = (statistics.median(found) for found in samples)
    bench.report(lines[2].name, [mapped / loop])


@MAPS.workload(*TASKS, needs=NEEDS, heavy=True)
def tasks(bench: Bench) -> None:
    @bench.ray.remote
    def nothing(item: int) -> None: ...

    _compare(bench, TASKS, nothing)


@MAPS.workload(*CALLS, needs=NEEDS, heavy=True)
def actor_calls(bench: Bench) -> None:
    class Actor:
        def nothing(self, item: int) -> None: ...

    _compare(bench, CALLS, bench.ray.remote(Actor).remote().nothing)
