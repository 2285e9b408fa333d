"""The memory store: waiters hear of a value once, whenever and however it comes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from ray_mono.core_worker.store_provider.memory_store import Entry, MemoryStore
from ray_mono.core_worker.values.serialization import ERROR
from ray_mono.protobuf import common_pb2


def store_of(*referenced: bytes) -> MemoryStore:
    """With nothing known yet of these objects, which somebody needs."""
    return MemoryStore(frozenset(referenced).__contains__)


def test_a_waiter_hears_of_a_value_once() -> None:
    store = store_of(b"a")
    heard: list[str] = []
    assert not store.when_ready(b"a", lambda: heard.append("ready"))
    store.put_inline(b"a", b"", b"1")
    store.put_inline(b"a", b"", b"2")
    assert heard == ["ready"]


@pytest.mark.parametrize("num_others", [0, 5])
def test_waiters_of_values_that_come_together_hear_of_theirs(num_others: int) -> None:
    names, others = [b"a", b"b", b"c"], [b"other %d" % number for number in range(num_others)]
    store = store_of(*names, *others)
    heard: list[bytes] = []
    for name in (b"a", b"c", b"c", *others):
        assert not store.when_ready(name, lambda name=name: heard.append(name))  # type: ignore[misc]
    store.put_all_plain(names, [b"1", b"2", b"3"])
    assert sorted(heard) == [b"a", b"c", b"c"] and store.num_waiters == num_others
    assert [store.plain_or_entry(name) for name in names] == [b"1", b"2", b"3"]


def test_who_counts_what_comes_counts_all_that_come_together() -> None:
    names = [b"a", b"b", b"c", b"d"]
    store = store_of(*names)
    heard: list[str] = []
    watch = store.watch(names[:3], lambda: heard.append("came"))
    store.when_ready(b"a", lambda: heard.append("a"))
    store.put_all_plain([b"d", b"b", b"a"], [b"1", b"2", b"3"])
    assert sorted(heard) == ["a", "came", "came"] and watch.object_ids == {b"c"}
    store.end_watch(watch)


def test_what_is_there_needs_no_waiting() -> None:
    store = store_of()
    store.put_in_store(b"a", [b"node"], 10)
    assert store.when_ready(b"a", lambda: None)
    entry = store.get(b"a")
    assert entry is not None and entry.locations == [b"node"] and entry.data is None


def test_what_nobody_refers_to_will_not_come_unless_it_is_expected() -> None:
    store = store_of(b"a")
    assert store.is_pending(b"a") and not store.is_pending(b"b")
    assert store.when_ready(b"b", lambda: None)
    store.expect(b"b")
    heard: list[str] = []
    assert store.is_pending(b"b") and not store.when_ready(b"b", lambda: heard.append("b"))
    store.put_plain(b"b", b"1")
    assert heard == ["b"] and not store.is_pending(b"b")
    store.remove(b"b")
    assert not store.is_pending(b"b")


@pytest.mark.parametrize(
    "put",
    [
        lambda store: store.put_plain(b"a", b"1"),
        lambda store: store.put_all_plain([b"a", b"b"], [b"1", b"2"]),
        lambda store: store.put_inline(b"a", ERROR, b"1"),
        lambda store: store.put_in_store(b"a", [b"n1"], 1),
        lambda store: store.remove(b"a"),
    ],
)
def test_what_was_expected_and_came_is_not_expected_again(put: Callable[[MemoryStore], object]) -> None:
    store = store_of()
    store.expect(b"a")
    put(store)
    store.forget(b"a")
    assert not store.is_pending(b"a") and store.when_ready(b"a", lambda: None)


def test_what_is_there_is_not_expected() -> None:
    store = store_of()
    store.put_plain(b"a", b"1")
    store.expect(b"a")
    store.forget(b"a")
    assert not store.is_pending(b"a")


def test_a_small_value_is_its_bytes_and_any_other_an_entry() -> None:
    store = store_of()
    store.put_plain(b"a", b"1")
    store.put_inline(b"b", b"R", b"22")
    entry = store.get(b"a")
    assert store.plain_or_entry(b"a") == b"1" and store.plain_or_entry(b"b") is store.get(b"b")
    assert entry is not None and (entry.metadata, entry.data, entry.locations) == (b"", b"1", None)
    assert store.plain_or_entry(b"c") is None and store.remove(b"a") == b"1" and store.remove(b"a") is None


def test_a_sent_value_is_its_bytes_unless_it_has_references_or_a_format_of_its_own() -> None:
    store = store_of()
    store.put_value(b"a", common_pb2.SerializedObject(data=b"1"))
    store.put_value(b"b", common_pb2.SerializedObject(data=b"2", nested=[common_pb2.ObjectReference()]))
    store.put_value(b"c", common_pb2.SerializedObject(data=b"3", metadata=ERROR))
    assert store.plain_or_entry(b"a") == b"1"
    for object_id, metadata, data in ((b"b", b"", b"2"), (b"c", ERROR, b"3")):
        entry = store.plain_or_entry(object_id)
        assert isinstance(entry, Entry) and (entry.metadata, entry.data) == (metadata, data)
    assert store.first_error([b"a", b"b", b"c"]) == b"c"


def test_a_forgotten_waiter_hears_nothing_and_the_others_do() -> None:
    store = store_of(b"a")
    heard: list[str] = []

    def first() -> None:
        heard.append("first")

    def second() -> None:
        heard.append("second")

    store.when_ready(b"a", first)
    store.when_ready(b"a", second)
    store.forget_waiter(b"a", first)
    store.put_inline(b"a", b"", b"")
    assert heard == ["second"]


def test_waiters_of_a_value_that_is_removed_are_not_left_waiting() -> None:
    store = store_of(b"a")
    heard: list[str] = []
    store.when_ready(b"a", lambda: heard.append("gone"))
    store.remove(b"a")
    assert heard == ["gone"] and len(store) == 0 and store.num_waiters == 0


def test_a_value_that_is_forgotten_is_pending_until_it_comes_again() -> None:
    store = store_of(b"a")
    store.put_inline(b"a", b"", b"1")
    store.forget(b"a")
    heard: list[str] = []
    assert not store.when_ready(b"a", lambda: heard.append("again"))
    store.put_inline(b"a", b"", b"2")
    entry = store.get(b"a")
    assert heard == ["again"] and entry is not None and entry.data == b"2"


def test_nodes_that_have_copies_are_named_once_each() -> None:
    store = store_of()
    store.put_in_store(b"a", [b"n1"], 10)
    assert store.add_location(b"a", b"n2") and store.add_location(b"a", b"n2")
    entry = store.get(b"a")
    assert entry is not None and entry.locations == [b"n1", b"n2"]


def test_only_what_lies_in_stores_gets_copies() -> None:
    store = store_of(b"b")
    store.put_inline(b"a", b"", b"1")
    store.put_plain(b"p", b"1")
    for object_id in (b"a", b"b", b"c", b"p"):
        assert not store.add_location(object_id, b"n1")
        entry = store.get(object_id)
        assert entry is None or entry.locations is None


def test_the_size_of_a_value_is_known() -> None:
    store = store_of()
    store.put_inline(b"a", b"", b"123")
    store.put_in_store(b"b", [b"n1"], 10)
    store.put_plain(b"c", b"12")
    assert [entry.size_bytes for entry in map(store.get, (b"a", b"b", b"c")) if entry] == [3, 10, 2]


def test_the_first_error_of_several_is_that_of_the_first_that_was_asked_for() -> None:
    store = store_of(b"d", b"c")
    store.put_inline(b"a", b"", b"")
    store.put_inline(b"b", ERROR, b"")
    store.put_inline(b"c", ERROR, b"")
    assert store.first_error([b"d", b"a", b"c", b"b", b"none"]) == b"c"
    assert store.first_error([b"d", b"a", b"none"]) is None
    store.forget(b"c")
    assert store.first_error([b"c"]) is None


def test_an_error_that_somebody_was_given_is_marked_and_nothing_else() -> None:
    store = store_of(b"c")
    store.put_inline(b"a", ERROR, b"")
    store.put_inline(b"b", ERROR, b"")
    store.put_inline(b"v", b"", b"")
    for object_id in (b"a", b"c", b"v", b"none"):
        store.mark_seen(object_id)
    assert [store.take_seen(each) for each in (b"a", b"b", b"c", b"v", b"none")] == [True] + 4 * [False]
    assert not store.take_seen(b"a")


def test_an_error_that_comes_anew_was_not_given_to_anybody() -> None:
    store = store_of(b"a")
    store.put_inline(b"a", ERROR, b"1")
    store.mark_seen(b"a")
    store.put_inline(b"a", ERROR, b"2")
    assert not store.take_seen(b"a")


def test_a_wait_for_several_ends_with_the_last() -> None:
    names = [b"a", b"b", b"c"]
    store = store_of(*names)
    ended: list[str] = []
    store.put_inline(b"b", b"", b"")
    wait = store.start_wait(names, names, lambda: ended.append("over"))
    assert wait is not None and not wait.is_over
    store.put_inline(b"c", b"", b"")
    assert ended == [] and not wait.is_over
    store.put_in_store(b"a", [b"n1"], 1)
    assert ended == ["over"] and wait.is_over
    wait.close()
    assert store.start_wait(names, names, lambda: None) is None


def test_a_wait_for_several_ends_in_whatever_order_they_come() -> None:
    names = [b"a", b"b", b"c"]
    for order in itertools.permutations(names):
        store = store_of(*names)
        ended: list[str] = []
        wait = store.start_wait(names, names, lambda ended=ended: ended.append("over"))  # type: ignore[misc]
        for number, name in enumerate(order):
            assert wait is not None and len(ended) == 0 and not wait.is_over, number
            if not number % 2:
                store.remove(name)
            store.put_plain(name, b"1")
        assert ended == ["over"] and wait is not None and wait.is_over
        wait.close()
        assert store.num_waiters == 0


def test_a_wait_for_several_passes_over_what_is_removed_though_somebody_needs_it() -> None:
    store = store_of(b"a", b"b")
    ended: list[str] = []
    wait = store.start_wait([b"a", b"b"], [b"a", b"b"], lambda: ended.append("over"))
    store.remove(b"b")
    assert ended == [] and wait is not None and not wait.is_over
    store.remove(b"a")
    assert ended == ["over"] and wait.is_over and store.num_waiters == 0


def test_a_wait_for_several_ends_with_an_error_of_any() -> None:
    store = store_of(b"a", b"b", b"other")
    ended: list[str] = []
    wait = store.start_wait([b"a", b"b"], [b"a", b"b"], lambda: ended.append("over"))
    assert wait is not None
    store.put_inline(b"other", ERROR, b"")
    assert ended == []
    store.put_inline(b"a", ERROR, b"")
    assert ended == ["over"] and not wait.is_over
    wait.close()
    store.put_inline(b"a", ERROR, b"")
    assert ended == ["over"] and store.num_waiters == 0


def test_a_wait_for_several_ends_where_one_that_was_there_becomes_an_error() -> None:
    store = store_of(b"a", b"b")
    store.put_plain(b"a", b"1")
    ended: list[str] = []
    wait = store.start_wait([b"b"], [b"a", b"b"], lambda: ended.append("over"))
    assert wait is not None
    store.put_inline(b"a", ERROR, b"")
    assert ended == ["over"]
    wait.close()


def test_a_wait_that_is_closed_before_its_end_leaves_nothing() -> None:
    store = store_of(b"a", b"b")
    wait = store.start_wait([b"a", b"b"], [b"a", b"b"], lambda: None)
    assert wait is not None and store.num_waiters == 1
    wait.close()
    assert store.num_waiters == 0


def test_who_watches_several_hears_of_each_that_comes_once() -> None:
    store = store_of(b"a", b"b", b"c")
    came: list[str] = []
    watch = store.watch([b"a", b"b", b"c"], lambda: came.append("one"))
    twin = store.watch([b"a", b"b", b"c"], lambda: came.append("twin"))
    store.put_plain(b"other", b"")
    assert came == []
    store.put_plain(b"a", b"")
    store.put_plain(b"a", b"")
    assert came == ["one", "twin"]
    store.end_watch(watch)
    store.put_in_store(b"b", [b"n"], 1)
    store.remove(b"c")
    assert came == ["one", "twin", "twin", "twin"]
    store.end_watch(twin)
    store.put_plain(b"a", b"")
    assert len(came) == 4
