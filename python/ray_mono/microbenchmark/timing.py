"""Repeating something and saying how fast it went.

Samples, not one figure: whoever compares takes medians.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

SLICES = 4
# Of the duration; at least one call.
WARM_UP_SHARE = 0.5


def rates(function: Callable[[], object], count: float, duration_s: float) -> list[float]:
    """Calls `function` for about `duration_s` after a warm-up, in slices; returns `count` times calls per
    second of each slice.

    A call that takes longer than its slice is not cut short; there are fewer slices then, at least one.
    """
    calls, warm_up_s = _calls_within(function, duration_s * WARM_UP_SHARE, 1)
    slice_s = duration_s / SLICES
    # The clock is read ten times a slice or so, not around every call.
    step = max(1, int(calls / warm_up_s * slice_s / 10))
    samples: list[float] = []
    spent_s = 0.0
    while len(samples) < SLICES and spent_s < duration_s:
        calls, taken_s = _calls_within(function, slice_s, step)
        samples.append(count * calls / taken_s)
        spent_s += taken_s
    return samples


def _calls_within(function: Callable[[], object], duration_s: float, step: int) -> tuple[int, float]:
    """Calls until the time is over, looking at the clock every `step` calls.

    Returns the calls and the time they took.
    """
    calls = 0
    start_s = time.perf_counter()
    while True:
        for _ in range(step):
            function()
        calls += step
        taken_s = time.perf_counter() - start_s
        if taken_s >= duration_s:
            return calls, taken_s


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes, garbage of earlier work collected first."""
    gc.collect()
    start_s = time.perf_counter()
    function()
    return time.perf_counter() - start_s


def repeated_seconds(
    function: Callable[[], object], duration_s: float, times_max: int = 5, warm_up: bool = True
) -> list[float]:
    """Times calls until `duration_s` is over or there are `times_max`, at least one. warm_up: after one
    that is not timed."""
    if warm_up:
        function()
    samples = [seconds(function)]
    while len(samples) < times_max and sum(samples) < duration_s:
        samples.append(seconds(function))
    return samples
