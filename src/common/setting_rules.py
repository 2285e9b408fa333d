"""Which numbers settings take: for the service whose setting one is, and for whoever starts it, who tells of
a wrong one before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

Rule = tuple[str, Callable[[float], bool]]
"""In words, and as a test. None of them takes an infinite one."""

ABOVE_ZERO: Rule = ("above 0", lambda value: 0 < value < inf)
AT_LEAST_ZERO: Rule = ("0 or more", lambda value: 0 <= value < inf)
_OTHERS: dict[str, Rule] = {
    "gcs_reconnect_timeout_s": ABOVE_ZERO,
    "memory_usage_threshold": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "task_oom_retries": ("0 or more (-1: without end)", lambda value: -1 <= value < inf),
}


def rule_of(name: str) -> Rule:
    """Of a number of the raylet's, by its own name."""
    return _OTHERS.get(name, AT_LEAST_ZERO)
