"""Pressure, alive: tells those who watch when a full store asks for help, and what to tell people."""

from __future__ import annotations

from collections.abc import Callable

from ray_mono.common.world import Clock
from ray_mono.object_manager.create_queue import CreateQueue
from ray_mono.object_manager.no_room import NoRoom
from ray_mono.object_manager.pressure import Pressure

STORE_FULL, SPILLED = "object_store_full", "objects_spilled"
"""What people are told of."""

PressureListener = Callable[[str, str, bool], None]
"""(what to tell people, or "" for clients to collect garbage; of what it tells; whether those of other nodes
are to collect, too)."""


class PressureNotices:
    """Those of one store."""

    def __init__(self, creates: CreateQueue, no_room: NoRoom, clock: Clock) -> None:
        self._pressure = Pressure()
        self._creates = creates
        self._no_room = no_room
        self._clock = clock
        # In the order of their coming.
        self._listeners: dict[PressureListener, None] = {}

    def watch(self, listener: PressureListener) -> None:
        self._listeners[listener] = None

    def unwatch(self, listener: PressureListener) -> None:
        self._listeners.pop(listener, None)

    def tell_of_spilling(self, text: str) -> None:
        """How much was written, and how fast."""
        self._tell(text, SPILLED, everywhere=False)

    def collect_garbage(self) -> None:
        """Another node, or this one's raylet, asks for it."""
        if self._pressure.may_collect(self._clock.time_s()):
            self._tell("", "", everywhere=False)

    @property
    def next_deadline_s(self) -> float | None:
        if not self._creates:
            return None
        return self._pressure.next_deadline_s(self._creates.oldest_s, self._creates.stuck_s)

    def expire(self, now_s: float) -> None:
        due = self._pressure.expire(self._creates.oldest_s, self._creates.stuck_s, now_s)
        if due.collect:
            self._tell("", "", everywhere=True)
        if due.tell:
            self._tell(self._no_room.for_creates(now_s), STORE_FULL, everywhere=False)

    def _tell(self, text: str, what: str, everywhere: bool) -> None:
        for listener in list(self._listeners):
            listener(text, what, everywhere)
