"""Creates that wait for room: first come, first served, each with a deadline.

A machine without I/O. Who arrives while others wait stands behind them, however small: a large object would
otherwise never get its turn. Only the head is tried, whenever memory came free. What waits for pages of the
system (NeedsBacking) does not wait for readers, so its deadline counts again only when that is settled. And
while memory comes free by itself, since objects are written to disk, no deadline counts at all: `stuck` and
`goes_on` say so. A deadline is reckoned from the arrival, or from when it got stuck if that is later.

Where a disk has room, the deadline is short (`to_disk_s`): who has no room by then is written there by its
client. Until something finds room again the others who come go there at once: readers hold the memory.

Effects are values: whoever drives the queue answers the clients and backs the file.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import assert_never

from ray_mono.object_manager.allocator import aligned
from ray_mono.object_manager.errors import NoRoomInTime, StoreError, StoreFull
from ray_mono.object_manager.keys import ClientKey, ObjectKey, WorkerKey
from ray_mono.object_manager.store import Store
from ray_mono.object_manager.stored_object import Allocated, Allocation, Full, NeedsBacking


@dataclass(frozen=True, slots=True)
class RoomWanted:
    """An object to create."""

    client: ClientKey
    size_bytes: int
    object_id: ObjectKey
    metadata: bytes = b""
    owner: WorkerKey = WorkerKey(b"")


@dataclass(frozen=True, slots=True)
class CreateDone:
    """Effect: answer request `number` with the offset, or with the error."""

    number: int
    offset: int
    error: StoreError | None = None


@dataclass(frozen=True, slots=True)
class BackMemory:
    """Effect: the head waits for pages up to here.

    Call pump() again when they are there, or when there are none.
    """

    until_bytes: int


CreateEffect = CreateDone | BackMemory


@dataclass(frozen=True, slots=True)
class CreateWaiting:
    """A create without room, for people."""

    size_bytes: int
    num_before: int
    client: ClientKey


@dataclass(slots=True)
class _Waiting:
    number: int
    wanted: RoomWanted
    since_s: float


class CreateQueue:
    """FIFO in front of Store.create."""

    def __init__(self, store: Store, timeout_s: float, to_disk_s: float = math.inf) -> None:
        self._store = store
        self._timeouts_s = (timeout_s, min(timeout_s, to_disk_s))
        self._may_go_to_disk = False
        # Since when the first of those waited that found no room, and nobody has found any since.
        self._full_since_s = math.inf
        self._waiting: deque[_Waiting] = deque()
        self._next_number = 1
        self._backing = False  # the head waits for pages
        self._stuck_since_s: float | None = -math.inf

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def next_deadline_s(self) -> float | None:
        """When expire() has something to do: deadlines are in order of arrival."""
        if not self._waiting or (stuck_s := self.stuck_s) is None:
            return None
        return stuck_s + self._timeout_s

    @property
    def _timeout_s(self) -> float:
        return self._timeouts_s[self._may_go_to_disk]

    @property
    def oldest_s(self) -> float | None:
        """Since when the head waits for memory; None where nothing does."""
        return self._waiting[0].since_s if self._waiting and not self._backing else None

    @property
    def stuck_s(self) -> float | None:
        """Since when the head waits for others to let go; None where nothing does."""
        oldest_s = self.oldest_s
        if oldest_s is None or self._stuck_since_s is None:
            return None
        return max(min(oldest_s, self._full_since_s), self._stuck_since_s)

    def goes_on(self) -> None:
        """Memory comes free by itself."""
        self._stuck_since_s = None

    def stuck(self, now_s: float, may_go_to_disk: bool = False) -> None:
        """It does not (any more): only others who let go can help, or a disk."""
        self._may_go_to_disk = may_go_to_disk
        if self._stuck_since_s is None:
            self._stuck_since_s = now_s

    def waiting(self, object_id: ObjectKey) -> CreateWaiting | None:
        """For people: what waits to create this object."""
        for place, waiting in enumerate(self._waiting):
            if waiting.wanted.object_id == object_id:
                return CreateWaiting(waiting.wanted.size_bytes, place, waiting.wanted.client)
        return None

    @property
    def head_bytes(self) -> int:
        """The room that the head waits for; 0 where nothing does."""
        waits = self._waiting and not self._backing
        return aligned(self._waiting[0].wanted.size_bytes) if waits else 0

    @property
    def wanted_bytes(self) -> int:
        """Of all that wait."""
        return sum(waiting.wanted.size_bytes for waiting in self._waiting)

    def submit(self, wanted: RoomWanted, now_s: float) -> tuple[int, list[CreateEffect]]:
        """Takes a request.

        Returns its number and what follows; its CreateDone is among that unless it has to wait.
        """
        number = self._next_number
        self._next_number += 1
        self._waiting.append(_Waiting(number, wanted, now_s))
        effects = self.pump() if len(self._waiting) == 1 else []
        if self._waiting and self._timeout_s == 0:
            effects += self.expire(now_s)
        return number, effects

    def pump(self) -> list[CreateEffect]:
        """Memory came free, or the file is longer, or cannot be: tries from the head on."""
        effects: list[CreateEffect] = []
        self._backing = False
        while self._waiting:
            head = self._waiting[0]
            try:
                allocation = self._try(head.wanted)
            except StoreError as error:
                effects.append(CreateDone(head.number, 0, error))
            else:
                match allocation:
                    case Allocated(offset):
                        self._full_since_s = math.inf
                        effects.append(CreateDone(head.number, offset))
                    case NeedsBacking(until_bytes):
                        self._backing = True
                        return [*effects, BackMemory(until_bytes)]
                    case Full():
                        return effects
                    case _:
                        assert_never(allocation)
            self._waiting.popleft()
        return effects

    def expire(self, now_s: float) -> list[CreateEffect]:
        """Fails what has waited too long, and tries who stands behind it."""
        effects: list[CreateEffect] = []
        while (deadline_s := self.next_deadline_s) is not None and deadline_s <= now_s:
            late = self._waiting.popleft()
            if self._may_go_to_disk:
                self._full_since_s = min(self._full_since_s, late.since_s)
            error = NoRoomInTime(
                f"wanted {late.wanted.size_bytes} bytes, and no room after {self._timeout_s:g} s:"
                f" {self._store.describe_memory()}; {len(self._waiting)} more creates wait"
            )
            effects.append(CreateDone(late.number, 0, error))
            effects += self.pump()
        return effects

    def client_gone(self, client: ClientKey) -> list[CreateEffect]:
        """Ends what a client asked for whose connection ended."""
        gone = [waiting for waiting in self._waiting if waiting.wanted.client == client]
        effects: list[CreateEffect] = [
            CreateDone(waiting.number, 0, StoreFull("the client's connection ended")) for waiting in gone
        ]
        for waiting in gone:
            effects += self.cancel(waiting.number)
        return effects

    def give_up(self, object_id: ObjectKey, client: ClientKey) -> list[CreateEffect]:
        """The client wants no room for the object any more: what it asked for is answered, and forgotten."""
        for waiting in self._waiting:
            if waiting.wanted.object_id == object_id and waiting.wanted.client == client:
                done = CreateDone(waiting.number, 0, StoreFull("the client gave it up"))
                return [done, *self.cancel(waiting.number)]
        return []

    def cancel(self, number: int) -> list[CreateEffect]:
        """The client does not wait for this any more."""
        for waiting in self._waiting:
            if waiting.number == number:
                was_head = waiting is self._waiting[0]
                self._waiting.remove(waiting)
                return self.pump() if was_head else []
        return []

    def _try(self, wanted: RoomWanted) -> Allocation:
        return self._store.create(
            wanted.object_id, wanted.size_bytes, wanted.metadata, wanted.owner, wanted.client, is_primary=True
        )
