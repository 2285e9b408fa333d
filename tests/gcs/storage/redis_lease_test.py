"""Two heads over one Redis: who writes, who answers, and what a late or repeated commit does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from ray_mono.gcs.storage import redis_lease
from ray_mono.gcs.storage.redis_address import RedisAddress
from ray_mono.gcs.storage.redis_storage import RedisStorage
from ray_mono.gcs.storage.table_storage import DeposedError, StorageError, Table, Write
from tests.gcs.redis_servers import RedisProcess

HEAD_KEY = "ray_mono:{test}:head"


@pytest.fixture
def server(short_dir: str) -> Iterator[RedisProcess]:
    server = RedisProcess(f"{short_dir}/redis", ["appendonly yes"])
    server.start()
    yield server
    server.kill()


def storage(
    server: RedisProcess, port: int | None = None, time_s: Callable[[], float] = time.monotonic
) -> RedisStorage:
    address = RedisAddress(servers=(("127.0.0.1", port or server.port),))
    return RedisStorage(address, "test", 5.0, time_s)


def put(key: bytes, value: bytes) -> list[Write]:
    return [Write(Table.KV, key, value)]


def test_each_head_has_a_higher_number_than_all_before_also_on_older_rows(server: RedisProcess) -> None:
    async def scene() -> None:
        numbers = [await storage(server).open() for _ in range(3)]
        # An older copy, as of a Redis without its append-only file: nodes have heard of the heads after it.
        server.ask("COPY", HEAD_KEY, "kept")
        numbers += [await storage(server).open() for _ in range(3)]
        server.ask("COPY", "kept", HEAD_KEY, "REPLACE")
        numbers.append(await storage(server).open())
        server.ask("DEL", HEAD_KEY)
        numbers.append(await storage(server).open())
        assert numbers == sorted(set(numbers))

    asyncio.run(scene())


def test_a_head_whose_redis_was_emptied_is_not_taken_for_the_one_after_it(server: RedisProcess) -> None:
    async def scene() -> None:
        old, new = storage(server), storage(server)
        await old.open()
        server.ask("FLUSHALL")
        await new.open()
        # More than the old one has done: its next would count as done, were they of one number.
        await new.commit(put(b"key", b"new"))
        with pytest.raises(DeposedError):
            await old.commit(put(b"key", b"too late"))

    asyncio.run(scene())


def test_a_head_that_was_replaced_writes_nothing_and_says_who_took_over(server: RedisProcess) -> None:
    async def scene() -> None:
        old, new = storage(server), storage(server)
        await old.open()
        await old.commit(put(b"key", b"old"))
        await new.open()
        # As many as the old one has done: its next would be in place, were it its own.
        await new.commit(put(b"other", b"new"))
        with pytest.raises(DeposedError, match=r"head \d+ of this cluster, on .* \(pid \d+\), took over"):
            await old.commit(put(b"key", b"too late"))
        with pytest.raises(DeposedError):
            await old.commit([])
        # What it does at its end takes nothing from the new one.
        await old.close()
        await new.commit(put(b"third", b"new"))
        assert await new.load_all(Table.KV) == {b"key": b"old", b"other": b"new", b"third": b"new"}
        await new.close()

    asyncio.run(scene())


def test_of_heads_that_start_at_once_one_holds_the_rows(server: RedisProcess) -> None:
    async def scene() -> None:
        heads = [storage(server) for _ in range(5)]
        outcomes = await asyncio.gather(*(head.open() for head in heads), return_exceptions=True)
        numbers = [outcome for outcome in outcomes if isinstance(outcome, int)]
        assert len(set(numbers)) == len(numbers)
        assert all(isinstance(outcome, int | DeposedError) for outcome in outcomes)
        for head, outcome in zip(heads, outcomes, strict=True):
            if outcome == max(numbers):
                await head.commit(put(b"key", b"the last one's"))
            elif isinstance(outcome, int):
                with pytest.raises(DeposedError):
                    await head.commit(put(b"key", b"another's"))
            await head.close()

    asyncio.run(scene())


def test_a_head_answers_for_less_than_its_lease_and_the_next_one_waits_for_all_of_it(
    server: RedisProcess,
) -> None:
    now_s = 100.0

    async def scene() -> None:
        nonlocal now_s
        head = storage(server, time_s=lambda: now_s)
        await head.open()
        assert head.is_confirmed(0)
        trusted_s = redis_lease.LEASE_S - redis_lease.MARGIN_S
        now_s += trusted_s * 0.9
        assert head.is_confirmed(0) and not head.is_confirmed(trusted_s * 0.2)
        now_s += trusted_s * 0.2
        assert not head.is_confirmed(0)
        await head.commit([])
        assert head.is_confirmed(0)

        real = storage(server)
        await real.open()
        assert real.is_confirmed(0)
        after = storage(server)
        await after.open()
        # By its own clock, which was asked as late as possible.
        assert not real.is_confirmed(0)
        for one in (head, real, after):
            await one.close()
            assert not one.is_confirmed(0)

    asyncio.run(scene())


def test_a_redis_that_lost_what_it_had_acknowledged_is_an_error_that_says_so(server: RedisProcess) -> None:
    async def scene() -> None:
        head = storage(server)
        await head.open()
        await head.commit(put(b"key", b"1"))
        server.ask("FLUSHALL")
        with pytest.raises(StorageError, match="has lost changes that it had acknowledged.*was emptied"):
            await head.commit(put(b"key", b"2"))
        assert await head.load_all(Table.KV) == {}
        await head.close()

    asyncio.run(scene())


def test_a_redis_that_removes_keys_when_its_memory_is_used_is_warned_of(
    server: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        asyncio.run(open_and_close())
        return [each.getMessage() for each in caplog.records if "maxmemory-policy" in each.getMessage()]

    async def open_and_close() -> None:
        head = storage(server)
        await head.open()
        await head.close()

    server.ask("CONFIG", "SET", "maxmemory", 100 << 20)
    assert not warnings()
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    (warning,) = warnings()
    assert "allkeys-lru" in warning and "Set it to noeviction" in warning


def test_a_table_of_any_size_is_read_in_pieces(server: RedisProcess) -> None:
    # Who asks for more at once is disconnected.
    server.ask("CONFIG", "SET", "client-output-buffer-limit", "normal 8mb 0 0")
    rows = {b"large %03d" % number: b"x" * (1 << 18) for number in range(64)}
    rows |= {b"small %04d" % number: b"%d" % number for number in range(2500)}

    async def scene() -> None:
        head = storage(server)
        await head.open()
        await head.commit([Write(Table.KV, key, value) for key, value in rows.items()])
        assert list((await head.load_all(Table.KV)).items()) == list(rows.items())
        await head.close()

    asyncio.run(scene())


# ---- answers that are lost, requests that are late


@dataclass
class Road:
    """A proxy to Redis that can keep what goes either way."""

    port_behind: int
    port: int = 0
    loses_answers: bool = False
    holds_requests: bool = False
    held: list[tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    lost: int = 0

    async def open(self) -> asyncio.Server:
        listener = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        return listener

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", self.port_behind)

        async def answers() -> None:
            while data := await redis_reader.read(1 << 16):
                if self.loses_answers:
                    self.loses_answers = False
                    self.lost += 1
                    writer.close()
                    return
                writer.write(data)

        task = asyncio.create_task(answers())
        while data := await reader.read(1 << 16):
            if self.holds_requests:
                # It may arrive any time, whatever becomes of the one who sent it.
                self.holds_requests = False
                task.cancel()
                self.held.append((data, redis_reader, redis_writer))
                writer.close()
                return
            redis_writer.write(data)
        redis_writer.close()
        await task


def test_a_commit_whose_answer_was_lost_is_applied_once(server: RedisProcess) -> None:
    async def scene() -> None:
        road = Road(server.port)
        async with await road.open():
            head = storage(server, road.port)
            await head.open()
            road.loses_answers = True
            await head.commit(put(b"key", b"1"))
            assert road.lost == 1
            assert await head.load_all(Table.KV) == {b"key": b"1"}
            before = int(server.ask("HGET", HEAD_KEY, "sequence"))
            await head.commit(put(b"key", b"2"))
            assert int(server.ask("HGET", HEAD_KEY, "sequence")) == before + 1
            await head.close()

    asyncio.run(scene())


def test_a_commit_that_arrives_after_those_that_followed_it_changes_nothing(server: RedisProcess) -> None:
    async def scene() -> None:
        road = Road(server.port)
        async with await road.open():
            head = storage(server, road.port)
            number = await head.open()
            road.holds_requests = True
            await head.commit(put(b"key", b"first"))
            await head.commit(put(b"key", b"second"))
            [(request, redis_reader, redis_writer)] = road.held
            assert b"first" in request
            redis_writer.write(request)
            # It was looked at: the answer tells the number, and how far the head is by now.
            assert b":%d\r\n:3\r\n" % number in await redis_reader.read(1 << 16)
            redis_writer.close()
            assert await head.load_all(Table.KV) == {b"key": b"second"}
            await head.commit(put(b"key", b"third"))
            await head.close()

    asyncio.run(scene())
