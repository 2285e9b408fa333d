"""Calls at times to come, of one reactor. Lock held for everything."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import time
from collections.abc import Callable

from ray_mono.common.our_bug import OUR_BUG

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
        self.first_s = math.inf
        """When the first of them is due."""
        self._heap: list[tuple[float, int, Timer]] = []
        self._counter = itertools.count()

    def add(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._heap, (timer.time_s, next(self._counter), timer))
        self.first_s = self._heap[0][0]
        return timer

    def run(self) -> None:
        """Those that are due."""
        heap = self._heap
        while heap and heap[0][0] <= time.monotonic():
            timer = heapq.heappop(heap)[2]
            if timer.callback is not None:
                try:
                    timer.callback()
                except Exception:
                    logger.exception("a timer failed; %s", OUR_BUG)
        self.first_s = heap[0][0] if heap else math.inf
