"""When a line has lost speed, and when that is only what the machine's noise does."""

from __future__ import annotations

import pytest

from bench.before_after import AFTER, AGAIN, BEFORE, noise, rows, verdict
from bench.results import Results
from ray_mono.microbenchmark.line import Group, Line, Unit, Workload
from ray_mono.microbenchmark.supervisor import Outcome

RATE = Line("rate", Unit.PER_SECOND)
TIME = Line("time", Unit.SECONDS)


def measured(line: Line, **values: float) -> Results:
    results = Results()
    for name, value in values.items():
        side = {"before": BEFORE, "after": AFTER, "again": AGAIN}[name]
        results.add(side, Outcome(line.name, [value]))
    return results


@pytest.mark.parametrize(
    ("line", "before", "after", "again", "told"),
    [
        (RATE, 100.0, 96.0, 96.0, "kept"),
        (RATE, 100.0, 94.0, 94.0, "lost"),
        (RATE, 100.0, 94.0, 101.0, "kept"),
        (RATE, 100.0, 94.0, 88.0, "kept"),
        (RATE, 100.0, 130.0, 130.0, "kept"),
        (TIME, 1.0, 1.04, 1.04, "kept"),
        (TIME, 1.0, 1.07, 1.07, "lost"),
        (TIME, 1.0, 0.5, 0.5, "kept"),
    ],
)
def test_a_line_is_lost_beyond_five_percent_and_beyond_what_two_identical_builds_differ(
    line: Line, before: float, after: float, again: float, told: str
) -> None:
    assert verdict(line, measured(line, before=before, after=after, again=again)) == told


def test_noise_is_the_same_whichever_of_the_two_was_faster() -> None:
    slower = measured(RATE, after=100.0, again=110.0)
    faster = measured(RATE, after=110.0, again=100.0)
    assert noise(RATE, slower) == pytest.approx(noise(RATE, faster)) == pytest.approx(0.1)


def test_a_line_that_is_not_measured_any_more_is_lost_and_one_that_was_not_before_is_new() -> None:
    assert verdict(RATE, measured(RATE, before=1.0)).startswith("lost")
    assert verdict(RATE, measured(RATE, after=1.0, again=1.0)) == "new"


def test_every_line_has_its_row() -> None:
    group = Group("toys", workloads=[Workload((RATE, TIME), lambda bench: None)])
    head, *body = rows([group], measured(RATE, before=100.0, after=90.0, again=90.0))
    assert [row[0] for row in body] == ["rate", "time"]
    assert body[0][head.index("ratio")] == "0.900"
