"""Gets that wait: for an object to be sealed here, or to be copied here from another node.

A machine without I/O over the Store. A Get is answered when each of its objects is here or lost, or at its
deadline with what there is. Each FOUND in an answer is one pin.

    nothing has to be pulled: what is here is pinned at once, so that it cannot be evicted while the rest is
                              awaited
    something has to be:      the Get asks for room (admission.py) and holds nothing until it is admitted.
                              Then it pins what is here and has the rest pulled or restored. If it has to give
                              way, it lets go of everything. Without being admitted it is answered when all is
                              here by itself.

It does not know how an object comes from elsewhere, or from disk: it says which are to be pulled or restored,
and is told how that ended. One for which there is no room is pinned where it lies on disk, and read there. A
Get with a room_timeout_s fails as a whole where it has waited so long for room: whoever asks has another
place to go.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ray_mono.common.our_bug import check
from ray_mono.object_manager.admission import Priority
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
    size_bytes: int = 0
    """As its owner says; 0: not known."""


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
class RoomAsked:
    """Effect: the Get needs copies, and holds nothing until it is admitted. Sizes of all its objects."""

    number: int
    priority: Priority
    sizes: Mapping[ObjectKey, int]
    may_use_disk: bool = True
    """False: whoever asks would rather go where the objects are."""


@dataclass(frozen=True, slots=True)
class RoomUnneeded:
    """Effect: a Get that asked for room is over."""

    number: int


@dataclass(frozen=True, slots=True)
class RoomSpared:
    """Effect: a Get that asked for room does not need this object any more."""

    number: int
    object_id: ObjectKey


@dataclass(frozen=True, slots=True)
class PullWanted:
    """Effect: copy the object here from one of these, unless somebody here is writing it already."""

    object_id: ObjectKey
    locations: tuple[NodeKey, ...]
    priority: Priority = Priority.GET


@dataclass(frozen=True, slots=True)
class PullUnwanted:
    """Effect: no Get waits for this object any more, wherever it was to come from; or who does gives way, and
    its memory is wanted."""

    object_id: ObjectKey
    gives_way: bool = False


@dataclass(frozen=True, slots=True)
class RestoreWanted:
    """Effect: the object is here, on disk: read it."""

    object_id: ObjectKey


GetEffect = GetDone | RoomAsked | RoomUnneeded | RoomSpared | PullWanted | PullUnwanted | RestoreWanted


@dataclass(slots=True)
class _Get:
    number: int
    client: ClientKey
    wanted: Sequence[Wanted]
    started_s: float
    room_timeout_s: float | None
    priority: Priority
    found: dict[ObjectKey, Found] = field(default_factory=dict)
    missing: dict[ObjectKey, tuple[NodeKey, ...]] = field(default_factory=dict)  # with the locations named
    asks_for_room: bool = False
    is_holding: bool = True  # False: it asks for room and is not admitted
    absent: set[ObjectKey] = field(default_factory=set)  # of `missing`, while it holds nothing: not seen here
    pulled: set[ObjectKey] = field(default_factory=set)  # copies that came for it


class GetQueue:
    """Every Get that is not answered yet."""

    def __init__(self, store: Store, node_id: NodeKey) -> None:
        self._store = store
        self._node_id = node_id
        self._next_number = 1
        self._gets: dict[int, _Get] = {}
        self._waiting_for: dict[ObjectKey, dict[int, None]] = {}
        # Copies of which their owners have yet to be told, with the Gets for which they came.
        self._untold: dict[ObjectKey, set[int]] = {}
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
        priority: Priority = Priority.GET,
    ) -> tuple[int, list[GetEffect]]:
        """Takes a Get. timeout_s None: no bound; 0: what is here now, nothing is pulled.

        Returns its number and what follows.
        """
        get = _Get(self._next_number, client, wanted, now_s, room_timeout_s, priority)
        self._next_number += 1
        if all(self._store.is_readable(item.object_id) for item in wanted):
            for item in wanted:
                if item.object_id not in get.found:
                    self._take(get, item.object_id)
            return get.number, [self._answer(get)]
        for item in wanted:
            object_id, locations = item.object_id, item.locations
            if locations and not self._others(locations) and not self._may_appear(object_id):
                get.found[object_id] = self._lost_here(object_id)
            else:
                get.missing[object_id] = locations
        self._gets[get.number] = get
        for object_id in get.missing:
            self._waiting_for.setdefault(object_id, {})[get.number] = None
        if timeout_s == 0:
            return get.number, self._answer_with_what_is_here(get)
        if any(self._has_to_be_pulled(object_id, get.missing[object_id]) for object_id in get.missing):
            effects: list[GetEffect] = [self._ask_for_room(get)]
        else:
            effects = self._hold(get)
        if timeout_s is not None and get.number in self._gets:
            heapq.heappush(self._deadlines, (now_s + timeout_s, get.number))
        return get.number, effects

    def admitted(self, number: int) -> list[GetEffect]:
        """There is room for all that the Get needs."""
        get = self._gets[number]
        get.is_holding = True
        get.absent.clear()
        return self._hold(get)

    def gives_way(self, number: int) -> list[GetEffect]:
        """The Get lets go of everything, and waits to be admitted again."""
        get = self._gets[number]
        self._let_go(get)
        get.is_holding = False
        get.absent = {each for each in get.missing if not self._store.is_readable(each)}
        return [
            PullUnwanted(object_id, gives_way=True)
            for object_id in get.missing
            if not self.is_awaited(object_id)
        ]

    def sealed(self, object_id: ObjectKey, pulled: bool) -> list[GetEffect]:
        """The object is here: pinned for all who wait, in the order of their coming. One that was written
        straight to disk is restored, or read there."""
        effects: list[GetEffect] = []
        for number in list(self._waiting_for.get(object_id, ())):
            get = self._gets[number]
            if pulled:
                get.pulled.add(object_id)
                self._untold.setdefault(object_id, set()).add(number)
            if get.is_holding and self._store.is_spilled(object_id):
                effects.append(RestoreWanted(object_id))
            elif get.is_holding:
                self._take(get, object_id)
                effects += self._resolved(get, object_id)
            else:
                get.absent.discard(object_id)
                effects += self._take_all(get)
        return effects

    def readable_on_disk(self, object_id: ObjectKey) -> list[GetEffect]:
        """There is no room for the object: pinned on disk for all who wait."""
        effects: list[GetEffect] = []
        for number in list(self._waiting_for.get(object_id, ())):
            get = self._gets[number]
            entry = self._store.pin_on_disk(object_id, get.client) if get.is_holding else None
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

    def no_room(self, number: int, error: str) -> list[GetEffect]:
        """There was no room for what the Get needs."""
        get = self._gets[number]
        effects = self._end(get)
        del self._gets[number]
        return [*effects, self._fail(get, error)]

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
            for number in list(self._waiting_for.get(object_id, ())):
                get = self._gets[number]
                locations = get.missing[object_id]
                if locations and not self._others(locations):
                    effects += self._lose(number, self._lost_here(object_id))
                elif locations and get.is_holding:
                    effects += self.gives_way(number)
                    effects.append(self._ask_for_room(get))
        return effects

    def expire(self, now_s: float) -> list[GetEffect]:
        """Answers what is due with what there is."""
        effects: list[GetEffect] = []
        while (deadline_s := self.next_deadline_s) is not None and deadline_s <= now_s:
            get = self._gets[heapq.heappop(self._deadlines)[1]]
            effects += self._end(get)
            effects += self._answer_with_what_is_here(get)
        return effects

    def next_room_deadline_s(self, short_since_s: Callable[[int], float | None]) -> float | None:
        """When `give_up_on_room` has something to do. short_since_s: Admission's."""
        return min((deadline_s for deadline_s, _ in self._room_deadlines(short_since_s)), default=None)

    def give_up_on_room(self, now_s: float, short_since_s: Callable[[int], float | None]) -> list[GetEffect]:
        """Fails those that had to wait too long for room, and lets go of what they had."""
        effects: list[GetEffect] = []
        for deadline_s, get in list(self._room_deadlines(short_since_s)):
            if deadline_s <= now_s:
                waiting = next(iter(get.missing))
                effects += self.no_room(get.number, f"object {waiting.hex()} waits for room here")
        return effects

    def _room_deadlines(self, short_since_s: Callable[[int], float | None]) -> Iterator[tuple[float, _Get]]:
        for get in self._gets.values():
            if get.room_timeout_s is None or not get.asks_for_room:
                continue
            since_s = short_since_s(get.number)
            if since_s is not None:
                yield max(since_s, get.started_s) + get.room_timeout_s, get

    def wants(self, object_id: ObjectKey) -> bool:
        """Whether a Get waits for it."""
        return object_id in self._waiting_for

    def askers(self, object_id: ObjectKey) -> dict[int, Wanted]:
        """The Gets that wait for it, and what they know of it."""
        found = {}
        for number in self._waiting_for.get(object_id, ()):
            wanted = self._gets[number].wanted
            found[number] = next(item for item in wanted if item.object_id == object_id)
        return found

    def locations_of(self, number: int, object_id: ObjectKey) -> tuple[NodeKey, ...]:
        """As its owner named them to a Get that waits."""
        return self._gets[number].missing[object_id]

    def client_gone(self, client: ClientKey) -> list[GetEffect]:
        """Ends the Gets of a client."""
        effects: list[GetEffect] = []
        for get in [get for get in self._gets.values() if get.client == client]:
            effects += self._end(get)
            effects.append(self._fail(self._gets.pop(get.number), "the client's connection ended"))
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

    def _has_to_be_pulled(self, object_id: ObjectKey, locations: tuple[NodeKey, ...]) -> bool:
        return bool(self._others(locations)) and self._store.taken_by(object_id) is None

    def _may_appear(self, object_id: ObjectKey) -> bool:
        """It is here, or is being written here."""
        store = self._store
        is_here = store.is_readable(object_id) or store.is_spilled(object_id)
        return is_here or store.is_being_written(object_id)

    def _ask_for_room(self, get: _Get) -> RoomAsked:
        get.asks_for_room = True
        get.is_holding = False
        get.absent = {each for each in get.missing if not self._store.is_readable(each)}
        wanted = {item.object_id: item for item in get.wanted}
        sizes = {
            each: wanted[each].size_bytes if self._others(wanted[each].locations) else 0
            for each in get.missing
        }
        return RoomAsked(get.number, get.priority, sizes, get.room_timeout_s is None)

    def _hold(self, get: _Get) -> list[GetEffect]:
        """Pins what is here, and has the rest brought. Answers the Get if that is all."""
        effects: list[GetEffect] = []
        for object_id, locations in list(get.missing.items()):
            if self._take(get, object_id):
                self._stop_waiting(get, object_id)
                del get.missing[object_id]
            elif self._store.is_spilled(object_id):
                effects.append(RestoreWanted(object_id))
            elif self._others(locations):
                effects.append(PullWanted(object_id, self._others(locations), get.priority))
            elif locations and not self._store.is_being_written(object_id):
                get.found[object_id] = self._lost_here(object_id)
                self._stop_waiting(get, object_id)
                del get.missing[object_id]
        return effects if get.missing else self._ended(get)

    def _take_all(self, get: _Get) -> list[GetEffect]:
        """Answers a Get that holds nothing, if all that it needs is here by now."""
        if get.absent:
            return []
        get.absent = {each for each in get.missing if not self._store.is_readable(each)}
        return [] if get.absent else self._hold(get)

    def _let_go(self, get: _Get) -> None:
        """Of all pins: it waits for these objects again."""
        locations = {item.object_id: item.locations for item in get.wanted}
        for object_id, found in list(get.found.items()):
            if found.state is FoundState.FOUND:
                self._store.release(object_id, get.client)
                del get.found[object_id]
                get.missing[object_id] = locations[object_id]
                self._waiting_for.setdefault(object_id, {})[get.number] = None

    def is_awaited(self, object_id: ObjectKey) -> bool:
        """Whether a Get waits for it that may hold it."""
        return any(self._gets[number].is_holding for number in self._waiting_for.get(object_id, ()))

    def _take(self, get: _Get, object_id: ObjectKey) -> bool:
        entry = self._store.pin(object_id, get.client)
        if entry is None:
            return False
        get.found[object_id] = self._found(entry, object_id in self._untold)
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
        get.absent.discard(found.object_id)
        effects = self._resolved(get, found.object_id)
        if effects or not get.asks_for_room:
            return effects
        effects = [RoomSpared(number, found.object_id)]
        return effects if get.is_holding else [*effects, *self._take_all(get)]

    def _resolved(self, get: _Get, object_id: ObjectKey) -> list[GetEffect]:
        self._stop_waiting(get, object_id)
        del get.missing[object_id]
        return [] if get.missing else self._ended(get)

    def _ended(self, get: _Get) -> list[GetEffect]:
        """It has all it wants."""
        del self._gets[get.number]
        done = self._answer(get)
        return [RoomUnneeded(get.number), done] if get.asks_for_room else [done]

    def _stop_waiting(self, get: _Get, object_id: ObjectKey) -> None:
        waiting = self._waiting_for[object_id]
        del waiting[get.number]
        if not waiting:
            del self._waiting_for[object_id]

    def _end(self, get: _Get) -> list[GetEffect]:
        """Takes the Get off everything that it still waits for."""
        effects: list[GetEffect] = [RoomUnneeded(get.number)] if get.asks_for_room else []
        for object_id in get.missing:
            self._stop_waiting(get, object_id)
            if get.is_holding and not self.is_awaited(object_id):
                effects.append(PullUnwanted(object_id))
        return effects

    def _answer_with_what_is_here(self, get: _Get) -> list[GetEffect]:
        """Of a Get that waits no longer."""
        for object_id in get.missing:
            self._take(get, object_id)
            if get.number in self._waiting_for.get(object_id, ()):
                self._stop_waiting(get, object_id)
        del self._gets[get.number]
        return [self._answer(get)]

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
        for object_id in get.pulled:
            self._tell(get, object_id)
        return GetDone(get.number, tuple(objects))

    def _fail(self, get: _Get, error: str) -> GetDone:
        for found in get.found.values():
            if found.state is FoundState.FOUND:
                self._store.release(found.object_id, get.client)
        for object_id in sorted(get.pulled):
            if self._tell(get, object_id):
                self._store.drop_copy(object_id)
        return GetDone(get.number, (), error)

    def _tell(self, get: _Get, object_id: ObjectKey) -> bool:
        """Its owner hears of the copy by this Get, or never. Returns whether no other Get is to tell it."""
        gets = self._untold[object_id]
        gets.remove(get.number)
        if not gets:
            del self._untold[object_id]
        return not gets

    def check_invariants(self) -> None:
        """Raises InternalError."""
        waiting = sorted((object_id, get.number) for get in self._gets.values() for object_id in get.missing)
        indexed = sorted(
            (object_id, number) for object_id, some in self._waiting_for.items() for number in some
        )
        check(waiting == indexed, "Gets and the objects that they wait for differ")
        pulled = sorted((object_id, get.number) for get in self._gets.values() for object_id in get.pulled)
        untold = sorted((object_id, number) for object_id, some in self._untold.items() for number in some)
        check(pulled == untold, "Gets and the copies that came for them differ")
        for get in self._gets.values():
            check(bool(get.missing), f"Get {get.number} has all it wants and is not answered")
            if not get.is_holding:
                check(
                    all(found.state is not FoundState.FOUND for found in get.found.values()),
                    f"Get {get.number} waits for room and holds objects",
                )
                continue
            for object_id in get.missing:
                check(
                    not self._store.contains(object_id) or self._store.is_spilled(object_id),
                    f"Get {get.number} waits for {object_id.hex()}, which is here",
                )
