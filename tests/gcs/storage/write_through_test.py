"""Durable before answered: one commit for a turn, publications after it, an end when the store refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ray_mono.gcs.storage.memory_storage import MemoryStorage
from ray_mono.gcs.storage.room import Room
from ray_mono.gcs.storage.table_storage import DeposedError, StorageError, StorageFullError, Table, Write
from ray_mono.gcs.storage.write_through import GATHER_TURNS_MAX, WriteThrough
from ray_mono.rpc.surface import RpcError, StatusCode


class GatedStorage(MemoryStorage):
    """Commits when the test opens the gate; `batches` are what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.closes_again = False
        self.batches: list[list[tuple[bytes, bytes | None]]] = []
        self.failure: StorageError | None = None
        self.is_latest = True

    def is_confirmed(self, for_s: float) -> bool:
        return self.is_latest

    async def commit(self, writes: Sequence[Write]) -> None:
        self.batches.append([(write.key, write.value) for write in writes])
        await self.gate.wait()
        if self.closes_again:
            self.gate.clear()
        if self.failure is not None:
            raise self.failure
        await super().commit(writes)


async def settle() -> None:
    """Whoever can be answered has been."""
    for _ in range(20):
        await asyncio.sleep(0)


class Scene:
    def __init__(self) -> None:
        self.storage = GatedStorage()
        self.failures: list[Exception] = []
        self.writes = WriteThrough(self.storage, self.failures.append)


def test_the_writes_of_one_turn_share_a_commit_and_the_last_of_a_row_counts() -> None:
    async def scene() -> None:
        it = Scene()
        it.storage.gate.set()
        it.writes.put(Table.KV, b"a", b"1")
        it.writes.put(Table.KV, b"b", b"1")
        it.writes.put(Table.KV, b"a", b"2")
        it.writes.delete(Table.KV, b"b")
        await it.writes.flushed()
        assert it.storage.batches == [[(b"a", b"2"), (b"b", None)]]

    asyncio.run(scene())


def test_requests_that_come_together_share_a_commit_though_each_begins_in_a_turn_of_its_own() -> None:
    async def scene() -> None:
        it = Scene()
        it.storage.gate.set()

        async def begin(number: int) -> None:
            it.writes.put(Table.KV, b"%d" % number, b"1")
            others = [asyncio.ensure_future(begin(number + 1))] if number < 9 else []
            await it.writes.flushed()
            await asyncio.gather(*others)

        await begin(0)
        assert [len(batch) for batch in it.storage.batches] == [10]

    asyncio.run(scene())


def test_requests_that_come_without_end_are_answered() -> None:
    async def scene() -> None:
        it = Scene()
        it.storage.gate.set()
        answered = asyncio.ensure_future(it.writes.flushed())
        turns = 0
        while not it.storage.batches:
            turns += 1
            it.writes.put(Table.KV, b"%d" % turns, b"1")
            await asyncio.sleep(0)
        assert turns <= GATHER_TURNS_MAX + 2
        await answered

    asyncio.run(scene())


def test_nobody_is_answered_before_the_commit_that_holds_his_write() -> None:
    async def scene() -> None:
        it = Scene()
        it.storage.closes_again = True
        ran: list[str] = []

        async def answers(key: bytes) -> None:
            it.writes.put(Table.KV, key, b"1")
            it.writes.after_commit(lambda: ran.append(key.decode()))
            await it.writes.flushed()

        first = asyncio.create_task(answers(b"a"))
        await settle()
        second = asyncio.create_task(answers(b"b"))
        await settle()
        assert not first.done() and not second.done() and ran == []
        it.storage.gate.set()
        await settle()
        assert first.done() and not second.done() and ran == ["a"]
        it.storage.gate.set()
        await second
        assert ran == ["a", "b"]
        assert it.storage.batches == [[(b"a", b"1")], [(b"b", b"1")]]

    asyncio.run(scene())


def test_actions_run_after_their_commit_in_order_and_never_at_once() -> None:
    async def scene() -> None:
        it = Scene()
        it.storage.gate.set()
        ran: list[str] = []
        it.writes.put(Table.KV, b"a", b"1")
        it.writes.after_commit(lambda: ran.append(f"first after {len(it.storage.batches)}"))
        it.writes.after_commit(lambda: ran.append("second"))
        assert ran == []
        await it.writes.flushed()
        assert ran == ["first after 1", "second"]
        it.writes.after_commit(lambda: ran.append("third"))
        assert len(ran) == 2
        await it.writes.flushed()
        assert ran[2] == "third" and len(it.storage.batches) == 1

    asyncio.run(scene())


