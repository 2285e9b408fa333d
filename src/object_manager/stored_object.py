"""One row of the object table, and the life that it has.

    (absent) -> CREATED            create: its creator writes it, in memory or (too large for that) in a file
    CREATED  -> SEALED             seal: immutable from here on
    CREATED  -> SPILLED            seal, of one that was written to a file
    CREATED  -> FREED_UNSEALED     freed by its owner while it was being written; goes when sealed or given up
    SEALED   -> SPILLING           room is needed: it is written to disk, and readable all the while
    SPILLING -> SEALED             it is on disk as well (`is_on_disk`), or could not be written
    SEALED   -> SPILLED            evicted: it is on disk only
    SPILLED  -> RESTORING          somebody wants it and there is room: it is read from disk
    RESTORING -> SEALED            it is in memory again, and on disk as well
    SEALED   -> FREED_WITH_READERS freed while clients have it mapped; goes with the last read pin
    SPILLING -> FREED_SPILLING     freed while it is written; goes with the end of that and the last read pin
    RESTORING -> FREED_RESTORING   freed while it is read from disk; likewise
    SPILLED  -> FREED_ON_DISK      freed while clients read it on disk; goes with the last read pin
    FREED_x  -> x                  made again by an owner that lives: the bytes are still here
    any      -> (absent)           abort, free, eviction, the end of the creator's connection

Clients pin what they read. What is SPILLED may be pinned, too: then they read it on disk (`spills.py` says
when). A row that is pinned stays where it is, in memory and on disk.

A copy from another node for which there was no room is written to a file of its own (`goes_with_readers`). It
is read there, never brought into memory, and goes with its last read pin: its node has it still.

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
    SPILLING = "sealed, being written to disk"
    SPILLED = "sealed, on disk"
    RESTORING = "sealed, being read from disk"
    FREED_UNSEALED = "freed, unsealed"
    FREED_WITH_READERS = "freed, with readers"
    FREED_SPILLING = "freed, being written to disk"
    FREED_RESTORING = "freed, being read from disk"
    FREED_ON_DISK = "freed, with readers of its file"


FREED_UNDER_WAY = {
    ObjectState.CREATED: ObjectState.FREED_UNSEALED,
    ObjectState.SPILLING: ObjectState.FREED_SPILLING,
    ObjectState.RESTORING: ObjectState.FREED_RESTORING,
}
"""What somebody writes or reads when its owner frees it goes when that ends."""
_MADE_AGAIN = {
    ObjectState.FREED_WITH_READERS: ObjectState.SEALED,
    ObjectState.FREED_SPILLING: ObjectState.SPILLING,
    ObjectState.FREED_RESTORING: ObjectState.RESTORING,
    ObjectState.FREED_ON_DISK: ObjectState.SPILLED,
}
_TRANSITIONS = {
    (ObjectState.CREATED, ObjectState.SEALED),
    (ObjectState.CREATED, ObjectState.SPILLED),
    (ObjectState.SEALED, ObjectState.SPILLING),
    (ObjectState.SEALED, ObjectState.SPILLED),
    (ObjectState.SEALED, ObjectState.FREED_WITH_READERS),
    (ObjectState.SPILLING, ObjectState.SEALED),
    (ObjectState.SPILLED, ObjectState.RESTORING),
    (ObjectState.SPILLED, ObjectState.FREED_ON_DISK),
    (ObjectState.RESTORING, ObjectState.SEALED),
    (ObjectState.RESTORING, ObjectState.FREED_ON_DISK),  # it cannot be read, and somebody has its file mapped
    (ObjectState.FREED_SPILLING, ObjectState.FREED_WITH_READERS),
    (ObjectState.FREED_RESTORING, ObjectState.FREED_WITH_READERS),
    (ObjectState.FREED_RESTORING, ObjectState.FREED_ON_DISK),
    *FREED_UNDER_WAY.items(),
    *_MADE_AGAIN.items(),
}
UNSEALED = frozenset({ObjectState.CREATED, ObjectState.FREED_UNSEALED})
KEPT = frozenset({ObjectState.SEALED, ObjectState.SPILLING, ObjectState.SPILLED, ObjectState.RESTORING})
"""Sealed, and nobody freed it."""
IN_MEMORY = frozenset(
    {
        ObjectState.SEALED,
        ObjectState.SPILLING,
        ObjectState.FREED_WITH_READERS,
        ObjectState.FREED_SPILLING,
    }
)
"""Sealed, and its bytes are at its offset."""


@dataclass(slots=True)
class StoredObject:
    """One row of the table. Only the Store has it changed."""

    object_id: ObjectKey
    offset: int
    """In the store's file; means something while `has_memory`."""
    size_bytes: int
    metadata: bytes
    owner: WorkerKey
    creator: ClientKey
    is_primary: bool
    has_memory: bool = True
    is_on_disk: bool = False
    goes_with_readers: bool = False
    state: ObjectState = ObjectState.CREATED
    # Sum of this object's counts in every client's `pins`.
    num_pins: int = 0

    def made_again(self, is_primary: bool) -> None:
        """Its owner freed it, and a task that runs again returns it."""
        self.move(_MADE_AGAIN[self.state])
        self.marked(is_primary)

    def marked(self, is_primary: bool) -> None:
        """It is the primary copy from now on, or not any more."""
        self.is_primary = is_primary
        self.goes_with_readers = self.goes_with_readers and not is_primary

    @property
    def can_be_made_again(self) -> bool:
        return self.state in _MADE_AGAIN

    @property
    def is_copy_in_file(self) -> bool:
        """Whether it is whole, and stays in the file that was made for this copy."""
        return self.goes_with_readers and self.state in (ObjectState.SPILLED, ObjectState.FREED_ON_DISK)

    @property
    def goes_unread(self) -> bool:
        """Whether nothing keeps it but its readers."""
        has_ended = self.state in (ObjectState.FREED_WITH_READERS, ObjectState.FREED_ON_DISK)
        return has_ended or self.is_copy_in_file

    @property
    def is_in_memory(self) -> bool:
        """Whether its bytes, sealed, are at its offset."""
        return self.state in IN_MEMORY

    def placed(self, offset: int) -> None:
        """It has memory."""
        self.offset = offset
        self.has_memory = True

    def unplaced(self) -> None:
        """It has none any more."""
        self.has_memory = False

    def written_to_disk(self) -> None:
        """Its bytes are in a file, too, and stay there as long as it does."""
        self.is_on_disk = True

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

    def check_invariants(self) -> None:
        """Raises InternalError."""
        has_ended = self.state in (ObjectState.FREED_WITH_READERS, ObjectState.FREED_ON_DISK)
        check(
            not has_ended or self.num_pins > 0,
            f"freed object {self.object_id.hex()} has no reader and is still here",
        )
        check(self.has_memory or self.is_on_disk, f"object {self.object_id.hex()} is nowhere")

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
