"""A large object that several nodes hold comes from all of them at once."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.object_manager.harness import (
    TIMEOUT_S,
    Client,
    SmallGcs,
    StoreProcess,
    connect,
    node,
    object_id,
    run,
    small_gcs,
)
from tests.object_manager.proxy import Proxy, asked_first

MIB = 1 << 20
DATA = random.Random(1).randbytes(48 * MIB)
SMALL = random.Random(2).randbytes(3 * MIB)


@dataclass
class Scene:
    """Three nodes that hold "a", and one that reads it by ranges of 1 MiB."""

    gcs: SmallGcs
    holders: list[StoreProcess]
    writers: list[Client]
    near: StoreProcess
    reader: Client

    async def sent_bytes(self) -> list[int]:
        return [(await each.stats()).stream_sent_bytes for each in self.writers]

    async def read(self, *holders: StoreProcess | Proxy) -> None:
        """From these, which sent the right bytes once."""
        locations = tuple(each.node_id for each in holders)
        assert await self.reader.read("a", locations=locations) == DATA
        assert (await self.reader.stats()).stream_received_bytes == len(DATA)


@asynccontextmanager
async def scene(base: Path, num_holders: int = 3, **config: float) -> AsyncIterator[Scene]:
    settings = {"range_bytes": MIB, "slow_range_s": 0.3, "idle_transfer_timeout_s": TIMEOUT_S, **config}
    async with contextlib.AsyncExitStack() as stack:
        gcs = await stack.enter_async_context(small_gcs(base))
        holders = [
            await stack.enter_async_context(node(gcs, base, f"far{number}", 64 * MIB))
            for number in range(num_holders)
        ]
        near = await stack.enter_async_context(node(gcs, base, "near", 64 * MIB, **settings))
        writers = [await stack.enter_async_context(connect(each)) for each in holders]
        for writer in writers:
            await writer.put("a", DATA)
            await writer.put("small", SMALL)
        yield Scene(gcs, holders, writers, near, await stack.enter_async_context(connect(near)))


def test_each_of_several_holders_sends_a_share_and_no_byte_comes_twice(session_base: Path) -> None:
    async def play() -> None:
        async with scene(session_base) as s:
            await s.read(*s.holders)
            sent_bytes = await s.sent_bytes()
            assert all(sent_bytes) and sum(sent_bytes) == len(DATA)

    run(play())


def test_a_holder_that_has_it_no_more_is_no_harm(session_base: Path) -> None:
    async def play() -> None:
        async with scene(session_base) as s:
            for writer in s.writers[1:]:
                await writer.free("a")
            await s.read(*s.holders)

    run(play())


def test_an_object_that_is_soon_over_comes_from_one_holder(session_base: Path) -> None:
    async def play() -> None:
        async with scene(session_base, range_bytes=2 * MIB) as s:
            locations = tuple(each.node_id for each in s.holders)
            assert await s.reader.read("small", locations=locations) == SMALL
            assert sorted(await s.sent_bytes()) == [0, 0, len(SMALL)]

    run(play())


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("hangs_up", [True, False])
def test_the_others_bring_what_a_holder_does_not_that_dies_or_falls_silent(
    session_base: Path, hangs_up: bool, is_first: bool
) -> None:
    async def play() -> None:
        async with scene(session_base, num_holders=2) as s:
            first, other = s.holders
            order = asked_first(s.near.node_id, object_id("a"), other.node_id, is_first)
            proxy = Proxy(first, 3 * MIB + 1000, hangs_up, order)
            async with proxy.running(s.gcs):
                await s.read(proxy, other)
            assert proxy.passed_bytes > 1000

    run(play())


def test_two_holders_of_which_each_breaks_off_again_and_again_give_it_in_the_end(session_base: Path) -> None:
    async def play() -> None:
        async with scene(session_base, num_holders=2) as s:
            async with contextlib.AsyncExitStack() as stack:
                proxies = [
                    Proxy(
                        holder, 5 * MIB, hangs_up=True, node_id=f"proxy{number}".encode().ljust(28), times=3
                    )
                    for number, holder in enumerate(s.holders)
                ]
                for proxy in proxies:
                    await stack.enter_async_context(proxy.running(s.gcs))
                await s.read(*proxies)

    run(play())


def test_nothing_is_left_of_a_read_that_is_given_up_in_the_middle(session_base: Path) -> None:
    async def play() -> None:
        async with scene(session_base, num_holders=2, slow_range_s=TIMEOUT_S) as s:
            proxies = [
                Proxy(holder, 5 * MIB, hangs_up=False, node_id=f"proxy{number}".encode().ljust(28))
                for number, holder in enumerate(s.holders)
            ]
            async with proxies[0].running(s.gcs), proxies[1].running(s.gcs):
                locations = tuple(each.node_id for each in proxies)
                get = asyncio.ensure_future(s.reader.find("a", locations=locations))
                await asyncio.wait(
                    [asyncio.ensure_future(each.spent.wait()) for each in proxies],
                    return_when=asyncio.ALL_COMPLETED,
                )
                await s.reader.free("a")
                await get
                stats = await s.reader.stats()
                assert (stats.num_pulls_active, stats.num_unsealed, stats.used_bytes) == (0, 0, 0)

    run(play())
