"""An object's bytes, received in a thread: whole, or with the reason why not, and never a byte too late."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ray_mono.object_manager.bulk_receive import BulkReceive
from ray_mono.object_manager.transfer_wire import WireError
from tests.no_threads import no_threads

MIB = 1 << 20
DATA = random.Random(1).randbytes(2 * MIB + 77)
TIMEOUT_S = 30.0

Scene = Callable[[socket.socket, socket.socket], Coroutine[Any, Any, None]]


def run(scene: Scene) -> None:
    async def bounded() -> None:
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            there.setblocking(False)
            async with asyncio.timeout(TIMEOUT_S):
                await scene(here, there)

    asyncio.run(bounded())


def unheard(count: int) -> None:
    pass


def unprepared(start: int, count: int) -> None:
    pass


def test_memory_is_filled_over_prepared_ranges_and_the_socket_is_as_before() -> None:
    async def scene(here: socket.socket, there: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        memory = memoryview(bytearray(len(DATA)))
        prepared: list[tuple[int, int]] = []
        arrived: list[int] = []
        reception = BulkReceive(
            here, memory, TIMEOUT_S, lambda start, count: prepared.append((start, count)), arrived.append
        )
        await loop.sock_sendall(there, DATA + b"the next answer")
        await reception
        assert memory == DATA and reception.received_bytes == sum(arrived) == len(DATA)
        assert sum(count for _, count in prepared) == len(DATA)
        assert [start for start, _ in prepared] == list(range(0, len(DATA), prepared[0][1]))
        assert await loop.sock_recv(here, 100) == b"the next answer"

    run(scene)


def test_the_end_of_the_connection_is_told_by_what_came() -> None:
    async def scene(here: socket.socket, there: socket.socket) -> None:
        memory = memoryview(bytearray(len(DATA)))
        reception = BulkReceive(here, memory, TIMEOUT_S, unprepared, unheard)
        await asyncio.get_running_loop().sock_sendall(there, DATA[:MIB])
        there.close()
        await reception
        assert reception.received_bytes == MIB and memory[:MIB] == DATA[:MIB]

    run(scene)


def test_a_peer_that_falls_silent_is_given_up() -> None:
    async def scene(here: socket.socket, there: socket.socket) -> None:
        reception = BulkReceive(here, memoryview(bytearray(len(DATA))), 0.01, unprepared, unheard)
        await asyncio.get_running_loop().sock_sendall(there, DATA[:1000])
        with pytest.raises(WireError, match=r"nothing came from the peer for 0\.01 s"):
            await reception
        assert reception.received_bytes == 1000

    run(scene)


def test_what_fails_in_the_thread_fails_for_who_awaits_it() -> None:
    def fail(start: int, count: int) -> None:
        raise ZeroDivisionError

    async def scene(here: socket.socket, there: socket.socket) -> None:
        with pytest.raises(ZeroDivisionError):
            await BulkReceive(here, memoryview(bytearray(10)), TIMEOUT_S, fail, unheard)

    run(scene)


def test_after_a_cancel_not_a_byte_is_written() -> None:
    async def scene(here: socket.socket, there: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        memory = memoryview(bytearray(len(DATA)))
        receptions: list[BulkReceive] = []

        async def receive() -> None:
            receptions.append(BulkReceive(here, memory, TIMEOUT_S, unprepared, unheard))
            await receptions[0]

        task = loop.create_task(receive())
        await loop.sock_sendall(there, DATA[:MIB])
        task.cancel()
        # From this very moment on the memory is somebody else's.
        memory[:] = bytes(len(DATA))
        with pytest.raises(OSError):
            await loop.sock_sendall(there, DATA[MIB:])
        with pytest.raises(asyncio.CancelledError):
            await task
        assert receptions[0].cancelled() and memory == bytes(len(DATA))

    run(scene)


def test_where_no_thread_may_be_made_the_socket_is_as_before() -> None:
    async def scene(here: socket.socket, there: socket.socket) -> None:
        with no_threads(), pytest.raises(OSError, match="can't start new thread"):
            BulkReceive(here, memoryview(bytearray(9)), TIMEOUT_S, unprepared, unheard)
        assert not here.getblocking()

    run(scene)
