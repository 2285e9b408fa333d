"""The store of one node, alive: the machines bound to each other, to the mapped file and to timers.

Each request goes into a machine (Store, CreateQueue, GetQueue, PullManager); the effects that come out are carried out here: clients'
futures are answered, pages are put under the file in steps between which others are served, fetches are started and stopped. After every
step `_settle` asks whether memory came free, and if so tries those who wait for it: creates first, pulls then. Nothing here awaits in
the middle of a step, so every step sees the machines whole.

It does not know protobuf, connections or sockets. Fetches are carried out by a Fetcher (puller.py), which may be missing: then this is a
store alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from ray_mono.common.world import Clock
from ray_mono.object_manager.backing import Backing
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.create_queue import BackMemory, CreateDone, CreateQueue, RoomWanted
from ray_mono.object_manager.errors import StoreFull
from ray_mono.object_manager.get_queue import (
    Found,
    FoundState,
    GetDone,
    GetEffect,
    GetQueue,
    PullUnwanted,
    PullWanted,
    Wanted,
)
from ray_mono.object_manager.keys import TRANSFERS, ClientKey, NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.no_room import NoRoom
from ray_mono.object_manager.pressure import Pressure
from ray_mono.object_manager.pull_manager import (
    PullEffect,
    PullLost,
    PullManager,
    StartFetch,
    StopFetch,
)
from ray_mono.object_manager.seams import ObjectHeader, SharedMemory
from ray_mono.object_manager.store import Store
from ray_mono.object_manager.stored_object import Granted, NeedsBacking, StoredObject


class Fetcher(Protocol):
    """Carries fetches out, and reports their end to the NodeStore."""

    def start_fetch(self, fetch: StartFetch) -> None: ...

    def stop_fetch(self, object_id: ObjectKey) -> None:
        """The fetch that runs is for nobody; nothing is reported any more."""
        ...

    def forget(self, object_id: ObjectKey) -> None:
        """The pull is over: what an earlier fetch left half done goes."""
        ...


class NodeStore:
    """Everything that happens to this node's objects. Belongs to the loop's thread."""

    def __init__(
        self,
        config: ObjectManagerConfig,
        node_id: NodeKey,
        memory: SharedMemory,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        """spawn(coroutine, name) starts a background task whose failure ends the process."""
        self.config = config
        self.node_id = node_id
        self.memory = memory
        self.store = Store(config.capacity_bytes, config.dead_owners_max)
        self.store.directory = os.path.dirname(memory.path)
        self.creates = CreateQueue(self.store, config.create_timeout_s)
        self.gets = GetQueue(self.store, node_id)
        self.pulls = PullManager(config.pulls_active_max, config.pull_memory_timeout_s)
        self.fetcher: Fetcher | None = None
        self._clock = clock
        self._backing = Backing(config, self.store, memory, spawn, self._on_backed)
        self._pressure = Pressure()
        self._no_room = NoRoom(config, node_id, self.store, self.creates)
        # Told when the store is full for a while: (what to tell people, or "" for clients to collect garbage; on other nodes, too).
        self.on_pressure: set[Callable[[str, bool], None]] = set()
        self._answers: dict[tuple[str, int], asyncio.Future[Any]] = {}
        self._next_client = TRANSFERS + 1
        self._settled = (0, 0, 0)  # of what _settle looks at, what it last saw
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._backing.keep_ahead()

    # ---- clients

    def connect(self) -> ClientKey:
        """A new client connection."""
        client = ClientKey(self._next_client)
        self._next_client += 1
        self.store.connect(client)
        return client

    def disconnect(self, client: ClientKey) -> None:
        """Its connection ended: what it owned is freed, what it asked for is forgotten."""
        self._do_get_effects(self.gets.client_gone(client))
        aborted = self.store.disconnect(client)
        self._do_create_effects(self.creates.client_gone(client, self._clock.time_s()))
        self._do_get_effects(self.gets.given_up(aborted))
        self._settle()

    # ---- requests

    async def create(self, wanted: RoomWanted) -> int:
        """Offset of the object's memory, waiting in the queue if need be. Raises ObjectExists, StoreFull."""
        number, effects = self.creates.submit(wanted, self._clock.time_s())
        answer = self._expect("create", number)
        self._do_create_effects(effects)
        self._settle()
        try:
            offset: int = await answer
        except asyncio.CancelledError:
            self._do_create_effects(self.creates.cancel(number, self._clock.time_s()))
            if _has_value(answer) and self.store.is_connected(wanted.client):
                self.store.abort(wanted.object_id, wanted.client)
            self._settle()
            raise
        return offset

    def seal(self, object_id: ObjectKey, client: ClientKey) -> None:
        """Raises ObjectUnknown."""
        self._sealed(object_id, self.store.seal(object_id, client), pulled=False)

    def abort(self, object_id: ObjectKey, client: ClientKey) -> None:
        """The client gives up an object that it made, or wanted to make. Raises ObjectUnknown."""
        waited = self.creates.give_up(object_id, client, self._clock.time_s())
        if not waited:
            self.store.abort(object_id, client)
            self._do_get_effects(self.gets.given_up([object_id]))
        self._do_create_effects(waited)
        self._settle()

    async def get(
        self,
        client: ClientKey,
        wanted: Sequence[Wanted],
        timeout_s: float | None,
        may_go_elsewhere: bool = False,
    ) -> tuple[Found, ...]:
        """See GetQueue. Raises StoreFull where an object that is elsewhere found no room here in time."""
        room_timeout_s = self.config.elsewhere_timeout_s if may_go_elsewhere else None
        number, effects = self.gets.start(client, wanted, timeout_s, self._clock.time_s(), room_timeout_s)
        if len(effects) == 1 and isinstance(effects[0], GetDone):
            return effects[0].objects
        answer = self._expect("get", number)
        self._do_get_effects(effects)
        self._settle()
        try:
            objects: tuple[Found, ...] = await answer
        except asyncio.CancelledError:
            self._do_get_effects(self.gets.cancel(number))
            if _has_value(answer) and self.store.is_connected(client):
                for found in answer.result():
                    if found.state is FoundState.FOUND:
                        self.store.release(found.object_id, client)
            self._settle()
            raise
        return objects

    def release(self, object_id: ObjectKey, client: ClientKey) -> None:
        """Raises ObjectUnknown."""
        self.store.release(object_id, client)
        self._settle()

    def free(self, object_ids: Iterable[ObjectKey]) -> None:
        """Their owner says that nobody can ask for them any more."""
        for object_id in object_ids:
            self._do_pull_effects(self.pulls.cancel(object_id))
            self._forget_pull(object_id)
            self.store.free(object_id)
            self._do_get_effects(self.gets.lost(object_id, "its owner freed it"))
        self._settle()

    def free_owned_by(self, owner: WorkerKey) -> None:
        """The owner is dead."""
        for object_id in self.store.free_owned_by(owner):
            self._do_pull_effects(self.pulls.cancel(object_id))
            self._forget_pull(object_id)
            self._do_get_effects(self.gets.lost(object_id, f"its owner, worker {owner.hex()}, died"))
        self._settle()

    # ---- for the fetcher

    def place_copy(self, object_id: ObjectKey, header: ObjectHeader) -> int | None:
        """Offset of memory for a copy that arrives; None where there is no room now. Raises ObjectExists; StoreFull where it never fits."""
        allocation = self.store.create(
            object_id, header.size_bytes, header.metadata, header.owner, TRANSFERS, is_primary=False
        )
        if isinstance(allocation, Granted):
            self._backing.keep_ahead()
            return allocation.offset
        if isinstance(allocation, NeedsBacking):
            self._backing.extend(allocation.until_bytes)
        return None

    def drop_copy(self, object_id: ObjectKey) -> None:
        """A copy that will not be whole: its memory goes."""
        self.store.abort(object_id, TRANSFERS)
        self._settle()

    def fetched(self, object_id: ObjectKey) -> None:
        """A copy is whole."""
        self.pulls.fetched(object_id)
        self._sealed(object_id, self.store.seal(object_id, TRANSFERS), pulled=True)

    def appeared(self, object_id: ObjectKey) -> None:
        """A fetch found that somebody here makes or has the object meanwhile: the pull has nothing to do."""
        self.pulls.fetched(object_id)
        if self.store.contains(object_id):
            self._do_get_effects(self.gets.sealed(object_id, pulled=False))
        self._settle()

    def fetch_failed(self, object_id: ObjectKey, reason: str) -> None:
        self._do_pull_effects(self.pulls.fetch_failed(object_id, reason))
        self._settle()

    def fetch_announced(self, object_id: ObjectKey) -> None:
        """It was larger than the memory that there was when it was asked for; now its memory is there."""
        self._do_pull_effects(self.pulls.announced(object_id))
        self._settle()

    def fetch_found_no_memory(self, object_id: ObjectKey, size_bytes: int) -> None:
        """It is tried again when memory comes free (and not before: it would be refused again)."""
        self._do_pull_effects(self.pulls.no_memory(object_id, size_bytes, self._clock.time_s()))
        self._settle()

    def never_fits(self, object_id: ObjectKey, error: StoreFull) -> None:
        text = self._no_room.ever(object_id, self.pulls.asked(object_id), error)
        self._do_pull_effects(self.pulls.cancel(object_id))
        self._forget_pull(object_id)
        self._do_get_effects(self.gets.unobtainable(object_id, text))
        self._settle()

    def read_for_transfer(self, object_id: ObjectKey) -> StoredObject | None:
        """A sealed object, pinned until release(object_id, TRANSFERS); None where there is none."""
        return self.store.pin(object_id, TRANSFERS)

    # ---- effects

    def _sealed(self, object_id: ObjectKey, kept: bool, pulled: bool) -> None:
        if kept:
            if not pulled:
                self._do_pull_effects(self.pulls.cancel(object_id))
                self._forget_pull(object_id)
            self._do_get_effects(self.gets.sealed(object_id, pulled))
        else:
            self._do_get_effects(self.gets.lost(object_id, "its owner freed it"))
        self._settle()

    def _do_create_effects(self, effects: Iterable[CreateDone | BackMemory]) -> None:
        for effect in effects:
            if isinstance(effect, BackMemory):
                self._backing.extend(effect.until_bytes)
            elif effect.error is not None:
                self._answer("create", effect.number, error=effect.error)
            else:
                self._answer("create", effect.number, value=effect.offset)
        self._backing.keep_ahead()

    def _do_get_effects(self, effects: Iterable[GetEffect]) -> None:
        for effect in effects:
            if isinstance(effect, GetDone):
                error = StoreFull(effect.error) if effect.error else None
                self._answer("get", effect.number, value=effect.objects, error=error)
            elif isinstance(effect, PullUnwanted):
                self.pulls.unwant(effect.object_id)
                if effect.object_id not in self.pulls:
                    self._forget_pull(effect.object_id)
            elif effect.object_id in self.pulls or not self.store.is_being_written(effect.object_id):
                self._want_pull(effect)

    def _want_pull(self, wanted: PullWanted) -> None:
        if self.fetcher is None:
            self._do_get_effects(self.gets.lost(wanted.object_id, "this store runs alone and copies nothing"))
        else:
            self.pulls.want(wanted.object_id, wanted.locations)

    def _do_pull_effects(self, effects: Iterable[PullEffect]) -> None:
        for effect in effects:
            if isinstance(effect, StartFetch):
                assert self.fetcher is not None
                self.fetcher.start_fetch(effect)
            elif isinstance(effect, StopFetch):
                assert self.fetcher is not None
                self.fetcher.stop_fetch(effect.object_id)
            elif isinstance(effect, PullLost):
                self._forget_pull(effect.object_id)
                self._do_get_effects(self.gets.lost(effect.object_id, effect.reason))
            else:
                self._forget_pull(effect.object_id)
                self._do_get_effects(self.gets.unobtainable(effect.object_id, self._no_room.for_copy(effect)))

    def _forget_pull(self, object_id: ObjectKey) -> None:
        if self.fetcher is not None:
            self.fetcher.forget(object_id)

    def _on_backed(self) -> None:
        self.store.releases += 1
        self._settle()

    def _settle(self) -> None:
        """Gives memory and places that came free to who waits for them, until there is nothing more to give."""
        while (state := (self.store.releases, self.pulls.changes, len(self.creates))) != self._settled:
            self._settled = state
            if self.creates:
                self._do_create_effects(self.creates.pump(self._clock.time_s()))
            # Creates come first: what is produced here waits for a client that produces it.
            if self.pulls and not self.creates:
                self._do_pull_effects(self.pulls.schedule(self.store.obtainable_bytes))
        self._set_timer()

    # ---- answers

    def _expect(self, kind: str, number: int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[kind, number] = future
        future.add_done_callback(lambda _: self._answers.pop((kind, number), None))
        return future

    def _answer(self, kind: str, number: int, value: object = None, error: Exception | None = None) -> None:
        future = self._answers.get((kind, number))
        if future is None or future.done():
            return  # the caller is gone; its connection's end gives back what it was granted
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    # ---- time

    def _set_timer(self) -> None:
        """One timer, for the earliest deadline of all machines."""
        pressure_s = self._pressure.next_deadline_s(self.creates.oldest_s)
        # All waiting Gets are gone through, so only where somebody is.
        room_s = (
            self.gets.next_room_deadline_s(self.pulls.short_since_s)
            if self.pulls.is_short_of_memory
            else None
        )
        deadlines = (
            self.creates.next_deadline_s,
            self.gets.next_deadline_s,
            room_s,
            self.pulls.next_deadline_s,
            pressure_s,
        )
        earliest_s = min((deadline for deadline in deadlines if deadline is not None), default=None)
        if self._timer is not None:
            if earliest_s is not None and self._timer_s <= earliest_s:
                return  # it rings early enough, and sets the next one
            self._timer.cancel()
            self._timer = None
        if earliest_s is not None:
            delay_s = max(0.0, earliest_s - self._clock.time_s())
            self._timer_s = earliest_s
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now_s = self._clock.time_s()
        self._ask_for_help(now_s)
        self._do_create_effects(self.creates.expire(now_s))
        self._do_get_effects(self.gets.expire(now_s))
        self._do_get_effects(self.gets.give_up_on_room(now_s, self.pulls.short_since_s))
        self._do_pull_effects(self.pulls.expire(now_s))
        self._settle()

    def _ask_for_help(self, now_s: float) -> None:
        due = self._pressure.expire(self.creates.oldest_s, now_s)
        text = self._no_room.for_creates(now_s) if due.tell else ""
        for listener in list(self.on_pressure) if due.collect or due.tell else ():
            listener(text, due.collect)

    def collect_garbage(self) -> None:
        for listener in list(self.on_pressure) if self._pressure.may_collect(self._clock.time_s()) else ():
            listener("", False)

    def close(self) -> None:
        """Stops the timers. Requests that wait are cancelled with their callers."""
        self._backing.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check_invariants(self) -> None:
        """Raises InternalError."""
        self.store.check_invariants()
        self.gets.check_invariants()
        self.pulls.check_invariants()


def _has_value(answer: asyncio.Future[Any]) -> bool:
    """Granted in the same turn in which its caller was cancelled: must be given back."""
    return answer.done() and not answer.cancelled() and answer.exception() is None
