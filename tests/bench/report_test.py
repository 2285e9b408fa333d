"""What the tables say: figures, ratios, what was reached, and why a figure is missing."""

from __future__ import annotations

import pytest

from bench import report
from bench.results import Results
from ray_mono.microbenchmark.line import Bench, Group, Line, Unit
from ray_mono.microbenchmark.supervisor import Outcome

NAMES = report.Names("ours", ("Ray", "Dask"), "floor")


def nothing(bench: Bench) -> None:
    pass


@pytest.fixture
def groups() -> list[Group]:
    group = Group("calls", is_microbenchmark=True)
    group.workload(Line("fast", target=2, floor="floor: echo"))(nothing)
    group.workload(Line("slow", Unit.SECONDS, target=2))(nothing)
    group.workload(Line("missing", target=2))(nothing)
    return [group]


@pytest.fixture
def results() -> Results:
    made = Results()
    for line, side, value in (
        ("fast", "ours", 12_345.6),
        ("fast", "Ray", 1234.56),
        ("fast", "Dask", 100.0),
        ("floor: echo", "floor", 24_691.2),
        ("slow", "ours", 1.5),
        ("slow", "Ray", 1.5),
        ("missing", "Ray", 7.0),
    ):
        made.add(side, Outcome(line, [value]))
    made.add("ours", Outcome("missing", problem="not yet: wings"))
    return made


def test_each_line_has_its_figures_ratios_and_verdict(groups: list[Group], results: Results) -> None:
    head, title, fast, slow, missing = report.rows(groups, results, NAMES)
    assert head[:7] == ["line", "unit", "ours", "Ray", "ratio", "Dask", "ratio"]
    assert title[0] == "[calls]"
    assert fast == ["fast", "/s", "12,346", "1,235", "10 ×", "100", "123 ×", "2 ×", "yes", "0.50 (echo)"]
    assert slow == ["slow", "s", "1.5", "1.5", "1 ×", "", "", "2 ×", "no", ""]
    assert missing == ["missing", "/s", "not yet: wings", "7", "", "", "", "2 ×", "", ""]


def test_the_mean_is_over_the_lines_that_have_a_ratio(groups: list[Group], results: Results) -> None:
    assert "over 2 lines of its microbenchmark: 3.16 ×" in report.mean_line(groups, results, NAMES)


def test_rounds_that_differ_show_how_much(groups: list[Group], results: Results) -> None:
    results.add("ours", Outcome("slow", [1.0]))
    slow = list(report.rows(groups, results, NAMES))[3]
    assert slow[2] == "1.25 ±20%"


def test_text_and_markdown_hold_the_same_cells(groups: list[Group], results: Results) -> None:
    table = list(report.rows(groups, results, NAMES))
    text, markdown = report.as_text(table), report.as_markdown(table)
    assert len(text.splitlines()) == len(table)
    assert "| fast | /s | 12,346 |" in markdown
    assert "**calls**" in markdown
