"""Gets, alive: carries out what the GetQueue decides.

Clients are answered, and what is elsewhere is pulled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import assert_never

from ray_mono.common.our_bug import check
from ray_mono.common.world import Clock
from ray_mono.object_manager.admission import Admission, Admit, GiveWay, NeverAdmitted, Priority
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
    RoomAsked,
    RoomSpared,
    RoomUnneeded,
    Wanted,
)
from ray_mono.object_manager.keys import ClientKey, NodeKey, ObjectKey
from ray_mono.object_manager.no_room import NoRoom
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
        admission: Admission,
        pulls: Pulls,
        spills: Spills,
        no_room: NoRoom,
        clock: Clock,
        settle: Callable[[], None],
    ) -> None:
        """settle() runs after each step of a request: memory may have come free, or a pull may begin."""
        self._queue = GetQueue(store, node_id)
        self._store = store
        self._admission = admission
        self._pulls = pulls
        self._no_room = no_room
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
        priority: Priority = Priority.GET,
    ) -> tuple[Found, ...]:
        """See GetQueue. Raises StoreFull where an object that is elsewhere found no room here in time."""
        number, effects = self._queue.start(
            client, wanted, timeout_s, self._clock.time_s(), room_timeout_s, priority
        )
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
                    if found.pulled:
                        self._store.drop_copy(found.object_id)
            self._settle()
            raise

    def client_gone(self, client: ClientKey) -> None:
        self._carry_out(self._queue.client_gone(client))

    def wants(self, object_id: ObjectKey) -> bool:
        """Whether somebody waits for it."""
        return self._queue.wants(object_id)

    # ---- room

    def wanted(self, object_id: ObjectKey) -> Wanted | None:
        """What a Get that waits for it knows of it; None where none does."""
        return next(iter(self._queue.askers(object_id).values()), None)

    def waits_for_room(self, object_id: ObjectKey) -> bool:
        """Whether a Get has no room for a copy of it."""
        return any(
            self._admission.short_since_s(number) is not None for number in self._queue.askers(object_id)
        )

    def admit(self, obtainable_bytes: Callable[[], int], memory_state: Callable[[], int]) -> None:
        """Memory came free, or somebody asked for it: who may have it?"""
        now_s = self._clock.time_s()
        while (effect := self._admission.step(obtainable_bytes(), memory_state(), now_s)) is not None:
            self._follow(effect)

    def refused_a_place(self, object_id: ObjectKey, size_bytes: int) -> None:
        """There is no room for a copy that was admitted."""
        effect = self._admission.refused(object_id, size_bytes)
        if effect is not None:
            self._follow(effect)

    def refused_a_file(self, object_id: ObjectKey, why: str) -> bool:
        """The disk has no room for a copy. Whether all who want it wait on, for memory."""
        effects = self._admission.refused_a_file(object_id, why)
        for effect in effects:
            self._follow(effect)
        return bool(effects)

    def _follow(self, effect: Admit | GiveWay | NeverAdmitted) -> None:
        match effect:
            case Admit(number):
                self._carry_out(self._queue.admitted(number))
            case GiveWay(number):
                self._carry_out(self._queue.gives_way(number))
            case NeverAdmitted(number):
                locations = self._queue.locations_of(number, effect.object_id)
                self._carry_out(self._queue.no_room(number, self._no_room.for_copy(effect, locations)))
            case _:
                assert_never(effect)

    # ---- what becomes of objects

    def sealed(self, object_id: ObjectKey, pulled: bool) -> None:
        self._admission.settled(object_id)
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
        deadlines = [deadline_s, self._admission.next_deadline_s]
        # All waiting Gets are gone through, so only where somebody is short of memory.
        if self._admission.is_short:
            deadlines.append(self._queue.next_room_deadline_s(self._admission.short_since_s))
        return min((each for each in deadlines if each is not None), default=None)

    def expire(self, now_s: float) -> None:
        self._carry_out(self._queue.expire(now_s))
        self._carry_out(self._queue.give_up_on_room(now_s, self._admission.short_since_s))
        for effect in self._admission.expire(now_s):
            self._follow(effect)

    def check_invariants(self) -> None:
        """Raises InternalError."""
        self._queue.check_invariants()
        self._admission.check_invariants()
        for pull in self._pulls.all():
            check(
                not pull.is_wanted or self._queue.is_awaited(pull.object_id),
                f"object {pull.object_id.hex()} is pulled for Gets that wait for room",
            )

    def _carry_out(self, effects: Iterable[GetEffect]) -> None:
        for effect in effects:
            match effect:
                case GetDone(number, objects, error):
                    if error:
                        self._answers.refuse(number, StoreFull(error))
                    else:
                        self._answers.give(number, objects)
                case RoomAsked(number, priority, sizes, may_use_disk):
                    self._admission.submit(number, priority, sizes, self._clock.time_s(), may_use_disk)
                case RoomUnneeded(number):
                    self._admission.withdraw(number)
                case RoomSpared(number, object_id):
                    self._admission.spare(number, object_id)
                case PullWanted(object_id, locations, priority):
                    if object_id in self._pulls or not self._store.is_being_written(object_id):
                        self._pulls.want(object_id, locations, priority)
                case RestoreWanted(object_id):
                    self._spills.want(object_id)
                case PullUnwanted(object_id, gives_way):
                    if gives_way:
                        self._pulls.cancel(object_id)
                    else:
                        self._pulls.unwant(object_id)
                    self._spills.unwant(object_id)
                case _:
                    assert_never(effect)
