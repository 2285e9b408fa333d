"""Threads of ours on which user code runs."""

from __future__ import annotations

import threading
from collections.abc import Callable


class CallThread(threading.Thread):
    """A thread of ours on which user code runs. No daemon, for the threads that user code starts there would
    be daemons too; but the end of the process does not wait for it."""

    def __init__(self, target: Callable[..., None], name: str) -> None:
        super().__init__(target=target, name=name, daemon=False)
