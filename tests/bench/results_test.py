"""Medians, ratios whose direction depends on the unit, and their mean."""

from __future__ import annotations

import pytest

from bench.results import Results, better, geometric_mean
from ray_mono.microbenchmark.line import Line, Unit
from ray_mono.microbenchmark.supervisor import Outcome

RATE = Line("rate", Unit.PER_SECOND, floor="floor: rate")
TIME = Line("time", Unit.SECONDS)


def test_more_per_second_is_better_and_less_time_is() -> None:
    assert better(RATE, 20.0, 10.0) == 2.0
    assert better(TIME, 20.0, 10.0) == 0.5


@pytest.mark.parametrize(("value", "other"), [(None, 1.0), (1.0, None), (0.0, 1.0), (1.0, 0.0)])
def test_there_is_no_ratio_without_two_figures(value: float | None, other: float | None) -> None:
    assert better(RATE, value, other) is None


def test_a_round_counts_with_its_median_and_the_line_with_the_median_of_rounds() -> None:
    results = Results()
    for samples in ([1.0, 2.0, 90.0], [4.0, 4.0], [3.0]):
        results.add("ours", Outcome("rate", samples))
    cell = results.cell("rate", "ours")
    assert cell.medians == [2.0, 4.0, 3.0]
    assert cell.value == 3.0
    assert cell.spread == pytest.approx(2 / 3)


def test_a_round_that_failed_leaves_the_figures_of_the_others() -> None:
    results = Results()
    results.add("ours", Outcome("rate", [5.0]))
    results.add("ours", Outcome("rate", problem="it hung"))
    cell = results.cell("rate", "ours")
    assert (cell.value, cell.problem) == (5.0, "it hung")


def test_ratios_are_between_sides_and_to_the_floor() -> None:
    results = Results()
    results.add("ours", Outcome("rate", [10.0]))
    results.add("theirs", Outcome("rate", [4.0]))
    results.add("floor", Outcome("floor: rate", [40.0]))
    assert results.ratio(RATE, "ours", "theirs") == 2.5
    assert results.of_floor(RATE, "ours", "floor") == 0.25
    assert results.ratio(RATE, "ours", "nobody") is None


def test_the_geometric_mean_weighs_gains_and_losses_alike() -> None:
    assert geometric_mean([4.0, 0.25]) == pytest.approx(1.0)
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([]) is None
