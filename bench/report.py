"""Tables of results: for people at a terminal, and the same in Markdown for docs/performance.md."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from bench.results import Results, geometric_mean
from ray_mono.microbenchmark.line import Group, Line

NOTHING = ""
# Of the issue that asked for it: the geometric mean of the lines of Ray's own microbenchmark.
MEAN_TARGET = 5.0


@dataclass(frozen=True)
class Names:
    """What the sides are called in Results."""

    ours: str
    peers: tuple[str, ...]
    floor: str
    judge: str = "Ray"
    """The peer that the ratios to reach are about."""


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return NOTHING
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def ratio_text(value: float | None) -> str:
    return NOTHING if value is None else f"{number(value)} ×"


def rows(groups: list[Group], results: Results, names: Names) -> Iterable[list[str]]:
    """The head, then a row for each line."""
    head = ["line", "unit", names.ours]
    for peer in names.peers:
        head += [peer, "ratio"]
    yield [*head, "to reach", "reached", "of the floor"]
    for group in groups:
        yield [f"[{group.name}]", *[NOTHING] * (len(head) + 2)]
        for line in group.lines():
            yield _row(line, results, names)


def _row(line: Line, results: Results, names: Names) -> list[str]:
    row = [line.name, line.unit.value, _value(line, results, names.ours)]
    for peer in names.peers:
        row += [_value(line, results, peer), ratio_text(results.ratio(line, names.ours, peer))]
    ratio = results.ratio(line, names.ours, names.judge)
    reached = NOTHING
    if line.target is not None and ratio is not None:
        reached = "yes" if ratio >= line.target else "no"
    near = results.of_floor(line, names.ours, names.floor) if line.floor else None
    return [
        *row,
        ratio_text(line.target),
        reached,
        f"{near:.2f} ({line.floor.removeprefix('floor: ')})" if near is not None else NOTHING,
    ]


def _value(line: Line, results: Results, side: str) -> str:
    cell = results.cell(line.name, side)
    if cell.value is None:
        return cell.problem if len(cell.problem) <= 40 else cell.problem[:39] + "…"
    spread = f" ±{cell.spread / 2:.0%}" if cell.spread >= 0.05 else ""
    return number(cell.value) + spread


def mean_line(groups: list[Group], results: Results, names: Names) -> str:
    """The geometric mean of the ratios of the microbenchmark's own lines; "" where there is none."""
    ratios = [
        ratio
        for group in groups
        if group.is_microbenchmark
        for line in group.lines()
        if (ratio := results.ratio(line, names.ours, names.judge)) is not None
    ]
    mean = geometric_mean(ratios)
    if mean is None:
        return NOTHING
    return (
        f"Geometric mean of the ratios to {names.judge}, over {len(ratios)} lines of its microbenchmark:"
        f" {mean:.2f} ×"
        f" (to reach: {MEAN_TARGET:g} ×)."
    )


def floor_rows(floors: list[Line], results: Results, names: Names) -> list[list[str]]:
    found = [["floor", "unit", "measured"]]
    for line in floors:
        cell = results.cell(line.name, names.floor)
        if cell.value is not None or cell.problem:
            found.append(
                [line.name.removeprefix("floor: "), line.unit.value, _value(line, results, names.floor)]
            )
    return found


def as_text(table: Iterable[list[str]]) -> str:
    """Columns under each other, for a terminal."""
    table = list(table)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def as_markdown(table: Iterable[list[str]]) -> str:
    head, *body = table
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in body:
        name = f"**{row[0].strip('[]')}**" if row[0].startswith("[") else row[0]
        lines.append("| " + " | ".join([name, *row[1:]]) + " |")
    return "\n".join(lines)


def machine() -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{os.cpu_count()} cores, {memory_gb:.0f} GB of memory"


def load() -> str:
    """Averages over 1, 5 and 15 minutes: what else ran shows in the figures."""
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())
