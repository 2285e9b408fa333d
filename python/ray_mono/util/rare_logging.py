"""For messages that are worth saying once, not at each of a million calls."""

from __future__ import annotations

import threading
import time

PERIOD_S = 60.0

_lock = threading.Lock()
_said_s: dict[str, float] = {}
_state = {"is_disabled": False, "is_periodic": False}


def log_once(key: str) -> bool:
    """Whether to log now what `key` stands for: True once in this process; after enable_periodic_logging,
    again after a minute."""
    with _lock:
        if _state["is_disabled"]:
            return False
        now_s = time.monotonic()
        last_s = _said_s.get(key)
        if last_s is not None and not (_state["is_periodic"] and now_s - last_s > PERIOD_S):
            return False
        _said_s[key] = now_s
        return True


def disable_log_once_globally() -> None:
    """From here on log_once says False in this process."""
    _state["is_disabled"] = True


def enable_periodic_logging() -> None:
    """From here on log_once says True again for a key that was not logged for a minute."""
    _state["is_periodic"] = True
