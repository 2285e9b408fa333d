"""What every store must do, asked of each: memory, sqlite3 and a real Redis with a password."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from ray_mono.gcs.kv import KeyValueStore
from ray_mono.gcs.storage.embedded_redis import EmbeddedRedisStorage
from ray_mono.gcs.storage.memory_storage import MemoryStorage
from ray_mono.gcs.storage.redis_address import parse_redis_address
from ray_mono.gcs.storage.redis_storage import RedisStorage
from ray_mono.gcs.storage.sqlite_storage import SqliteStorage
from ray_mono.gcs.storage.table_storage import Table, TableStorage, Write
from ray_mono.gcs.storage.write_through import WriteThrough


@dataclass
class Store:
    """Makes storages over the same place, one after the other."""

    make: Callable[[], TableStorage]

    def run(self, scene: Callable[[TableStorage], Awaitable[None]]) -> None:
        """One life of a storage: open, the scene, close."""

        async def life() -> None:
            storage = self.make()
            await storage.open()
            try:
                await scene(storage)
            finally:
                await storage.close()

        asyncio.run(life())


@pytest.fixture(params=["memory", "sqlite", "sqlite-full", "redis", "redis-embedded"])
def store(request: pytest.FixtureRequest, short_dir: str) -> Store:
    if request.param == "memory":
        storage = MemoryStorage()
        return Store(lambda: storage)
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        address = parse_redis_address(server.address, password=server.password)
        return Store(lambda: RedisStorage(address, "test", 1.0, time.monotonic))
    if request.param == "redis-embedded":
        return Store(lambda: EmbeddedRedisStorage(short_dir, time.monotonic))
    return Store(
        lambda: SqliteStorage(f"{short_dir}/gcs.sqlite", survive_power_loss=request.param == "sqlite-full")
    )


def test_a_new_store_is_empty(store: Store) -> None:
    async def scene(storage: TableStorage) -> None:
        for table in Table:
            assert await storage.load_all(table) == {}

    store.run(scene)


def test_rows_are_there_again_in_the_order_of_their_keys(store: Store) -> None:
    async def write(storage: TableStorage) -> None:
        await storage.commit(
            [Write(Table.KV, b"b", b"2"), Write(Table.KV, b"a", b"1"), Write(Table.NODE, b"a", b"node")]
        )
        await storage.commit([Write(Table.KV, b"c", b"")])

    async def read(storage: TableStorage) -> None:
        assert list((await storage.load_all(Table.KV)).items()) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"")]
        assert await storage.load_all(Table.NODE) == {b"a": b"node"}
        assert await storage.load_all(Table.ACTOR) == {}

    store.run(write)
    store.run(read)


def test_the_last_write_of_a_row_counts(store: Store) -> None:
    async def scene(storage: TableStorage) -> None:
        await storage.commit(
            [Write(Table.JOB, b"1", b"old"), Write(Table.JOB, b"2", b"old"), Write(Table.JOB, b"3", b"old")]
        )
        await storage.commit(
            [
                Write(Table.JOB, b"1", b"new"),
                Write(Table.JOB, b"2", None),
                Write(Table.JOB, b"3", None),
                Write(Table.JOB, b"3", b"x"),
            ]
        )
        assert await storage.load_all(Table.JOB) == {b"1": b"new", b"3": b"x"}

    store.run(scene)


def test_keys_that_are_written_again_have_their_last_value_after_a_restart(store: Store) -> None:
    """Through all that lies between a caller and the store."""
    failures: list[BaseException] = []

    def write(round: bytes) -> Callable[[TableStorage], Awaitable[None]]:
        async def scene(storage: TableStorage) -> None:
            writes = WriteThrough(storage, failures.append)
            values = KeyValueStore(writes, 1000)
            values.restore(await storage.load_all(Table.KV))
            for number in range(3):
                values.put(b"ns", b"%d" % number, b"%s of %d" % (round, number), overwrite=True)
                await writes.flushed()
            await writes.close()

        return scene

    async def read(storage: TableStorage) -> None:
        values = KeyValueStore(WriteThrough(storage, failures.append), 1000)
        values.restore(await storage.load_all(Table.KV))
        assert [values.get(b"ns", b"%d" % number) for number in range(3)] == [
            b"third of %d" % number for number in range(3)
        ]

    for round in (b"first", b"second", b"third"):
        store.run(write(round))
    store.run(read)
    assert not failures


def test_deleting_what_is_not_there_is_nothing(store: Store) -> None:
    async def scene(storage: TableStorage) -> None:
        await storage.commit([Write(Table.WORKER, b"none", None)])
        assert await storage.load_all(Table.WORKER) == {}

    store.run(scene)


def test_any_bytes_can_be_stored(store: Store) -> None:
    every_byte = bytes(range(256))
    large = every_byte * 20_000

    async def scene(storage: TableStorage) -> None:
        await storage.commit([Write(Table.KV, every_byte, large), Write(Table.KV, b"\x00", every_byte)])
        assert await storage.load_all(Table.KV) == {b"\x00": every_byte, every_byte: large}

    store.run(scene)


def test_each_head_has_a_higher_number_than_the_last_one_whatever_is_stored(store: Store) -> None:
    numbers: list[int] = []
    for _ in range(3):

        async def life() -> None:
            storage = store.make()
            numbers.append(await storage.open())
            assert storage.is_confirmed(0)
            await storage.commit([Write(Table.META, b"number", b"of no use"), Write(Table.KV, b"head", None)])
            # Nobody can have taken over: it says that without writes, too.
            await storage.commit([])
            assert storage.is_confirmed(0)
            await storage.close()

        asyncio.run(life())
    assert numbers == sorted(set(numbers))
