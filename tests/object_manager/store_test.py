"""The object table in scenes: who may do what to an object, what is evicted, what ends with a connection."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ray_mono.common.our_bug import InternalError
from ray_mono.object_manager.errors import ObjectExists, ObjectUnknown, StoreFull
from ray_mono.object_manager.keys import TRANSFERS, ClientKey, ObjectKey, WorkerKey
from ray_mono.object_manager.spill_files import SpillFiles
from ray_mono.object_manager.store import Store
from ray_mono.object_manager.stored_object import Allocated, Full, NeedsBacking, ObjectState

ANNA, BERT = ClientKey(1), ClientKey(2)
OWNER, OTHER_OWNER = WorkerKey(b"o" * 28), WorkerKey(b"p" * 28)
A, B, C, D = (ObjectKey(bytes([number]) * 28) for number in range(4))


@pytest.fixture
def store() -> Store:
    """Room for four objects of 256 bytes; two clients."""
    store = Store(1024, SpillFiles(1.0), dead_owners_max=10)
    store.allocator.raise_limit(1024)
    store.connect(ANNA)
    store.connect(BERT)
    return store


def create(store: Store, object_id: ObjectKey, client: ClientKey = ANNA, size_bytes: int = 256) -> int:
    allocation = store.create(object_id, size_bytes, b"meta", OWNER, client, is_primary=client != TRANSFERS)
    assert isinstance(allocation, Allocated)
    store.check_invariants()
    return allocation.offset


def put(store: Store, object_id: ObjectKey, client: ClientKey = ANNA, size_bytes: int = 256) -> int:
    offset = create(store, object_id, client, size_bytes)
    assert store.seal(object_id, client)
    store.check_invariants()
    return offset


def copy_here(store: Store, object_id: ObjectKey) -> int:
    """A copy that is not the primary one."""
    return put(store, object_id, TRANSFERS)


def is_full(store: Store, object_id: ObjectKey, size_bytes: int = 256) -> bool:
    allocation = store.create(object_id, size_bytes, b"", OWNER, ANNA, is_primary=True)
    store.check_invariants()
    return isinstance(allocation, Full)


def test_an_object_is_found_only_when_it_is_sealed(store: Store) -> None:
    offset = create(store, A)
    assert store.pin(A, BERT) is None and not store.contains(A) and store.is_being_written(A)
    store.seal(A, ANNA)
    entry = store.pin(A, BERT)
    assert entry is not None and (entry.offset, entry.size_bytes, entry.metadata) == (offset, 256, b"meta")
    assert (store.num_sealed, store.num_unsealed, store.num_pins) == (1, 0, 1)


def test_a_second_copy_is_refused(store: Store) -> None:
    put(store, A)
    with pytest.raises(ObjectExists, match=A.hex()):
        create(store, A, BERT)


def test_only_its_creator_seals_or_aborts_an_object(store: Store) -> None:
    create(store, A)
    for act in (store.seal, store.abort):
        with pytest.raises(ObjectUnknown, match="not an unsealed object of this client"):
            act(A, BERT)
    store.abort(A, ANNA)
    with pytest.raises(ObjectUnknown, match="does not exist"):
        store.seal(A, ANNA)
    assert store.used_bytes == 0


def test_primary_copies_are_never_evicted(store: Store) -> None:
    for object_id in (A, B, C, D):
        put(store, object_id)
    assert is_full(store, ObjectKey(b"x" * 28))
    assert store.num_evicted == 0


def test_copies_are_evicted_least_recently_used_first(store: Store) -> None:
    for object_id in (A, B, C):
        copy_here(store, object_id)
    store.pin(A, ANNA)
    store.release(A, ANNA)  # now the latest
    put(store, D)
    put(store, ObjectKey(b"e" * 28))
    assert [store.contains(object_id) for object_id in (A, B, C)] == [True, False, True]
    assert store.num_evicted == 1


def test_a_pinned_copy_is_not_evicted(store: Store) -> None:
    copy_here(store, A)
    store.pin(A, BERT)
    assert is_full(store, D, 1024)
    store.release(A, BERT)
    put(store, D, size_bytes=1024)


def test_nothing_is_evicted_for_what_does_not_fit_anyway(store: Store) -> None:
    put(store, A, size_bytes=512)
    copy_here(store, B)
    assert is_full(store, C, 1024)
    assert store.contains(B)


def test_freed_memory_stays_until_the_last_reader_lets_go(store: Store) -> None:
    put(store, A)
    store.pin(A, ANNA)
    store.pin(A, ANNA)
    store.pin(A, BERT)
    store.free(A)
    store.check_invariants()
    assert not store.contains(A)
    store.release(A, ANNA)
    store.release(A, BERT)
    assert store.used_bytes == 256
    store.release(A, ANNA)
    store.check_invariants()
    assert (store.used_bytes, store.num_sealed, store.num_pins) == (0, 0, 0)


def test_an_object_freed_while_it_is_written_goes_when_it_is_sealed(store: Store) -> None:
    create(store, A)
    store.free(A)
    store.check_invariants()
    assert not store.seal(A, ANNA)
    assert store.used_bytes == 0


@pytest.mark.parametrize("end", ["it is freed", "its owner dies"])
@pytest.mark.parametrize("make", [put, copy_here])
def test_an_object_that_is_found_after_its_end_goes_with_its_last_reader(
    store: Store, make: Callable[..., int], end: str
) -> None:
    make(store, A)
    store.pin(A, ANNA)
    if end == "it is freed":
        store.free(A)
    else:
        store.free_owned_by(OWNER)
    assert store.pin(A, BERT) is not None
    store.check_invariants()
    store.release(A, ANNA)
    store.release(A, BERT)
    store.check_invariants()
    assert (store.used_bytes, store.num_sealed, store.num_evicted) == (0, 0, 0)


def test_a_freed_object_that_is_made_again_while_it_is_read_stays(store: Store) -> None:
    put(store, A)
    store.pin(A, BERT)
    store.free(A)
    with pytest.raises(ObjectExists):
        create(store, A)
    store.release(A, BERT)
    store.check_invariants()
    assert store.contains(A)
    assert is_full(store, B, 1024)


def test_what_a_dead_owner_had_is_not_made_again(store: Store) -> None:
    put(store, A)
    store.pin(A, BERT)
    store.free_owned_by(OWNER)
    with pytest.raises(ObjectExists):
        create(store, A)
    store.release(A, BERT)
    store.check_invariants()
    assert store.used_bytes == 0


def test_a_pin_that_a_client_does_not_have_cannot_be_released(store: Store) -> None:
    put(store, A)
    store.pin(A, ANNA)
    with pytest.raises(ObjectUnknown, match="not pinned by this client"):
        store.release(A, BERT)


def test_the_end_of_a_connection_frees_all_that_it_owned(store: Store) -> None:
    put(store, A, ANNA)
    store.pin(A, BERT)
    store.pin(A, BERT)
    store.free(A)
    create(store, B, BERT)
    create(store, C, ANNA)
    assert store.disconnect(BERT) == [B]
    store.check_invariants()
    assert (store.used_bytes, store.num_pins, store.num_unsealed) == (256, 0, 1)
    assert store.disconnect(BERT) == []


def test_what_a_dead_worker_owned_goes_and_what_it_will_have_owned_too(store: Store) -> None:
    put(store, A)
    copy_here(store, B)
    create(store, C)
    store.create(D, 10, b"", OTHER_OWNER, ANNA, is_primary=True)
    assert store.owners() == [OWNER, OTHER_OWNER]
    assert store.free_owned_by(OWNER) == [A, B, C]
    assert not store.seal(C, ANNA)
    create(store, A)
    assert not store.seal(A, ANNA)
    assert store.seal(D, ANNA)
    store.check_invariants()
    assert store.owners() == [OTHER_OWNER]


def test_an_object_larger_than_the_store_is_refused_with_the_sizes(store: Store) -> None:
    put(store, A)
    store.pin(A, BERT)
    with pytest.raises(
        StoreFull, match=r"wanted 1025 bytes.*capacity 1024 bytes, used 256.*pinned by readers 256"
    ):
        store.create(B, 1025, b"", OWNER, ANNA, is_primary=True)


def test_room_without_pages_is_asked_for_before_anything_is_evicted() -> None:
    store = Store(1024, SpillFiles(1.0), dead_owners_max=10)
    assert store.create(A, 100, b"", OWNER, TRANSFERS, is_primary=False) == NeedsBacking(128)
    store.allocator.raise_limit(512)
    copy_here(store, A)
    copy_here(store, B)
    assert store.create(C, 256, b"", OWNER, TRANSFERS, is_primary=False) == NeedsBacking(768)
    store.stop_growing()
    copy_here(store, C)
    assert store.num_evicted == 1


def test_an_impossible_change_of_state_is_a_bug_and_tells_the_objects_story(store: Store) -> None:
    put(store, A)
    entry = store.objects()[0]
    with pytest.raises(InternalError, match=f"object {A.hex()}: sealed -> created .*256 bytes"):
        entry.move(ObjectState.CREATED)
    assert entry.state is ObjectState.SEALED


def test_a_copy_that_becomes_the_primary_one_is_not_evicted_any_more(store: Store) -> None:
    copy_here(store, A)
    assert store.mark_primary(A, is_primary=True)
    store.check_invariants()
    for object_id in (B, C, D):
        put(store, object_id)
    assert is_full(store, ObjectKey(b"e" * 28)) and store.contains(A)


def test_what_another_node_has_as_the_primary_copy_may_be_evicted_here(store: Store) -> None:
    for object_id in (A, B, C, D):
        put(store, object_id)
    assert store.mark_primary(A, is_primary=False)
    store.check_invariants()
    assert not is_full(store, ObjectKey(b"e" * 28)) and not store.contains(A)


def test_marking_what_is_read_or_not_here(store: Store) -> None:
    copy_here(store, A)
    store.pin(A, BERT)
    assert store.mark_primary(A, is_primary=True)
    store.release(A, BERT)
    store.check_invariants()
    assert A in store.spillable
    create(store, B)
    assert not store.mark_primary(B, is_primary=True) and not store.mark_primary(C, is_primary=True)
    store.pin(A, BERT)
    store.free(A)
    assert not store.mark_primary(A, is_primary=True)
