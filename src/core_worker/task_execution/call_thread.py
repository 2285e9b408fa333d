"""Threads of ours on which user code runs."""

from __future__ import annotations

import threading
from collections.abc import Callable


class CallThread(threading.Thread):
    """A thread of ours on which user code runs.

    It is no daemon: a thread that user code starts there would inherit that. The end of the process does not
    wait for it all the same."""

    def __init__(self, target: Callable[..., None], name: str) -> None:
        super().__init__(target=target, name=name, daemon=False)
