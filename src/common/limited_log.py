"""A log that others can cause lines in and nobody can flood: so many lines in a while, then only their
number."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LINES_MAX = 20
PERIOD_S = 10.0


class LimitedLog:
    """Warnings of one kind. One thread at a time."""

    def __init__(
        self,
        logger: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
        lines_max: int = LINES_MAX,
    ) -> None:
        """lines_max: of those in PERIOD_S that are written."""
        self._lines_max = lines_max
        self._logger = logger
        self._clock = clock
        self._end_s = 0.0
        self._count = 0

    def warning(self, message: str, *arguments: object) -> None:
        """As a logger's; at most lines_max in PERIOD_S are written, the others are counted."""
        self.settle()
        if not self._count:
            self._end_s = self._clock() + PERIOD_S
        self._count += 1
        if self._count <= self._lines_max:
            self._logger.warning(message, *arguments)

    def settle(self) -> None:
        """Says how many were left out, once their period is over. warning() does so too, but there may be no
        next one."""
        if self._count and self._clock() >= self._end_s:
            left_out, self._count = self._count - self._lines_max, 0
            if left_out > 0:
                self._logger.warning(
                    "%d more lines like the last ones were left out in %g s", left_out, PERIOD_S
                )