def test_with_nothing_under_way_nobody_waits() -> None:
    async def scene() -> None:
        it = Scene()
        await it.writes.flushed()
        assert it.storage.batches == []

    asyncio.run(scene())


def test_a_store_that_refuses_fails_everyone_who_waits_and_is_told_once() -> None:
    async def scene() -> None:
        it = Scene()
        it.storage.failure = StorageError("disk full")
        ran: list[str] = []
        it.writes.put(Table.KV, b"a", b"1")
        it.writes.after_commit(lambda: ran.append("published"))
        first = asyncio.create_task(it.writes.flushed())
        while not it.storage.batches:
            await asyncio.sleep(0)
        it.writes.put(Table.KV, b"b", b"1")
        second = asyncio.create_task(it.writes.flushed())
        it.storage.gate.set()
        for waiting in (first, second):
            with pytest.raises(RpcError, match="disk full") as refused:
                await waiting
            assert refused.value.code is StatusCode.UNAVAILABLE
        with pytest.raises(RpcError):
            await it.writes.flushed()
        assert it.failures == [it.storage.failure]
        assert ran == [] and len(it.storage.batches) == 1

    asyncio.run(scene())


def test_one_who_stops_waiting_does_not_keep_others_from_being_answered() -> None:
    async def scene() -> None:
        it = Scene()
        it.writes.put(Table.KV, b"a", b"1")
        leaver, stayer = (asyncio.create_task(it.writes.flushed()) for _ in range(2))
        while not it.storage.batches:
            await asyncio.sleep(0)
        leaver.cancel()
        it.storage.gate.set()
        await stayer
        assert leaver.cancelled()

    asyncio.run(scene())


def test_where_the_store_may_have_another_head_it_is_asked_once_for_all_who_are_answered() -> None:
    async def scene() -> None:
        it = Scene()
        it.storage.is_latest = False
        ran: list[str] = []
        answers = [asyncio.create_task(wait()) for wait in [it.writes.flushed, it.writes.confirmed] * 3]
        it.writes.after_commit(lambda: ran.append("told"))
        await settle()
        assert not any(answer.done() for answer in answers) and ran == []
        it.storage.gate.set()
        await asyncio.gather(*answers)
        assert it.storage.batches == [[]] and ran == ["told"]
        it.storage.is_latest = True
        await it.writes.flushed()
        await it.writes.confirmed()
        assert it.storage.batches == [[]]
        await it.writes.confirm()
        assert it.storage.batches == [[], []]

    asyncio.run(scene())


def test_what_waits_for_no_write_waits_for_none_where_this_head_is_the_latest() -> None:
    async def scene() -> None:
        it = Scene()
        it.writes.put(Table.KV, b"a", b"1")
        await asyncio.wait_for(it.writes.confirmed(), 1)
        it.storage.gate.set()
        await it.writes.flushed()

    asyncio.run(scene())


def test_a_head_that_was_replaced_answers_nobody_from_then_on() -> None:
    async def scene() -> None:
        it = Scene()
        it.storage.is_latest = False
        it.storage.failure = DeposedError("head 2 took over")
        it.storage.gate.set()
        ran: list[str] = []
        it.writes.after_commit(lambda: ran.append("told"))
        for wait in (it.writes.confirmed, it.writes.flushed, it.writes.confirm):
            with pytest.raises(RpcError, match="head 2 took over") as refused:
                await wait()
            assert refused.value.code is StatusCode.UNAVAILABLE
        assert it.failures == [it.storage.failure] and ran == []

    asyncio.run(scene())


def test_where_there_is_no_room_a_write_waits_for_it_and_that_is_told_once() -> None:
    async def scene() -> None:
        storage, failures, told = GatedStorage(), [], []
        writes = WriteThrough(storage, failures.append, Room(60, told.append))
        storage.gate.set()
        storage.failure = StorageFullError("the disk is full")
        writes.put(Table.KV, b"a", b"1")
        answered = asyncio.create_task(writes.flushed())
        while len(storage.batches) < 3:
            await asyncio.sleep(0.01)
        assert not answered.done() and told == ["the disk is full"] and not failures
        storage.failure = None
        await answered
        assert await storage.load_all(Table.KV) == {b"a": b"1"}
        # The end does not wait for room.
        storage.failure = StorageFullError("the disk is full")
        writes.put(Table.KV, b"b", b"1")
        await asyncio.wait_for(writes.close(), 30)
        assert not failures

    asyncio.run(scene())
