"""Many of something on one node: nested and chained tasks, deep queues, many objects at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ray_mono.microbenchmark import clusters, processes
from ray_mono.microbenchmark.line import Bench, Group, Line, Unit
from ray_mono.microbenchmark.timing import repeated_seconds

SCALE = Group("scale", clusters.local(address="local", num_cpus=2))

CHAIN_NAME = "chain of 1,000 dependent tasks"
TREE_NAME = "tree reduce of 1,024 leaves"
QUEUED_NAME = "20,000 queued tasks"
FIB_OF = 10
CHAIN = 1000
LEAVES = 1024
QUEUED = 20_000
PUTS = 10_000
RETURNS = 3000
STREAMED = 10_000
WAITED = 1000
# Tasks that wait while the memory they cost is measured.
HELD = 50_000
FLAT_SIZES = (1000, 10_000, 100_000, 1_000_000)


def _timed(name: str, **options: Any) -> Callable[[Callable[[Any], Callable[[], object]]], object]:
    """Decorates a function that prepares, given the module, what is to be timed as a whole."""
    target = options.pop("target", None)

    def register(prepare: Callable[[Any], Callable[[], object]]) -> object:
        @SCALE.workload(Line(name, Unit.SECONDS, target), **options)
        def measure(bench: Bench) -> None:
            bench.report(name, repeated_seconds(prepare(bench.ray), bench.duration_s))

        return measure

    return register


@_timed(f"nested fib({FIB_OF}) on 2 CPUs")
def fib(ray: Any) -> Callable[[], object]:
    """Each call waits for the two that it has made: 177 tasks, most of which are blocked."""

    @ray.remote
    def number(n: int) -> int:
        return n if n < 2 else sum(ray.get([number.remote(n - 1), number.remote(n - 2)]))

    return lambda: ray.get(number.remote(FIB_OF))


@_timed(CHAIN_NAME)
def chain(ray: Any) -> Callable[[], object]:
    @ray.remote
    def next_of(value: int) -> int:
        return value + 1

    def run() -> None:
        reference = next_of.remote(0)
        for _ in range(CHAIN - 1):
            reference = next_of.remote(reference)
        if ray.get(reference) != CHAIN:
            raise RuntimeError("the chain lost a link")

    return run


@_timed(TREE_NAME)
def tree_reduce(ray: Any) -> Callable[[], object]:
    @ray.remote
    def leaf(value: int) -> int:
        return value

    @ray.remote
    def add(left: int, right: int) -> int:
        return left + right

    def run() -> None:
        level = [leaf.remote(i) for i in range(LEAVES)]
        while len(level) > 1:
            level = [add.remote(left, right) for left, right in zip(level[::2], level[1::2], strict=True)]
        if ray.get(level[0]) != LEAVES * (LEAVES - 1) // 2:
            raise RuntimeError("the tree lost a leaf")

    return run


@_timed(QUEUED_NAME, target=5)
def queued(ray: Any) -> Callable[[], object]:
    @ray.remote
    def nothing() -> None:
        pass

    return lambda: ray.get([nothing.remote() for _ in range(QUEUED)])


@_timed("10,000 puts")
def puts(ray: Any) -> Callable[[], object]:
    return lambda: [ray.put(i) for i in range(PUTS)]


@_timed("10,000 object arguments to one task")
def many_arguments(ray: Any) -> Callable[[], object]:
    @ray.remote
    def count(*values: int) -> int:
        return len(values)

    def run() -> None:
        if ray.get(count.remote(*[ray.put(i) for i in range(PUTS)])) != PUTS:
            raise RuntimeError("arguments were lost")

    return run


@_timed("get of 10,000 refs")
def get_many(ray: Any) -> Callable[[], object]:
    references = [ray.put(i) for i in range(PUTS)]
    return lambda: ray.get(references)


@_timed("3,000 returns of one task")
def many_returns(ray: Any) -> Callable[[], object]:
    @ray.remote(num_returns=RETURNS)
    def values() -> Any:
        return range(RETURNS)

    return lambda: ray.get(values.remote())


@_timed("10,000 streamed items")
def streamed(ray: Any) -> Callable[[], object]:
    @ray.remote(num_returns="streaming")
    def items() -> Any:
        for i in range(STREAMED):
            yield str(i)

    def run() -> None:
        if sum(1 for reference in items.remote() if ray.get(reference) is not None) != STREAMED:
            raise RuntimeError("items were lost")

    return run


@_timed("wait on 1,000 refs, all of them")
def wait_many(ray: Any) -> Callable[[], object]:
    @ray.remote
    def nothing() -> None:
        pass

    def run() -> None:
        references = [nothing.remote() for _ in range(WAITED)]
        ready, _ = ray.wait(references, num_returns=WAITED, timeout=60)
        if len(ready) != WAITED:
            raise RuntimeError(f"only {len(ready)} were ready in time")

    return run


# ---- the driver's memory, and whether the cost of a task depends on how many there are


FLAT = Group("flat")


@FLAT.workload(Line("driver memory per queued task", Unit.BYTES))
def memory_per_task(bench: Bench) -> None:
    """Private memory that the driver gains by tasks that cannot run: both CPUs are taken."""
    ray = bench.ray
    ray.init(address="local", num_cpus=2)

    @ray.remote
    def nothing() -> None:
        pass

    class Holder:
        def ready(self) -> None:
            pass

    holders = [ray.remote(num_cpus=1)(Holder).remote() for _ in range(2)]
    ray.get([holder.ready.remote() for holder in holders])
    early = [nothing.remote() for _ in range(100)]
    before_bytes = processes.private_bytes(os.getpid())
    references = [nothing.remote() for _ in range(HELD)]
    grown_bytes = processes.private_bytes(os.getpid()) - before_bytes
    bench.report("driver memory per queued task", [grown_bytes / len(references)])
    del early, holders
    ray.shutdown()


def _register_size(count: int) -> None:
    line = Line(f"cost per task of {count:,} queued", Unit.MICROSECONDS)

    @FLAT.workload(line, heavy=count > 10_000, timeout_s=120 if count <= 10_000 else 900)
    def cost(bench: Bench) -> None:
        ray = bench.ray
        ray.init(address="local", num_cpus=2)

        @ray.remote
        def nothing() -> None:
            pass

        times = repeated_seconds(
            lambda: ray.get([nothing.remote() for _ in range(count)]),
            bench.duration_s,
            warm_up=count <= 10_000,
        )
        bench.report(line.name, [taken_s / count * 1e6 for taken_s in times])
        ray.shutdown()


for _size in FLAT_SIZES:
    _register_size(_size)
