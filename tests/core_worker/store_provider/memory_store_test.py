"""The memory store: waiters hear of a value once, whenever and however it comes."""

from __future__ import annotations

from ray_mono.core_worker.store_provider.memory_store import MemoryStore


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
