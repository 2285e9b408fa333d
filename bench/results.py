"""What several rounds of several sides came to: medians, ratios and their geometric mean."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from ray_mono.microbenchmark.line import Line
from ray_mono.microbenchmark.supervisor import Outcome


@dataclass
class Cell:
    """One line on one side: a median for each round in which it was measured."""

    medians: list[float] = field(default_factory=list)
    problem: str = ""
    """Of the last round that had one."""

    @property
    def value(self) -> float | None:
        return statistics.median(self.medians) if self.medians else None

    @property
    def spread(self) -> float:
        """How far the rounds lie apart, as a share of their median; 0 for one round."""
        if len(self.medians) < 2 or not self.value:
            return 0.0
        return (max(self.medians) - min(self.medians)) / abs(self.value)


class Results:
    """Cells by line and side."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], Cell] = {}

    def add(self, side: str, outcome: Outcome) -> None:
        cell = self._cells.setdefault((outcome.line, side), Cell())
        if outcome.samples:
            cell.medians.append(statistics.median(outcome.samples))
        else:
            cell.problem = outcome.problem

    def cell(self, line: str, side: str) -> Cell:
        return self._cells.get((line, side), Cell())

    def ratio(self, line: Line, side: str, other: str) -> float | None:
        """How many times better `side` is than `other`; None where one of them has no figure."""
        return better(line, self.cell(line.name, side).value, self.cell(line.name, other).value)

    def of_floor(self, line: Line, side: str, floor_side: str) -> float | None:
        """How near a side comes to the line's floor: 1 is as good as the floor."""
        return better(line, self.cell(line.name, side).value, self.cell(line.floor, floor_side).value)

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"line": line, "side": side, "medians": cell.medians, "problem": cell.problem}
            for (line, side), cell in self._cells.items()
        ]


def better(line: Line, value: float | None, other: float | None) -> float | None:
    """value against other, so that more than 1 is better in the line's unit. None where there is no such
    ratio."""
    if not value or not other:
        return None
    return value / other if line.unit.more_is_better else other / value


def geometric_mean(ratios: list[float]) -> float | None:
    """None of an empty list."""
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios)) if ratios else None
