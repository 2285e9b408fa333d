"""The store as a process, with real clients over its Unix socket and its mapped file."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_mono.protobuf import common_pb2, object_manager_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.object_manager.harness import (
    FOUND,
    LOST,
    NOT_HERE,
    TIMEOUT_S,
    StoreProcess,
    connect,
    environment,
    object_id,
    start,
    worker_id,
)

MIB = 1 << 20


def run(scene: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await scene

    asyncio.run(bounded())


def test_an_object_travels_from_one_client_to_another_in_place(session_base: Path) -> None:
    async def scene() -> None:
        async with connect(store) as writer, connect(store) as reader:
            await writer.put("a", b"hello", metadata=b"pickle")
            (found,) = await reader.find("a")
            assert (found.state, found.metadata, found.pulled) == (FOUND, b"pickle", False)
            assert reader.map[found.offset : found.offset + found.size_bytes] == b"hello"
            assert await reader.contains("a", "b") == [True, False]

    with StoreProcess(session_base, "s", MIB) as store:
        run(scene())


def test_a_get_waits_for_a_seal_and_answers_at_its_timeout_with_what_is_here(session_base: Path) -> None:
    async def scene() -> None:
        async with connect(store) as writer, connect(store) as reader:
            await writer.put("a", b"1")
            first = await reader.find("a", "b", timeout_ms=1)
            assert [found.state for found in first] == [FOUND, NOT_HERE]
            waiting = await start(reader, reader.find("a", "b"))
            await writer.put("b", b"2")
            assert [found.state for found in await waiting] == [FOUND, FOUND]
            lost = await reader.find("c", locations=(store.node_id,))
            assert lost[0].state == LOST

    with StoreProcess(session_base, "s", MIB) as store:
        run(scene())


def test_a_full_store_makes_a_create_wait_and_then_fail_with_the_sizes(session_base: Path) -> None:
    async def scene() -> None:
        async with connect(store) as client:
            await client.put("a", bytes(3 * MIB))
            assert await client.read("a") == bytes(3 * MIB)
            for _ in range(3):
                with pytest.raises(RpcError) as failure:
                    await client.create("b", 2 * MIB)
                assert failure.value.code is StatusCode.RESOURCE_EXHAUSTED
                assert f"wanted {2 * MIB} bytes" in failure.value.message
                assert f"capacity {4 * MIB} bytes, used {3 * MIB}" in failure.value.message
                assert f"pinned by readers {3 * MIB}" in failure.value.message
            with pytest.raises(RpcError, match="more than the store can hold"):
                await client.create("b", 5 * MIB)

    with StoreProcess(session_base, "s", 4 * MIB, create_timeout_s=0.05) as store:
        run(scene())


def test_a_waiting_create_gets_the_memory_that_the_last_reader_lets_go(session_base: Path) -> None:
    async def scene() -> None:
        async with connect(store) as owner, connect(store) as reader:
            await owner.put("a", b"x" * 3 * MIB)
            await reader.read("a")
            await owner.free("a")
            waiting = await start(owner, owner.create("b", 2 * MIB))
            assert (await reader.stats()).num_waiting_creates == 1
            assert not waiting.done()
            await reader.release("a")
            await waiting
            assert (await reader.stats()).used_bytes == 2 * MIB

    with StoreProcess(session_base, "s", 4 * MIB, create_timeout_s=TIMEOUT_S) as store:
        run(scene())


def test_a_client_that_gives_up_waiting_leaves_the_queue(session_base: Path) -> None:
    async def scene() -> None:
        async with connect(store) as client:
            await client.put("a", bytes(3 * MIB))
            request = object_manager_pb2.CreateRequest(object_id=object_id("b"), size_bytes=2 * MIB)
            with pytest.raises(RpcError) as failure:
                await client.stub.Create(request, timeout_s=0.05)
            assert failure.value.code is StatusCode.DEADLINE_EXCEEDED
            # Who stood behind it has its turn.
            await client.create("c", MIB)

    with StoreProcess(session_base, "s", 4 * MIB, create_timeout_s=TIMEOUT_S) as store:
        run(scene())


SMALL_SYSTEM = f"""
import errno, os
real_fallocate = os.posix_fallocate
def fallocate(fd, offset, length):
    if offset + length > {2 * MIB}:
        raise OSError(errno.ENOSPC, "No space left on device")
    real_fallocate(fd, offset, length)
