"""One thread's wait on a reactor."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_mono.rpc.reactor import Reactor


class Waiter:
    """One thread's wait: `set` by a handler, under the lock."""

    __slots__ = ("_reactor", "done", "gate")

    def __init__(self, reactor: Reactor) -> None:
        self.done = False
        self._reactor = reactor
        # While its thread sleeps: locked until the wait is over. An Event has steps of Python's, between which a signal's handler may wait.
        self.gate: threading.Lock | None = None

    def set(self) -> None:
        """Ends the wait. Lock held."""
        self.done = True
        if self.gate is not None:
            self._reactor._lead.sleepers.discard(self)
            self.open()
        else:
            # Its thread leads, or is on its way to: the poll ends.
            self._reactor.wake()

    def open(self) -> None:
        """Wakes its thread, if that sleeps. Lock held."""
        if self.gate is not None and self.gate.locked():
            self.gate.release()
