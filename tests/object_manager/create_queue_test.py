"""Creates that wait: their order, their deadlines, and what their failure says."""

from __future__ import annotations

import pytest

from ray_mono.common.exceptions import ObjectStoreFullError
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.create_queue import BackMemory, CreateDone, CreateQueue, RoomWanted
from ray_mono.object_manager.errors import ObjectExists, StoreFull
from ray_mono.object_manager.keys import ClientKey, NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.no_room import NoRoom
from ray_mono.object_manager.spill_files import SpillFiles
from ray_mono.object_manager.store import Store

ANNA, BERT = ClientKey(1), ClientKey(2)


def make_store(backed_bytes: int = 1024, directory: str = "") -> Store:
    store = Store(1024, SpillFiles(1.0), dead_owners_max=10, directory=directory)
    store.allocator.raise_limit(backed_bytes)
    store.connect(ANNA)
    store.connect(BERT)
    return store


@pytest.fixture
def store() -> Store:
    return make_store()


def wanted(name: str, size_bytes: int, client: ClientKey = ANNA) -> RoomWanted:
    return RoomWanted(client, size_bytes, ObjectKey(name.encode()), b"", WorkerKey(b"owner"))


def granted(effects: list[CreateDone | BackMemory]) -> list[int]:
    assert all(isinstance(effect, CreateDone) and effect.error is None for effect in effects)
    return [effect.number for effect in effects if isinstance(effect, CreateDone)]


def failure(effects: list[CreateDone | BackMemory]) -> Exception | None:
    (effect,) = effects
    assert isinstance(effect, CreateDone)
    return effect.error


def free(store: Store, name: str) -> None:
    """What `name` took comes free; who made it is Anna."""
    store.seal(ObjectKey(name.encode()), ANNA)
    store.free(ObjectKey(name.encode()))


def test_a_create_that_fits_is_granted_at_once(store: Store) -> None:
    number, effects = CreateQueue(store, timeout_s=10).submit(wanted("a", 100), now_s=0)
    assert effects == [CreateDone(number, 0)]


def test_creates_are_served_in_order_even_where_a_later_one_would_fit(store: Store) -> None:
    queue = CreateQueue(store, timeout_s=10)
    queue.submit(wanted("a", 512), now_s=0)
    queue.submit(wanted("b", 256), now_s=0)
    large, effects = queue.submit(wanted("c", 512), now_s=1)
    assert effects == []
    small, effects = queue.submit(wanted("d", 128), now_s=2)
    assert effects == [] and len(queue) == 2
    free(store, "a")
    assert granted(queue.pump()) == [large, small]


def test_a_create_that_waited_too_long_fails_with_the_sizes_and_the_next_has_its_turn(store: Store) -> None:
    queue = CreateQueue(store, timeout_s=10)
    queue.submit(wanted("a", 900), now_s=0)
    late, _ = queue.submit(wanted("b", 512), now_s=1)
    small, _ = queue.submit(wanted("c", 64), now_s=2)
    assert queue.next_deadline_s == 11
    assert queue.expire(now_s=10.9) == []
    failed, done = queue.expire(now_s=11)
    assert isinstance(failed, CreateDone) and failed.number == late
    assert isinstance(failed.error, StoreFull)
    assert "wanted 512 bytes" in str(failed.error) and "after 10 s" in str(failed.error)
    assert "capacity 1024 bytes, used 960" in str(failed.error) and "pinned by readers 0" in str(failed.error)
    assert granted([done]) == [small]
    assert queue.next_deadline_s is None


def test_what_can_never_fit_fails_at_once(store: Store) -> None:
    _, effects = CreateQueue(store, timeout_s=10).submit(wanted("a", 2000), now_s=0)
    assert "more than the store can hold" in str(failure(effects))


def test_with_no_time_to_wait_a_full_store_refuses_at_once(store: Store) -> None:
    queue = CreateQueue(store, timeout_s=0)
    queue.submit(wanted("a", 1000), now_s=0)
    _, effects = queue.submit(wanted("b", 1000), now_s=0)
    assert isinstance(failure(effects), StoreFull)
    assert len(queue) == 0


def test_a_create_that_waited_may_find_that_another_made_the_object(store: Store) -> None:
    queue = CreateQueue(store, timeout_s=10)
    queue.submit(wanted("a", 1000), now_s=0)
    first, _ = queue.submit(wanted("b", 64), now_s=0)
    second, _ = queue.submit(wanted("b", 64), now_s=0)
    free(store, "a")
    done, refused = queue.pump()
    assert granted([done]) == [first]
    assert isinstance(refused, CreateDone) and refused.number == second
    assert isinstance(refused.error, ObjectExists)


def test_the_end_of_a_connection_takes_its_creates_out_of_the_queue(store: Store) -> None:
    queue = CreateQueue(store, timeout_s=10)
    queue.submit(wanted("a", 512), now_s=0)
    queue.submit(wanted("b", 1024, BERT), now_s=0)
    behind, _ = queue.submit(wanted("c", 64), now_s=0)
    effects = queue.client_gone(BERT)
    assert failure(effects[:1]) is not None
    assert granted(effects[1:]) == [behind]


def test_a_create_waits_for_pages_beyond_its_deadline() -> None:
    store = make_store(backed_bytes=0)
    queue = CreateQueue(store, timeout_s=0)
    number, effects = queue.submit(wanted("a", 100), now_s=0)
    assert effects == [BackMemory(128)]
    assert queue.next_deadline_s is None and queue.expire(now_s=100) == []
    store.allocator.raise_limit(128)
    assert granted(queue.pump()) == [number]


def test_a_create_for_which_there_are_no_pages_is_one_in_a_full_store() -> None:
    store = make_store(backed_bytes=0, directory="/the/files")
    queue = CreateQueue(store, timeout_s=5)
    queue.submit(wanted("a", 100), now_s=0)
    store.stop_growing()
    assert queue.pump() == []
    assert queue.next_deadline_s == 5
    # People are not sent for a larger store, which would find no room either.
    told = NoRoom(ObjectManagerConfig(capacity_bytes=1024), NodeKey(b"n"), store, queue).for_creates(now_s=3)
    assert told.startswith("The file system is full: 1 objects") and "remove other files there" in told
    assert "larger object_store_memory" not in told
    error = failure(queue.expire(now_s=5))
    # It says so, and whoever shows it does not blame the store's objects.
    assert isinstance(error, StoreFull) and "other files in /the/files leave room for 0 bytes" in str(error)
    told = str(ObjectStoreFullError(str(error)))
    assert "remove other files there" in told and "All that is in it is in use" not in told


def test_a_create_that_its_client_gives_up_is_answered_and_lets_others_pass(store: Store) -> None:
    queue = CreateQueue(store, timeout_s=10)
    queue.submit(wanted("a", 512), now_s=0)
    large, _ = queue.submit(wanted("b", 1024, BERT), now_s=0)
    small, _ = queue.submit(wanted("c", 256), now_s=0)
    assert queue.give_up(ObjectKey(b"b"), ANNA) == []
    given_up, next_one = queue.give_up(ObjectKey(b"b"), BERT)
    assert (
        isinstance(given_up, CreateDone)
        and given_up.number == large
        and isinstance(given_up.error, StoreFull)
    )
    assert granted([next_one]) == [small] and not len(queue)
