"""Calls at times to come, of one reactor. Lock held for everything."""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Timer:
    """One of them."""

    __slots__ = ("callback", "time_s")

    def __init__(self, time_s: float, callback: Callable[[], None]) -> None:
        self.time_s = time_s
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Timers:
    """All of them, in order."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._counter = itertools.count()

    def add(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._heap, (timer.time_s, next(self._counter), timer))
        return timer

    def first_before(self, until_s: float) -> float:
        """When the first of them is due, or until_s if that is sooner."""
        if not self._heap:
            return until_s
        first_s = self._heap[0][0]
        return first_s if first_s < until_s else until_s

    def run(self) -> None:
        """Those that are due."""
        while self._heap and self._heap[0][0] <= time.monotonic():
            timer = heapq.heappop(self._heap)[2]
            if timer.callback is not None:
                try:
                    timer.callback()
                except Exception:
                    logger.exception("a timer failed; this is a bug of ray_mono")
