"""The memory store: waiters hear of a value once, whenever and however it comes."""

from __future__ import annotations

from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.values.serialization import ERROR


def test_a_waiter_hears_of_a_value_once() -> None:
    store = MemoryStore()
    heard: list[str] = []
    store.expect(b"a")
    assert not store.when_ready(b"a", lambda: heard.append("ready"))
    store.put_inline(b"a", b"", b"1")
    store.put_inline(b"a", b"", b"2")
    assert heard == ["ready"]


def test_what_is_there_needs_no_waiting() -> None:
    store = MemoryStore()
    store.put_in_store(b"a", [b"node"], 10)
    assert store.when_ready(b"a", lambda: None)
    entry = store.get(b"a")
    assert entry is not None and entry.locations == [b"node"] and entry.data is None


def test_a_forgotten_waiter_hears_nothing_and_the_others_do() -> None:
    store = MemoryStore()
    heard: list[str] = []

    def first() -> None:
        heard.append("first")

    def second() -> None:
        heard.append("second")

    store.expect(b"a")
    store.when_ready(b"a", first)
    store.when_ready(b"a", second)
    store.forget_waiter(b"a", first)
    store.put_inline(b"a", b"", b"")
    assert heard == ["second"]


def test_waiters_of_a_value_that_is_removed_are_not_left_waiting() -> None:
    store = MemoryStore()
    heard: list[str] = []
    store.expect(b"a")
    store.when_ready(b"a", lambda: heard.append("gone"))
    store.remove(b"a")
    assert heard == ["gone"] and len(store) == 0


def test_a_value_that_is_made_again_is_pending_until_it_is() -> None:
    store = MemoryStore()
    store.put_inline(b"a", b"", b"1")
    store.expect(b"a")
    heard: list[str] = []
    assert not store.when_ready(b"a", lambda: heard.append("again"))
    store.put_inline(b"a", b"", b"2")
    entry = store.get(b"a")
    assert heard == ["again"] and entry is not None and entry.data == b"2"


def test_nodes_that_have_copies_are_named_once_each() -> None:
    store = MemoryStore()
    store.put_in_store(b"a", [b"n1"], 10)
    assert store.add_location(b"a", b"n2") and store.add_location(b"a", b"n2")
    entry = store.get(b"a")
    assert entry is not None and entry.locations == [b"n1", b"n2"]
    store.remove_location(b"a", b"n1")
    store.remove_location(b"a", b"n1")
    assert entry.locations == [b"n2"]


def test_only_what_lies_in_stores_gets_copies() -> None:
    store = MemoryStore()
    store.put_inline(b"a", b"", b"1")
    store.expect(b"b")
    for object_id in (b"a", b"b", b"c"):
        assert not store.add_location(object_id, b"n1")
        store.remove_location(object_id, b"n1")
        entry = store.get(object_id)
        assert entry is None or entry.locations is None


def test_the_size_of_a_value_is_known() -> None:
    store = MemoryStore()
    store.put_inline(b"a", b"", b"123")
    store.put_in_store(b"b", [b"n1"], 10)
    assert [entry.size_bytes for entry in map(store.get, (b"a", b"b")) if entry] == [3, 10]


def test_the_first_error_of_several_is_that_of_the_first_that_was_asked_for() -> None:
    store = MemoryStore()
    store.put_inline(b"a", b"", b"")
    store.put_inline(b"b", ERROR, b"")
    store.put_inline(b"c", ERROR, b"")
    store.expect(b"d")
    assert store.first_error([b"d", b"a", b"c", b"b", b"none"]) == b"c"
    assert store.first_error([b"d", b"a", b"none"]) is None
    store.expect(b"c")
    assert store.first_error([b"c"]) is None


def test_an_error_that_somebody_was_given_is_marked_and_nothing_else() -> None:
    store = MemoryStore()
    store.put_inline(b"a", ERROR, b"")
    store.put_inline(b"b", ERROR, b"")
    store.expect(b"c")
    for object_id in (b"a", b"c", b"none"):
        store.mark_seen(object_id)
    assert [entry.is_seen for entry in map(store.get, (b"a", b"b", b"c")) if entry] == [True, False, False]


def test_a_wait_for_several_ends_with_the_last() -> None:
    store = MemoryStore()
    ended: list[str] = []
    names = [b"a", b"b", b"c"]
    store.put_inline(b"b", b"", b"")
    for name in (b"a", b"c"):
        store.expect(name)
    wait = store.start_wait(names, names, lambda: ended.append("over"))
    assert wait is not None and wait.num_missing == 2
    store.put_inline(b"c", b"", b"")
    assert ended == [] and wait.num_missing == 1
    store.put_in_store(b"a", [b"n1"], 1)
    assert ended == ["over"] and wait.num_missing == 0
    wait.close()
    assert store.start_wait(names, names, lambda: None) is None


def test_a_wait_for_several_ends_with_an_error_of_any_that_is_wanted() -> None:
    store = MemoryStore()
    ended: list[str] = []
    for name in (b"a", b"b", b"other"):
        store.expect(name)
    wait = store.start_wait([b"a"], [b"a", b"b"], lambda: ended.append("over"))
    assert wait is not None
    store.put_inline(b"other", ERROR, b"")
    assert ended == []
    store.put_inline(b"b", ERROR, b"")
    assert ended == ["over"]
    wait.close()
    store.put_inline(b"b", ERROR, b"")
    assert ended == ["over"] and store.num_waiters == 0
    # One that is there already ends a wait at once.
    again = store.start_wait([b"a"], [b"a", b"b"], lambda: ended.append("at once"))
    assert again is not None and ended == ["over", "at once"]
    again.close()


def test_a_wait_that_is_closed_before_its_end_leaves_nothing() -> None:
    store = MemoryStore()
    store.expect(b"a")
    wait = store.start_wait([b"a"], [b"a"], lambda: None)
    assert wait is not None and store.num_waiters == 1
    wait.close()
    assert store.num_waiters == 0
