"""One row of the object table, and the life that it has.

    (absent) -> CREATED            create: its creator writes it
    CREATED  -> SEALED             seal: immutable from here on
    CREATED  -> FREED_UNSEALED     freed by its owner while it was being written; goes when sealed or given up
    SEALED   -> FREED_WITH_READERS freed while clients have it mapped; goes with the last read pin
    FREED_WITH_READERS -> SEALED   made again by an owner that lives: the bytes are still here
    any      -> (absent)           abort, free, eviction, the end of the creator's connection

Also here: what a request for room is answered with.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ray_mono.common.our_bug import check
from ray_mono.object_manager.keys import ClientKey, ObjectKey, WorkerKey


class ObjectState(enum.Enum):
    CREATED = "created"
    SEALED = "sealed"
    FREED_UNSEALED = "freed, unsealed"
    FREED_WITH_READERS = "freed, with readers"


_TRANSITIONS = {
    (ObjectState.CREATED, ObjectState.SEALED),
    (ObjectState.CREATED, ObjectState.FREED_UNSEALED),
    (ObjectState.SEALED, ObjectState.FREED_WITH_READERS),
    (ObjectState.FREED_WITH_READERS, ObjectState.SEALED),
}


@dataclass(slots=True)
class StoredObject:
    """One row of the table. Only the Store has it changed."""

    object_id: ObjectKey
    offset: int
    size_bytes: int
    metadata: bytes
    owner: WorkerKey
    creator: ClientKey
    is_primary: bool
    state: ObjectState = ObjectState.CREATED
    # Sum of this object's counts in every client's `pins`.
    num_pins: int = 0

    def made_again(self, is_primary: bool) -> None:
        """Its owner freed it, and a task that runs again returns it."""
        self.move(ObjectState.SEALED)
        self.is_primary = is_primary

    def pinned(self) -> None:
        """One more read pin."""
        self.num_pins += 1

    def unpinned(self, count: int) -> None:
        """So many read pins less. Raises InternalError where it has not so many."""
        check(
            self.num_pins >= count,
            f"object {self.object_id.hex()} has {self.num_pins} pins, {count} released",
        )
        self.num_pins -= count

    def move(self, state: ObjectState) -> None:
        """The one place where the state changes.

        Raises InternalError, with the object's story, where the table has no such move.
        """
        check(
            (self.state, state) in _TRANSITIONS,
            f"object {self.object_id.hex()}: {self.state.value} -> {state.value}"
            f" (pins {self.num_pins}, {'primary' if self.is_primary else 'copy'},"
            f" {self.size_bytes} bytes at {self.offset})",
        )
        self.state = state


@dataclass(frozen=True, slots=True)
class Allocated:
    """The bytes from here on are the client's to write."""

    offset: int


@dataclass(frozen=True, slots=True)
class NeedsBacking:
    """There is room, once the file has pages up to here: raise the limit and ask again."""

    until_bytes: int


@dataclass(frozen=True, slots=True)
class Full:
    """No room now: ask again when memory came free."""


Allocation = Allocated | NeedsBacking | Full
