"""An object's life, pair by pair: every move that the table has, and none else."""

from __future__ import annotations

import itertools

import pytest

from ray_mono.common.our_bug import InternalError
from ray_mono.object_manager.keys import ClientKey, ObjectKey, WorkerKey
from ray_mono.object_manager.stored_object import IN_MEMORY, KEPT, UNSEALED, ObjectState, StoredObject

CREATED, SEALED = ObjectState.CREATED, ObjectState.SEALED
SPILLING, SPILLED, RESTORING = ObjectState.SPILLING, ObjectState.SPILLED, ObjectState.RESTORING
FREED_UNSEALED, FREED_WITH_READERS = ObjectState.FREED_UNSEALED, ObjectState.FREED_WITH_READERS
FREED_SPILLING, FREED_RESTORING = ObjectState.FREED_SPILLING, ObjectState.FREED_RESTORING
FREED_ON_DISK = ObjectState.FREED_ON_DISK

MOVES = {
    CREATED: {SEALED, SPILLED, FREED_UNSEALED},
    SEALED: {SPILLING, SPILLED, FREED_WITH_READERS},
    SPILLING: {SEALED, FREED_SPILLING},
    SPILLED: {RESTORING, FREED_ON_DISK},
    RESTORING: {SEALED, FREED_RESTORING, FREED_ON_DISK},
    FREED_UNSEALED: set(),
    FREED_WITH_READERS: {SEALED},
    FREED_SPILLING: {SPILLING, FREED_WITH_READERS},
    FREED_RESTORING: {RESTORING, FREED_WITH_READERS, FREED_ON_DISK},
    FREED_ON_DISK: {SPILLED},
}


def row(state: ObjectState) -> StoredObject:
    return StoredObject(
        ObjectKey(b"a"), 0, 64, b"", WorkerKey(b"o"), ClientKey(1), is_primary=True, state=state
    )


@pytest.mark.parametrize("before, after", list(itertools.product(ObjectState, ObjectState)))
def test_every_pair_of_states(before: ObjectState, after: ObjectState) -> None:
    entry = row(before)
    if after in MOVES[before]:
        entry.move(after)
        assert entry.state is after
    else:
        with pytest.raises(InternalError, match=f"object {b'a'.hex()}: {before.value} -> {after.value}"):
            entry.move(after)
        assert entry.state is before


def test_what_was_freed_and_is_here_still_is_made_again_as_what_it_was() -> None:
    freed = {FREED_WITH_READERS, FREED_SPILLING, FREED_RESTORING, FREED_ON_DISK}
    for state in ObjectState:
        assert row(state).can_be_made_again == (state in freed)
    for state in freed:
        entry = row(state)
        entry.made_again(is_primary=False)
        assert entry.state in KEPT and not entry.is_primary


def test_every_state_says_where_its_bytes_are() -> None:
    assert {state for state in ObjectState if state not in IN_MEMORY | UNSEALED} == {
        SPILLED,
        RESTORING,
        FREED_RESTORING,
        FREED_ON_DISK,
    }
