"""Rates and times: how often things are called, and that each sample is about what was asked."""

from __future__ import annotations

from ray_mono.microbenchmark import timing


class Counted:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


def test_a_rate_counts_what_a_call_does_in_every_slice() -> None:
    function = Counted()
    samples = timing.rates(function, 1000, 0.02)
    # A slice that the machine stretches takes the place of another.
    assert 1 <= len(samples) <= timing.SLICES
    assert function.calls > timing.SLICES
    assert all(sample > 1000 for sample in samples)


def test_a_call_that_outlasts_its_slice_is_measured_once() -> None:
    function = Counted()
    assert len(timing.rates(function, 1000, 1e-9)) == 1
    assert function.calls == 2, "one to warm up and one that counts"


def test_times_are_taken_until_the_duration_or_their_number_is_reached() -> None:
    function = Counted()
    assert len(timing.repeated_seconds(function, 1e-9)) == 1
    assert function.calls == 2
    assert len(timing.repeated_seconds(function, 60, times_max=3)) == 3


def test_a_time_may_be_taken_of_the_very_first_call() -> None:
    function = Counted()
    timing.repeated_seconds(function, 1e-9, warm_up=False)
    assert function.calls == 1
