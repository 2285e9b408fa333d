"""What is measured: units, lines, workloads, and groups of workloads that share a cluster."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ray_mono.microbenchmark import timing


class Unit(enum.Enum):
    """Of a line; the value is what tables show."""

    PER_SECOND = "/s"
    GB_PER_SECOND = "GB/s"
    SECONDS = "s"
    MICROSECONDS = "µs"
    MEGABYTES = "MB"
    BYTES = "bytes"
    PERCENT_OF_A_CORE = "% of a core"
    TIMES = "×"

    @property
    def more_is_better(self) -> bool:
        return self in (Unit.PER_SECOND, Unit.GB_PER_SECOND, Unit.TIMES)


@dataclass(frozen=True)
class Line:
    """One figure."""

    name: str
    unit: Unit = Unit.PER_SECOND
    target: float | None = None
    """The ratio to the peer to be reached; None: none is set."""
    floor: str = ""
    """The name of a line that shows what the machine can do at best, in the same unit; "" if there is
    none."""


@dataclass(frozen=True)
class Bench:
    """What a workload is given."""

    ray: Any
    """The module to measure, connected unless the group says otherwise."""
    duration_s: float
    """How long the repetitions of a line are to take together."""
    report: Callable[[str, list[float]], None]
    """Takes the samples of a line, in its unit."""

    def report_rate(self, name: str, function: Callable[[], object], count: float = 1) -> None:
        """Repeats `function`, each call of which does `count` of what the line counts."""
        self.report(name, timing.rates(function, count, self.duration_s))


@dataclass(frozen=True)
class Workload:
    """Measures its lines when it is called."""

    lines: tuple[Line, ...]
    measure: Callable[[Bench], None]
    needs: str = ""
    """A feature that a module may not have yet; its absence is no failure."""
    heavy: bool = False
    """Takes minutes or gigabytes: left out of quick runs, and compared in a single round."""
    timeout_s: float = 120.0

    @property
    def name(self) -> str:
        return self.lines[0].name


Repeated = Callable[[Any], Callable[[], object]]


@dataclass
class Group:
    """Workloads that run one after another in one process."""

    name: str
    cluster: Callable[[Any], AbstractContextManager[object]] | None = None
    """Connects the module for the time of all workloads; None: each workload makes a cluster of its own,
    in a process of its own."""
    is_microbenchmark: bool = False
    """Whether its lines are Ray's own."""
    workloads: list[Workload] = field(default_factory=list)

    def rate(
        self, name: str, count: float = 1, *, target: float | None = None, floor: str = "", **options: Any
    ) -> Callable[[Repeated], Repeated]:
        """Decorates a function that prepares, given the module, and returns what is to be repeated.
        options: of Workload."""
        line = Line(name, Unit.PER_SECOND, target, floor)

        def register(prepare: Repeated) -> Repeated:
            def measure(bench: Bench) -> None:
                bench.report_rate(name, prepare(bench.ray), count)

            self.workloads.append(Workload((line,), measure, **options))
            return prepare

        return register

    def workload(
        self, *lines: Line, **options: Any
    ) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
        """Decorates a function that reports all these lines. options: of Workload."""

        def register(measure: Callable[[Bench], None]) -> Callable[[Bench], None]:
            self.workloads.append(Workload(lines, measure, **options))
            return measure

        return register

    def lines(self) -> Iterator[Line]:
        for workload in self.workloads:
            yield from workload.lines
