"""The key-value store, and the rows that it writes."""

from __future__ import annotations

import pytest

from ray_mono.gcs.kv import KeyValueStore, StoreIsFull, join_row_key, split_row_key
from ray_mono.gcs.storage.table_storage import Table


class Rows:
    """A RowWriter that keeps what is written."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        assert table is Table.KV
        self.rows[key] = value

    def delete(self, table: Table, key: bytes) -> None:
        del self.rows[key]


def test_more_than_its_bound_is_refused_and_what_is_there_may_shrink() -> None:
    store = KeyValueStore(Rows(), 100)
    assert store.put(b"ns", b"key", bytes(90), overwrite=False)
    with pytest.raises(StoreIsFull, match="keeps 93 bytes of keys and values already; with 12 more"):
        store.put(b"other", b"12", bytes(10), overwrite=True)
    assert store.summary().keys() == {"ns"}
    assert not store.put(b"ns", b"key", bytes(20), overwrite=True)
    assert store.put(b"other", b"12", bytes(70), overwrite=True)
    store.delete(b"other", b"1", by_prefix=True)
    assert store.put(b"other", b"12", bytes(74), overwrite=True)


def test_put_overwrites_only_when_asked_and_says_whether_the_key_is_new() -> None:
    store = KeyValueStore(Rows(), 1000)
    assert store.put(b"ns", b"key", b"1", overwrite=False)
    assert not store.put(b"ns", b"key", b"2", overwrite=False)
    assert store.get(b"ns", b"key") == b"1"
    assert not store.put(b"ns", b"key", b"3", overwrite=True)
    assert store.get(b"ns", b"key") == b"3"


def test_namespaces_are_apart_even_where_joined_names_look_alike() -> None:
    store = KeyValueStore(Rows(), 1000)
    store.put(b"a", b"bc", b"1", overwrite=True)
    store.put(b"ab", b"c", b"2", overwrite=True)
    assert (store.get(b"a", b"bc"), store.get(b"ab", b"c"), store.get(b"a", b"c")) == (b"1", b"2", None)


def test_keys_and_deletions_by_prefix() -> None:
    store = KeyValueStore(Rows(), 1000)
    for key in (b"job:2", b"job:1", b"node:1"):
        store.put(b"ns", key, b"", overwrite=True)
    assert store.keys(b"ns", b"job:") == [b"job:1", b"job:2"]
    assert store.delete(b"ns", b"job:", by_prefix=False) == 0
    assert store.delete(b"ns", b"job:", by_prefix=True) == 2
    assert store.delete(b"ns", b"node:1", by_prefix=False) == 1
    assert store.keys(b"ns", b"") == [] and store.summary() == {}


def test_a_restored_store_has_what_was_written() -> None:
    rows = Rows()
    before = KeyValueStore(rows, 1000)
    before.put(b"", b"", b"empty names", overwrite=True)
    before.put(b"\x00ns", b"\xffkey", b"first value", overwrite=True)
    before.put(b"\x00ns", b"\xffkey", b"value", overwrite=True)
    before.put(b"\x00ns", b"\xffkey", b"not written", overwrite=False)
    for key in (b"gone", b"job:1", b"job:2", b"job:3", b"stays"):
        before.put(b"ns", key, b"value", overwrite=True)
    before.delete(b"ns", b"gone", by_prefix=False)
    before.delete(b"ns", b"job:", by_prefix=True)
    after = KeyValueStore(Rows(), 1000)
    after.restore(rows.rows)
    assert after.get(b"", b"") == b"empty names"
    assert after.get(b"\x00ns", b"\xffkey") == b"value"
    assert after.keys(b"ns", b"") == [b"stays"]


def test_row_keys_can_be_taken_apart() -> None:
    for namespace, key in ((b"", b""), (b"ns", b""), (b"", b"key"), (b"\x00\x00", b"\x00")):
        assert split_row_key(join_row_key(namespace, key)) == (namespace, key)
