"""How long to wait before the next attempt of something that failed: longer each time, up to a bound."""

from __future__ import annotations


class Backoff:
    """Pauses of one thing that is tried again and again."""

    def __init__(self, first_s: float, max_s: float, factor: float = 2.0) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._factor = factor
        self._next_s = first_s

    def next_s(self) -> float:
        """Seconds to wait now, after one more failure."""
        pause_s = self._next_s
        self._next_s = min(pause_s * self._factor, self._max_s)
        return pause_s

    def reset(self) -> None:
        """It worked: the next failure is a first one."""
        self._next_s = self._first_s


def pause_after_s(failures: int, first_s: float, max_s: float, factor: float = 2.0) -> float:
    """Seconds to wait after so many failures in a row (0: none), for those who keep their number."""
    if failures <= 0:
        return 0.0
    # An actor that restarts without end may fail more often than a power of two has room for.
    return min(first_s * factor ** min(failures - 1, 64), max_s)
