"""Gets, alive: carries out what the GetQueue decides.

Clients are answered, and what is elsewhere is pulled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import assert_never

from ray_mono.common.world import Clock
from ray_mono.object_manager.errors import StoreFull
from ray_mono.object_manager.get_queue import (
    Found,
    FoundState,
    GetDone,
    GetEffect,
    GetQueue,
    PullUnwanted,
    PullWanted,
    RestoreWanted,
    Wanted,
)
from ray_mono.object_manager.keys import ClientKey, NodeKey, ObjectKey
from ray_mono.object_manager.pending_answers import PendingAnswers, was_given
from ray_mono.object_manager.pulls import Pulls
from ray_mono.object_manager.spills import Spills
from ray_mono.object_manager.store import Store


class GetRequests:
    """All Gets of a node's clients."""

    def __init__(
        self,
        store: Store,
        node_id: NodeKey,
        pulls: Pulls,
        spills: Spills,
        clock: Clock,
        settle: Callable[[], None],
    ) -> None:
        """settle() runs after each step of a request: memory may have come free, or a pull may begin."""
        self._queue = GetQueue(store, node_id)
        self._store = store
        self._pulls = pulls
        self._spills = spills
        self._clock = clock
        self._settle = settle
        self._answers: PendingAnswers[tuple[Found, ...]] = PendingAnswers()

    def __len__(self) -> int:
        return len(self._queue)

    async def get(
        self,
        client: ClientKey,
        wanted: Sequence[Wanted],
        timeout_s: float | None,
        room_timeout_s: float | None,
    ) -> tuple[Found, ...]:
        """See GetQueue. Raises StoreFull where an object that is elsewhere found no room here in time."""
        number, effects = self._queue.start(client, wanted, timeout_s, self._clock.time_s(), room_timeout_s)
        if len(effects) == 1 and isinstance(effects[0], GetDone):
            return effects[0].objects
        answer = self._answers.expect(number)
        self._carry_out(effects)
        self._settle()
        try:
            return await answer
        except asyncio.CancelledError:
            self._carry_out(self._queue.cancel(number))
            if was_given(answer) and self._store.is_connected(client):
                for found in answer.result():
                    if found.state is FoundState.FOUND:
                        self._store.release(found.object_id, client)
            self._settle()
            raise

    def client_gone(self, client: ClientKey) -> None:
        self._carry_out(self._queue.client_gone(client))

    # ---- what becomes of objects

    def sealed(self, object_id: ObjectKey, pulled: bool) -> None:
        self._carry_out(self._queue.sealed(object_id, pulled))

    def readable_on_disk(self, object_id: ObjectKey) -> None:
        self._carry_out(self._queue.readable_on_disk(object_id))

    def lost(self, object_id: ObjectKey, reason: str) -> None:
        self._carry_out(self._queue.lost(object_id, reason))

    def unobtainable(self, object_id: ObjectKey, error: str) -> None:
        self._carry_out(self._queue.unobtainable(object_id, error))

    def given_up(self, object_ids: Iterable[ObjectKey]) -> None:
        self._carry_out(self._queue.given_up(object_ids))

    # ---- time

    @property
    def next_deadline_s(self) -> float | None:
        deadline_s = self._queue.next_deadline_s
        # All waiting Gets are gone through, so only where somebody is short of memory.
        if self._pulls.is_short_of_memory:
            room_s = self._queue.next_room_deadline_s(self._pulls.short_since_s)
            if room_s is not None:
                return room_s if deadline_s is None else min(deadline_s, room_s)
        return deadline_s

    def expire(self, now_s: float) -> None:
        self._carry_out(self._queue.expire(now_s))
        self._carry_out(self._queue.give_up_on_room(now_s, self._pulls.short_since_s))

    def check_invariants(self) -> None:
        """Raises InternalError."""
        self._queue.check_invariants()

    def _carry_out(self, effects: Iterable[GetEffect]) -> None:
        for effect in effects:
            match effect:
                case GetDone(number, objects, error):
                    if error:
                        self._answers.refuse(number, StoreFull(error))
                    else:
                        self._answers.give(number, objects)
                case PullWanted(object_id, locations):
                    if object_id in self._pulls or not self._store.is_being_written(object_id):
                        self._pulls.want(object_id, locations)
                case RestoreWanted(object_id):
                    self._spills.want(object_id)
                case PullUnwanted(object_id):
                    self._pulls.unwant(object_id)
                    self._spills.unwant(object_id)
                case _:
                    assert_never(effect)
