"""Copies between nodes: real object managers, real streams, and a GCS that tells them of each other."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.pulls import spread
from ray_mono.protobuf import common_pb2, object_manager_pb2
from ray_mono.rpc.auth import ClientHandshake
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.object_manager.harness import (
    FOUND,
    LOST,
    SECRET,
    TIMEOUT_S,
    Client,
    SmallGcs,
    StoreProcess,
    connect,
    node,
    noise,
    object_id,
    run,
    small_gcs,
    start,
)
from tests.object_manager.proxy import Proxy, asked_first

MIB = 1 << 20
CHUNK_BYTES = 8 * MIB
"""What may be in sockets when a connection breaks."""


@dataclass
class Scene:
    """Two nodes, and a client on each."""

    gcs: SmallGcs
    far: StoreProcess
    near: StoreProcess
    writer: Client
    reader: Client


@asynccontextmanager
async def two_nodes(base: Path, far_bytes: int, near_bytes: int, **config: float) -> AsyncIterator[Scene]:
    """With stores of these sizes. config: of the near one."""
    async with (
        small_gcs(base) as gcs,
        node(gcs, base, "far", far_bytes) as far,
        node(gcs, base, "near", near_bytes, **config) as near,
        connect(far) as writer,
        connect(near) as reader,
    ):
        yield Scene(gcs, far, near, writer, reader)


def test_an_object_is_copied_in_equal_bytes_once_and_without_the_others_file(session_base: Path) -> None:
    data = noise(50 * MIB)

    async def scene() -> None:
        async with two_nodes(session_base, 128 * MIB, 128 * MIB) as s, connect(s.near) as other:
            await s.writer.put("a", data, metadata=b"pickle")
            s.far.store_file.unlink()
            gets = [client.find("a", locations=(s.far.node_id,)) for client in (s.reader, other, s.reader)]
            answers = [found for (found,) in await asyncio.gather(*gets)]
            assert all(
                (found.state, found.metadata, found.pulled) == (FOUND, b"pickle", True) for found in answers
            )
            assert {found.offset for found in answers} == {answers[0].offset}
            copy = s.reader.map[answers[0].offset : answers[0].offset + answers[0].size_bytes]
            assert hashlib.sha256(copy).digest() == hashlib.sha256(data).digest()
            here, there = await s.reader.stats(), await s.writer.stats()
            assert (here.stream_received_bytes, here.stream_sent_bytes) == (len(data), 0)
            assert (there.stream_received_bytes, there.stream_sent_bytes) == (0, len(data))
            assert here.num_pins == 3 and there.num_pins == 0
            # A later Get finds it here, and says so.
            (found,) = await other.find("a", locations=(s.far.node_id,))
            assert not found.pulled
            mapped = psutil.Process(s.near.process.pid).memory_maps()
            assert not [file.path for file in mapped if file.path.startswith(str(s.far.store_file))]

    run(scene())


def test_objects_of_all_sizes_arrive(session_base: Path) -> None:
    sizes = {"empty": 0, "tiny": 1, "odd": 100_003, "slice": 4 * MIB, "more": 9 * MIB + 7}

    async def scene() -> None:
        async with two_nodes(session_base, 64 * MIB, 64 * MIB, backing_ahead_bytes=0) as s:
            for name, size_bytes in sizes.items():
                await s.writer.put(name, noise(size_bytes))
            found = await s.reader.find(*sizes, locations=(s.far.node_id,))
            for item, size_bytes in zip(found, sizes.values(), strict=True):
                assert s.reader.map[item.offset : item.offset + item.size_bytes] == noise(size_bytes)

    run(scene())


def test_when_a_holder_has_it_not_the_next_is_asked_and_when_none_has_it_is_lost(session_base: Path) -> None:
    async def scene() -> None:
        async with (
            small_gcs(session_base) as gcs,
            node(gcs, session_base, "far", MIB) as far,
            node(gcs, session_base, "farther", MIB) as farther,
            node(gcs, session_base, "near", MIB, unknown_node_timeout_s=0.05) as near,
            connect(farther) as writer,
            connect(near) as reader,
        ):
            await writer.put("a", b"hello")
            unknown, dead = b"u" * 28, b"d" * 28
            gcs.tell_node(
                common_pb2.NodeInfo(
                    node_id=dead,
                    state=common_pb2.NODE_DEAD,
                    death_cause=common_pb2.DeathCause(message="the power failed"),
                )
            )
            assert await reader.read("a", locations=(unknown, dead, far.node_id, farther.node_id)) == b"hello"
            (found,) = await reader.find("b", locations=(dead, far.node_id))
            assert found.state == LOST
            assert "the node is dead (the power failed)" in found.reason
            assert f"node {far.node_id.hex()}: it holds no copy" in found.reason

    run(scene())


@pytest.mark.parametrize("hangs_up", [True, False])
def test_when_a_holder_breaks_off_or_falls_silent_the_next_one_continues_there(
    session_base: Path, hangs_up: bool
) -> None:
    data = noise(8 * MIB)

    async def scene() -> None:
        async with two_nodes(
            session_base, 16 * MIB, 16 * MIB, idle_transfer_timeout_s=TIMEOUT_S if hangs_up else 1.0
        ) as s:
            await s.writer.put("a", data)
            proxy = Proxy(
                s.far, 3 * MIB, hangs_up, asked_first(s.near.node_id, object_id("a"), s.far.node_id)
            )
            async with proxy.running(s.gcs):
                assert await s.reader.read("a", locations=(proxy.node_id, s.far.node_id)) == data
            assert (await s.reader.stats()).stream_received_bytes == len(data)

    run(scene())


def test_a_large_copy_whose_only_holder_resets_the_connection_goes_on_at_the_byte(
    session_base: Path,
) -> None:
    data = noise(200 * MIB)

    async def scene() -> None:
        async with two_nodes(session_base, 256 * MIB, 256 * MIB) as s:
            await s.writer.put("a", data)
            proxy = Proxy(s.far, 90 * MIB, hangs_up=True, times=2)
            async with proxy.running(s.gcs):
                assert await s.reader.read("a", locations=(proxy.node_id,)) == data
            received_bytes = (await s.reader.stats()).stream_received_bytes
            assert received_bytes == len(data)
            # Twice 90 MiB came, and the rest; of what was under way at each break a chunk may be lost.
            assert proxy.num_connections == 3
            assert proxy.passed_bytes <= len(data) + 2 * CHUNK_BYTES

    run(scene())


def test_a_holder_that_is_stopped_is_left_for_another_within_twice_the_idle_time(session_base: Path) -> None:
    data = noise(8 * MIB)

    async def scene() -> None:
        async with two_nodes(session_base, 16 * MIB, 16 * MIB, idle_transfer_timeout_s=0.5) as s:
            stopped = await asyncio.to_thread(
                StoreProcess,
                session_base,
                "stopped",
                16 * MIB,
                f"--gcs-address=unix:{session_base}/gcs.sock",
            )
            with stopped:
                for number in range(100):  # a name that is asked for there first
                    name = f"a{number}"
                    holders = [NodeKey(s.far.node_id), NodeKey(stopped.node_id)]
                    first = spread(NodeKey(s.near.node_id), ObjectKey(object_id(name)), holders)[0]
                    if first == stopped.node_id:
                        break
                s.gcs.add_node(stopped)
                await s.writer.put(name, data)
                os.kill(stopped.process.pid, signal.SIGSTOP)
                try:
                    locations = (stopped.node_id, s.far.node_id)
                    assert await s.reader.read(name, locations=locations) == data
                finally:
                    os.kill(stopped.process.pid, signal.SIGCONT)

    run(scene())


def test_an_object_that_is_freed_on_its_way_leaves_nothing(session_base: Path) -> None:
    async def scene() -> None:
        async with two_nodes(session_base, 16 * MIB, 16 * MIB) as s:
            await s.writer.put("a", noise(8 * MIB))
            proxy = Proxy(s.far, 3 * MIB, hangs_up=False)
            async with proxy.running(s.gcs):
                get = await start(s.reader, s.reader.find("a", locations=(proxy.node_id,)))
                await proxy.spent.wait()
                before = await s.reader.stats()
                assert (before.num_pulls_active, before.num_unsealed, before.used_bytes) == (1, 1, 8 * MIB)
                await s.reader.free("a")
                (found,) = await get
                assert found.state == LOST and "its owner freed it" in found.reason
                after = await s.reader.stats()
                assert (after.num_pulls_active, after.num_unsealed, after.used_bytes) == (0, 0, 0)

    run(scene())


def test_a_holder_that_is_killed_is_lost_in_words(session_base: Path) -> None:
    async def scene() -> None:
        async with two_nodes(session_base, MIB, MIB) as s:
            for name in ("a", "b"):
                await s.writer.put(name, b"hello")
            await s.reader.read(
                "a", locations=(s.far.node_id,)
            )  # now there is a connection that will turn out dead
            s.far.process.kill()
            await asyncio.to_thread(s.far.process.wait)
            (found,) = await s.reader.find("b", locations=(s.far.node_id,))
            assert found.state == LOST
            assert s.far.node_id.hex() in found.reason and "Connection refused" in found.reason

    run(scene())


def test_a_pull_waits_for_memory_and_is_taken_up_when_there_is_some(session_base: Path) -> None:
    async def scene() -> None:
        async with two_nodes(session_base, 16 * MIB, 4 * MIB) as s, connect(s.near) as other:
            await s.writer.put("a", noise(3 * MIB))
            await s.writer.put("b", noise(2 * MIB))
            await s.reader.read("a", locations=(s.far.node_id,))
            waiting = await start(s.reader, s.reader.read("b", locations=(s.far.node_id,)))
            # What is not pulled goes past, and the pull still waits.
            await other.put("c", b"1")
            assert await other.read("c") == b"1" and not waiting.done()
            await s.reader.release("a")
            assert await waiting == noise(2 * MIB)
            stats = await s.reader.stats()
            assert (stats.num_evicted, stats.stream_received_bytes) == (1, 5 * MIB)

    run(scene())


def test_what_finds_no_room_in_time_or_never_can_fails_with_the_sizes(session_base: Path) -> None:
    async def scene() -> None:
        async with two_nodes(session_base, 16 * MIB, 4 * MIB, pull_memory_timeout_s=0.05) as s:
            await s.reader.put("own", bytes(3 * MIB))
            await s.writer.put("a", noise(2 * MIB))
            await s.writer.put("b", noise(5 * MIB))
            for name, message in (
                ("a", f"of {2 * MIB} bytes lies on node {s.far.node_id.hex()}"),
                ("b", "more than the store can hold"),
            ):
                with pytest.raises(RpcError, match=f"{message}.*capacity {4 * MIB} bytes") as failure:
                    await s.reader.find("own", name, locations=(s.far.node_id,))
                assert failure.value.code is StatusCode.RESOURCE_EXHAUSTED
            stats = await s.reader.stats()
            assert (stats.num_pins, stats.num_unsealed, stats.num_pulls_active) == (0, 0, 0)

    run(scene())


def test_freeing_an_object_frees_its_copies_on_the_nodes_named(session_base: Path) -> None:
    async def scene() -> None:
        async with two_nodes(session_base, MIB, MIB) as s:
            await s.writer.put("a", b"hello")
            assert await s.reader.read("a", locations=(s.far.node_id,)) == b"hello"
            await s.reader.release("a")
            # A Get that waits there is told that the object is freed.
            pending = await start(s.reader, s.reader.find("never"))
            await s.writer.free("a", "never", locations=(s.far.node_id, s.near.node_id))
            (never,) = await pending
            assert never.state == LOST and "its owner freed it" in never.reason
            assert await s.writer.contains("a") == await s.reader.contains("a") == [False]

    run(scene())


def test_what_a_dead_worker_owned_is_freed_on_every_node(session_base: Path) -> None:
    async def scene() -> None:
        async with (
            small_gcs(session_base) as gcs,
            node(gcs, session_base, "far", MIB) as far,
            connect(far, "anna") as anna,
            connect(far, "bert") as bert,
        ):
            await anna.put("a", b"1" * (MIB - 64))
            waiting = await start(bert, bert.create("b", MIB))
            assert (await bert.stats()).num_waiting_creates == 1
            gcs.tell_worker_death("anna")
            await waiting

    run(scene())


def test_deaths_that_were_told_while_the_gcs_was_away_are_found_out(session_base: Path) -> None:
    async def scene() -> None:
        async with contextlib.AsyncExitStack() as first:
            gcs = await first.enter_async_context(small_gcs(session_base))
            async with (
                node(gcs, session_base, "far", MIB, create_timeout_s=TIMEOUT_S) as far,
                connect(far, "anna") as anna,
            ):
                await anna.put("a", b"1" * (MIB - 64))
                waiting = await start(anna, anna.create("b", MIB))
                await first.aclose()
                # The next one's table says that Anna died, and no message will.
                async with small_gcs(session_base) as gcs:
                    gcs.tell_worker_death("anna")
                    await waiting

    run(scene())


def test_the_object_manager_ends_with_its_raylet(session_base: Path) -> None:
    async def scene() -> None:
        async with small_gcs(session_base) as gcs, node(gcs, session_base, "far", MIB) as far:
            async with connect(far, is_raylet=True):
                pass
            assert await asyncio.to_thread(far.process.wait, TIMEOUT_S) == 0
            assert not far.store_file.exists()

    run(scene())


@pytest.mark.parametrize("secret", ["wrong", ""])
def test_nobody_fetches_without_the_secret(session_base: Path, secret: str) -> None:
    request = object_manager_pb2.FetchRequest(object_id=object_id("a"))
    message = object_manager_pb2.TransferRequest(fetch=request).SerializeToString()

    def knock(port: int) -> bytes:
        handshake = ClientHandshake(secret, port)
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as sock:
            sock.sendall(handshake.start())
            answer = sock.recv(1000)
            # Goes on as if it had been let in.
            sock.sendall(bytes(32) + len(message).to_bytes(4, "little") + message)
            with contextlib.suppress(ConnectionError):
                while data := sock.recv(65536):
                    answer += data
        return answer

    async def scene() -> None:
        async with (
            small_gcs(session_base) as gcs,
            node(gcs, session_base, "far", MIB) as far,
            connect(far) as writer,
        ):
            await writer.put("a", b"treasure" * 100)
            assert b"treasure" not in await asyncio.to_thread(knock, far.port)
            assert (await writer.stats()).stream_sent_bytes == 0

    run(scene())


def test_a_node_with_another_secret_is_told_what_to_do(session_base: Path) -> None:
    async def scene() -> None:
        async with (
            small_gcs(session_base) as gcs,
            node(gcs, session_base, "near", MIB) as near,
            connect(near) as reader,
        ):
            far = await asyncio.to_thread(
                StoreProcess,
                session_base,
                "far",
                MIB,
                f"--gcs-address=unix:{session_base}/gcs.sock",
                secret=SECRET + "!",
            )
            with far:
                gcs.add_node(far)
                (found,) = await reader.find("a", locations=(far.node_id,))
                assert found.state == LOST
                assert "another secret" in found.reason and "--redis-password" in found.reason

    run(scene())
