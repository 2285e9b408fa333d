"""Creates, alive: carries out what the CreateQueue decides.

Clients are answered, and pages are put under the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import assert_never

from ray_mono.common.world import Clock
from ray_mono.object_manager.backing import Backing
from ray_mono.object_manager.create_queue import (
    BackMemory,
    CreateDone,
    CreateEffect,
    CreateQueue,
    CreateWaiting,
    RoomWanted,
)
from ray_mono.object_manager.keys import ClientKey, ObjectKey
from ray_mono.object_manager.pending_answers import PendingAnswers, was_given
from ray_mono.object_manager.store import Store


class CreateRequests:
    """All Creates of a node's clients."""

    def __init__(
        self, queue: CreateQueue, store: Store, backing: Backing, clock: Clock, settle: Callable[[], None]
    ) -> None:
        """settle() runs after each step of a request: memory may have come free."""
        self._queue = queue
        self._store = store
        self._backing = backing
        self._clock = clock
        self._settle = settle
        self._answers: PendingAnswers[int] = PendingAnswers()

    def __len__(self) -> int:
        return len(self._queue)

    async def create(self, wanted: RoomWanted) -> int:
        """Offset of the object's memory, waiting in the queue if need be. Raises ObjectExists, StoreFull."""
        number, effects = self._queue.submit(wanted, self._clock.time_s())
        answer = self._answers.expect(number)
        self._carry_out(effects)
        self._settle()
        try:
            return await answer
        except asyncio.CancelledError:
            self._carry_out(self._queue.cancel(number))
            if was_given(answer) and self._store.is_connected(wanted.client):
                self._store.abort(wanted.object_id, wanted.client)
            self._settle()
            raise

    def waiting(self, object_id: ObjectKey) -> CreateWaiting | None:
        """See CreateQueue."""
        return self._queue.waiting(object_id)

    @property
    def are_stuck(self) -> bool:
        """Whether no memory comes free by itself."""
        return self._queue.stuck_s is not None

    def give_up(self, object_id: ObjectKey, client: ClientKey) -> bool:
        """The client wants no room for the object any more. False where it does not wait for any."""
        effects = self._queue.give_up(object_id, client)
        self._carry_out(effects)
        return bool(effects)

    def client_gone(self, client: ClientKey) -> None:
        self._carry_out(self._queue.client_gone(client))

    def pump(self) -> None:
        """Memory came free."""
        self._carry_out(self._queue.pump())

    @property
    def next_deadline_s(self) -> float | None:
        return self._queue.next_deadline_s

    def expire(self, now_s: float) -> None:
        self._carry_out(self._queue.expire(now_s))

    def _carry_out(self, effects: Iterable[CreateEffect]) -> None:
        for effect in effects:
            match effect:
                case CreateDone(number, offset, error):
                    if error is None:
                        self._answers.give(number, offset)
                    else:
                        self._answers.refuse(number, error)
                case BackMemory(until_bytes):
                    self._backing.extend(until_bytes)
                case _:
                    assert_never(effect)
        self._backing.keep_ahead()
