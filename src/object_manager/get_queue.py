"""Gets that wait: for an object to be sealed here, or to be copied here from another node.

A machine without I/O over the Store. A Get is answered when each of its objects is here or lost, or at its
deadline with what there is. What is here is pinned for the client at once, so that it cannot be evicted while
the rest is awaited. Each FOUND in an answer is one pin.

It does not know how an object comes from elsewhere, or from disk: it says which are to be pulled or restored,
and is told how that ended. One for which there is no room is pinned where it lies on disk, and read there. A
Get with a room_timeout_s fails as a whole where one of its objects has waited so long for a copy's room:
whoever asks has another place to go.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ray_mono.common.our_bug import check
from ray_mono.object_manager.keys import ClientKey, NodeKey, ObjectKey
from ray_mono.object_manager.spill_files import Extent
from ray_mono.object_manager.store import Store
from ray_mono.object_manager.stored_object import StoredObject


class FoundState(enum.Enum):
    FOUND = "found"
    NOT_HERE = "not here"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object of a Get, and who holds it as far as its owner knows. None: it is to appear here."""

    object_id: ObjectKey
    locations: tuple[NodeKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one wanted object."""

    object_id: ObjectKey
    state: FoundState
    offset: int = 0
    size_bytes: int = 0
    metadata: bytes = b""
    pulled: bool = False
    reason: str = ""
    extent: Extent | None = None
    """Where it lies on disk, if it has to be read there."""


@dataclass(frozen=True, slots=True)
class GetDone:
    """Effect: answer Get `number`; with an error instead where there is one (then nothing is pinned)."""

    number: int
    objects: tuple[Found, ...]
    error: str = ""


@dataclass(frozen=True, slots=True)
class PullWanted:
    """Effect: copy the object here from one of these, unless somebody here is writing it already."""

    object_id: ObjectKey
    locations: tuple[NodeKey, ...]


@dataclass(frozen=True, slots=True)
class PullUnwanted:
    """Effect: no Get waits for this object any more, wherever it was to come from."""

    object_id: ObjectKey


@dataclass(frozen=True, slots=True)
class RestoreWanted:
    """Effect: the object is here, on disk: read it."""

    object_id: ObjectKey


GetEffect = GetDone | PullWanted | PullUnwanted | RestoreWanted


@dataclass(slots=True)
class _Get:
    number: int
    client: ClientKey
    wanted: Sequence[Wanted]
    started_s: float
    room_timeout_s: float | None
    found: dict[ObjectKey, Found] = field(default_factory=dict)
    missing: dict[ObjectKey, tuple[NodeKey, ...]] = field(default_factory=dict)  # with the locations named


class GetQueue:
    """Every Get that is not answered yet."""

    def __init__(self, store: Store, node_id: NodeKey) -> None:
        self._store = store
        self._node_id = node_id
        self._next_number = 1
        self._gets: dict[int, _Get] = {}
        self._waiting_for: dict[ObjectKey, dict[int, None]] = {}
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._gets)

    @property
    def next_deadline_s(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._gets:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def start(
        self,
        client: ClientKey,
        wanted: Sequence[Wanted],
        timeout_s: float | None,
        now_s: float,
        room_timeout_s: float | None = None,
    ) -> tuple[int, list[GetEffect]]:
        """Takes a Get. timeout_s None: no bound; 0: what is here now, nothing is pulled.

        Returns its number and what follows.
        """
        get = _Get(self._next_number, client, wanted, now_s, room_timeout_s)
        self._next_number += 1
        effects: list[GetEffect] = []
        for item in wanted:
            object_id = item.object_id
            if object_id in get.found or object_id in get.missing or self._take(get, object_id, pulled=False):
                continue
            if self._store.is_spilled(object_id):
                get.missing[object_id] = item.locations
                if timeout_s != 0:
                    effects.append(RestoreWanted(object_id))
                continue
            elsewhere = self._others(item.locations)
            if item.locations and not elsewhere and not self._store.is_being_written(object_id):
                get.found[object_id] = self._lost_here(object_id)
                continue
            get.missing[object_id] = item.locations
            if elsewhere and timeout_s != 0:
                effects.append(PullWanted(object_id, elsewhere))
        if not get.missing or timeout_s == 0:
            return get.number, [self._answer(get)]
        self._gets[get.number] = get
        for object_id in get.missing:
            self._waiting_for.setdefault(object_id, {})[get.number] = None
        if timeout_s is not None:
            heapq.heappush(self._deadlines, (now_s + timeout_s, get.number))
        return get.number, effects

    def sealed(self, object_id: ObjectKey, pulled: bool) -> list[GetEffect]:
        """The object is here: pinned for all who wait, in the order of their coming."""
        effects: list[GetEffect] = []
        for number in list(self._waiting_for.get(object_id, ())):
            get = self._gets[number]
            self._take(get, object_id, pulled)
            effects += self._resolved(get, object_id)
        return effects

    def readable_on_disk(self, object_id: ObjectKey) -> list[GetEffect]:
        """There is no room for the object: pinned on disk for all who wait."""
        effects: list[GetEffect] = []
        for number in list(self._waiting_for.get(object_id, ())):
            get = self._gets[number]
            entry = self._store.pin_on_disk(object_id, get.client)
            if entry is not None:
                get.found[object_id] = self._found(entry, pulled=False)
                effects += self._resolved(get, object_id)
        return effects

    def lost(self, object_id: ObjectKey, reason: str) -> list[GetEffect]:
        """Nobody gave it, or its owner freed it."""
        effects: list[GetEffect] = []
        for number in list(self._waiting_for.get(object_id, ())):
            effects += self._lose(number, Found(object_id, FoundState.LOST, reason=reason))
        return effects

    def unobtainable(self, object_id: ObjectKey, error: str) -> list[GetEffect]:
        """There is no room for it: the Gets that want it fail whole, and let go of what they had."""
        effects: list[GetEffect] = []
        for number in list(self._waiting_for.get(object_id, ())):
            effects += self._end(self._gets[number])
            effects.append(self._fail(self._gets.pop(number), error))
        return effects

    def given_up(self, object_ids: Iterable[ObjectKey]) -> list[GetEffect]:
        """Objects that were being written here will not be sealed: those that others hold are pulled now."""
        effects: list[GetEffect] = []
        for object_id in object_ids:
            nodes: dict[NodeKey, None] = {}
            for number in list(self._waiting_for.get(object_id, ())):
                locations = self._gets[number].missing[object_id]
                nodes.update(dict.fromkeys(self._others(locations)))
                if locations and not self._others(locations):
                    effects += self._lose(number, self._lost_here(object_id))
            if nodes:
                effects.append(PullWanted(object_id, tuple(nodes)))
        return effects

    def expire(self, now_s: float) -> list[GetEffect]:
        """Answers what is due with what there is."""
        effects: list[GetEffect] = []
        while (deadline_s := self.next_deadline_s) is not None and deadline_s <= now_s:
            get = self._gets[heapq.heappop(self._deadlines)[1]]
            effects += self._end(get)
            del self._gets[get.number]
            effects.append(self._answer(get))
        return effects

    def next_room_deadline_s(self, short_since_s: Callable[[ObjectKey], float | None]) -> float | None:
        """When `give_up_on_room` has something to do. short_since_s: PullManager's."""
        return min((deadline_s for deadline_s, _, _ in self._room_deadlines(short_since_s)), default=None)

    def give_up_on_room(
        self, now_s: float, short_since_s: Callable[[ObjectKey], float | None]
    ) -> list[GetEffect]:
        """Fails those that had to wait too long for room, and lets go of what they had."""
        effects: list[GetEffect] = []
        for deadline_s, get, object_id in list(self._room_deadlines(short_since_s)):
            if deadline_s <= now_s:
                effects += self._end(get)
                del self._gets[get.number]
                effects.append(self._fail(get, f"object {object_id.hex()} waits for room here"))
        return effects

    def _room_deadlines(
        self, short_since_s: Callable[[ObjectKey], float | None]
    ) -> Iterator[tuple[float, _Get, ObjectKey]]:
        for get in self._gets.values():
            if get.room_timeout_s is None:
                continue
            short = [
                (since, object_id)
                for object_id in get.missing
                if (since := short_since_s(object_id)) is not None
            ]
            if short:
                since, object_id = min(short)
                yield max(since, get.started_s) + get.room_timeout_s, get, object_id

    def client_gone(self, client: ClientKey) -> list[GetEffect]:
        """Ends the Gets of a client; its pins end with its connection."""
        effects: list[GetEffect] = []
        for get in [get for get in self._gets.values() if get.client == client]:
            effects += self._end(get)
            del self._gets[get.number]
            effects.append(GetDone(get.number, (), "the client's connection ended"))
        return effects

    def cancel(self, number: int) -> list[GetEffect]:
        """The client does not wait any more: lets go of what the Get had."""
        get = self._gets.pop(number, None)
        if get is None:
            return []
        effects = self._end(get)
        self._fail(get, "cancelled")
        return effects

    # ---- inside

    def _take(self, get: _Get, object_id: ObjectKey, pulled: bool) -> bool:
        entry = self._store.pin(object_id, get.client)
        if entry is None:
            return False
        get.found[object_id] = self._found(entry, pulled)
        return True

    def _found(self, entry: StoredObject, pulled: bool) -> Found:
        """Of an object that is pinned."""
        extent = None if entry.is_in_memory else self._store.extent_of(entry.object_id)
        return Found(
            entry.object_id,
            FoundState.FOUND,
            entry.offset if extent is None else extent.offset,
            entry.size_bytes,
            entry.metadata,
            pulled,
            extent=extent,
        )

    def _others(self, locations: tuple[NodeKey, ...]) -> tuple[NodeKey, ...]:
        return tuple(node for node in locations if node != self._node_id)

    def _lost_here(self, object_id: ObjectKey) -> Found:
        reason = f"node {self._node_id.hex()} holds no copy any more, and its owner named no other"
        return Found(object_id, FoundState.LOST, reason=reason)

    def _lose(self, number: int, found: Found) -> list[GetEffect]:
        get = self._gets[number]
        get.found[found.object_id] = found
        return self._resolved(get, found.object_id)

    def _resolved(self, get: _Get, object_id: ObjectKey) -> list[GetEffect]:
        self._stop_waiting(get, object_id)
        del get.missing[object_id]
        if get.missing:
            return []
        del self._gets[get.number]
        return [self._answer(get)]

    def _stop_waiting(self, get: _Get, object_id: ObjectKey) -> bool:
        """True where nobody else waits for the object."""
        waiting = self._waiting_for[object_id]
        del waiting[get.number]
        if not waiting:
            del self._waiting_for[object_id]
        return not waiting

    def _end(self, get: _Get) -> list[GetEffect]:
        """Takes the Get off everything that it still waits for."""
        return [PullUnwanted(object_id) for object_id in get.missing if self._stop_waiting(get, object_id)]

    def _answer(self, get: _Get) -> GetDone:
        """One Found for each wanted object, in order. An object that was named twice is pinned twice."""
        objects: list[Found] = []
        named: set[ObjectKey] = set()
        for item in get.wanted:
            found = get.found.get(item.object_id) or Found(item.object_id, FoundState.NOT_HERE)
            if found.state is FoundState.FOUND and item.object_id in named:
                self._store.pin_on_disk(item.object_id, get.client)
            named.add(item.object_id)
            objects.append(found)
        return GetDone(get.number, tuple(objects))

    def _fail(self, get: _Get, error: str) -> GetDone:
        for found in get.found.values():
            if found.state is FoundState.FOUND:
                self._store.release(found.object_id, get.client)
        return GetDone(get.number, (), error)

    def check_invariants(self) -> None:
        """Raises InternalError."""
        waiting = sorted((object_id, get.number) for get in self._gets.values() for object_id in get.missing)
        indexed = sorted(
            (object_id, number) for object_id, some in self._waiting_for.items() for number in some
        )
        check(waiting == indexed, "Gets and the objects that they wait for differ")
        for get in self._gets.values():
            check(bool(get.missing), f"Get {get.number} has all it wants and is not answered")
            for object_id in get.missing:
                check(
                    not self._store.contains(object_id) or self._store.is_spilled(object_id),
                    f"Get {get.number} waits for {object_id.hex()}, which is here",
                )