os.posix_fallocate = fallocate
"""


def test_no_create_crashes_the_store_where_the_system_has_no_pages(session_base: Path) -> None:
    async def scene() -> None:
        async with connect(store) as client:
            await client.put("a", b"x" * MIB)
            with pytest.raises(RpcError, match=f"wanted {2 * MIB} bytes.*capacity {8 * MIB}"):
                await client.create("b", 2 * MIB)
            await client.free("a")
            await client.put("b", b"y" * 2 * MIB)
            assert await client.read("b") == b"y" * 2 * MIB

    settings = {"create_timeout_s": 0.05, "backing_step_bytes": MIB}
    with StoreProcess(session_base, "s", 8 * MIB, program=SMALL_SYSTEM, **settings) as store:
        run(scene())


def test_what_was_freed_makes_room_and_what_is_kept_does_not(session_base: Path) -> None:
    async def scene() -> None:
        async with connect(store) as client, connect(store) as reader:
            for name in "abc":
                await client.put(name, bytes(MIB))
            await reader.read("a")
            await client.free("b")
            await client.put("d", bytes(MIB))
            assert await client.contains("a", "b", "c", "d") == [True, False, True, True]

    with StoreProcess(session_base, "s", 3 * MIB, create_timeout_s=0) as store:
        run(scene())


KILLED_CLIENT = """
import asyncio, signal, sys
from tests.object_manager.harness import StoreProcess, connect
store = StoreProcess.__new__(StoreProcess)
store.socket = sys.argv[1]
async def main():
    async with connect(store) as client:
        await client.find("pinned")
        offset = await client.create("half", 4 << 20)
        client.map[offset : offset + (2 << 20)] = b"x" * (2 << 20)
        print("copying", flush=True)
        signal.pause()
asyncio.run(main())
"""


def test_a_client_that_is_killed_in_the_middle_of_a_copy_leaves_nothing(session_base: Path) -> None:
    async def scene() -> None:
        async with connect(store) as client:
            await client.put("pinned", bytes(MIB))
            victim = await asyncio.create_subprocess_exec(
                sys.executable, "-c", KILLED_CLIENT, store.socket, stdout=subprocess.PIPE, env=environment()
            )
            assert victim.stdout is not None
            assert await victim.stdout.readline() == b"copying\n"
            before = await client.stats()
            assert (before.used_bytes, before.num_unsealed, before.num_pins) == (5 * MIB, 1, 1)
            await client.free("pinned")
            waiting = await start(client, client.create("all", 8 * MIB))
            victim.send_signal(signal.SIGKILL)
            await victim.wait()
            await waiting  # there is room when, and only when, all that the victim had is gone
            after = await client.stats()
            assert (after.used_bytes, after.num_unsealed, after.num_pins) == (8 * MIB, 1, 0)

    with StoreProcess(session_base, "s", 8 * MIB, create_timeout_s=TIMEOUT_S) as store:
        run(scene())


def test_what_a_worker_owned_is_freed_with_it(session_base: Path) -> None:
    async def scene() -> None:
        async with connect(store, "anna") as anna, connect(store, "bert") as bert:
            await anna.put("a", b"1")
            await bert.put("b", b"2")
            await bert.stub.FreeOwnedBy(object_manager_pb2.FreeOwnedByRequest(worker_id=worker_id("anna")))
            assert await bert.contains("a", "b") == [False, True]

    with StoreProcess(session_base, "s", MIB) as store:
        run(scene())


def test_mistakes_are_answered_with_their_name(session_base: Path) -> None:
    async def scene() -> None:
        async with connect(store) as client:
            await client.put("a", b"1")
            with pytest.raises(RpcError) as refusal:
                await client.create("a", 1)
            assert refusal.value.code is StatusCode.ALREADY_EXISTS
            with pytest.raises(RpcError) as refusal:
                await client.seal("b")
            assert refusal.value.code is StatusCode.NOT_FOUND
            with pytest.raises(RpcError) as refusal:
                await client.stub.Create(object_manager_pb2.CreateRequest(object_id=b"short"))
            assert refusal.value.code is StatusCode.INVALID_ARGUMENT
            assert "an object id has 28 bytes, got 5" in refusal.value.message

    with StoreProcess(session_base, "s", MIB) as store:
        run(scene())


def test_its_state_can_be_read(session_base: Path) -> None:
    async def scene() -> None:
        async with connect(store) as client:
            await client.put("a", b"12345")
            state = json.loads((await client.stub.DumpState(common_pb2.Empty())).json)
            (row,) = state["objects"]
            assert (row["object_id"], row["size_bytes"], row["state"]) == (object_id("a").hex(), 5, "sealed")
            store.process.send_signal(signal.SIGUSR1)
            assert (await client.stats()).num_objects == 1

    with StoreProcess(session_base, "s", MIB) as store:
        run(scene())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--capacity-bytes=1000000000000000"], "does not fit into /dev/shm"),
        (["--node-id=abc"], "abc|non-hexadecimal"),
        (['--config={"creat_timeout_s": 1}'], "--config takes an object with some of .*create_timeout_s"),
        (['--config={"pulls_active_max": 0}'], "pulls_active_max must be at least 1, got 0"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(session_base: Path, flags: list[str], message: str) -> None:
    command = [sys.executable, "-m", "ray_mono.object_manager.object_manager", "--store-only"]
    command += [
        f"--store-socket={session_base}/s.sock",
        f"--store-file=/dev/shm/{session_base.name}-s",
        *flags,
    ]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode in (1, 2)
    assert re.search(message, result.stderr) and "Traceback" not in result.stderr
    assert not Path(f"/dev/shm/{session_base.name}-s").exists()


def test_the_service_loads_neither_numpy_nor_grpc(session_base: Path) -> None:
    with StoreProcess(session_base, "s", MIB) as store:
        mapped = {Path(file.path).name for file in psutil.Process(store.process.pid).memory_maps()}
        assert not [name for name in mapped if "numpy" in name or "openblas" in name or "cygrpc" in name]
