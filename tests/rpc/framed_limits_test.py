"""The framed transport at its limits:
peers that do not read, messages that are too large, streams that are none of ours.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from ray_mono.protobuf import gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub, gcs_service_handlers
from ray_mono.rpc import framed, framed_channel, framed_connection, framing
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import CallContext, StatusCode
from tests.rpc.quiet import WAIT_S, run_quietly
from tests.rpc.toy_servicer import ToyServicer, error_of, get, put, start, subscribe


def test_a_client_that_does_not_read_is_not_read_from_and_memory_stays_bounded(directory: Path) -> None:
    async def scene() -> None:
        servicer = ToyServicer()
        listener = await FramedTransport("").serve(f"unix:{directory}/s", gcs_service_handlers(servicer))
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, str(directory / "s"))
            payload = get(bytes(256 << 10)).SerializeToString()
            await loop.sock_sendall(
                sock, framing.encode(framing.METHOD, 0, 0, b"/ray_mono.rpc.GcsService/KvGet")
            )
            frame = framing.encode(framing.REQUEST, 0, 1, payload)
            sender = asyncio.ensure_future(loop.sock_sendall(sock, frame * 200))
            [connection] = await _connections(listener)
            while not connection.is_write_paused:
                await asyncio.sleep(0)
            for _ in range(100):
                await asyncio.sleep(0)
            assert not sender.done() and len(servicer.notes) < 100
            assert connection.unsent_bytes() < framed_connection.WRITE_HIGH_BYTES + 2 * len(frame)
            # It reads on: everything is answered.
            received, expected = (
                0,
                200
                * len(
                    framing.encode(
                        framing.REPLY, 0, 1, gcs_pb2.KvGetReply(value=bytes(256 << 10)).SerializeToString()
                    )
                ),
            )
            while received < expected:
                received += len(await loop.sock_recv(sock, 1 << 20))
            await sender
            assert received == expected
        await listener.close()

    run_quietly(scene())


async def _connections(listener: framed.FramedListener) -> list[Any]:
    while not listener._connections:
        await asyncio.sleep(0)
    return list(listener._connections)


def test_a_stream_waits_for_its_client(directory: Path) -> None:
    async def scene() -> None:
        listener = await FramedTransport("").serve(f"unix:{directory}/s", gcs_service_handlers(ToyServicer()))
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, str(directory / "s"))
            request = subscribe("1000000000").SerializeToString()
            await loop.sock_sendall(
                sock, framing.encode(framing.METHOD, 0, 0, b"/ray_mono.rpc.GcsService/Subscribe")
            )
            await loop.sock_sendall(sock, framing.encode(framing.REQUEST, 0, 1, request))
            [connection] = await _connections(listener)
            while not connection.is_write_paused:
                await asyncio.sleep(0)
            unsent_bytes = connection.unsent_bytes()
            assert unsent_bytes < 2 * framed_connection.WRITE_HIGH_BYTES
            # It never reads, and the stream could go on: not one more item.
            for _ in range(200):
                await asyncio.sleep(0)
            assert connection.unsent_bytes() == unsent_bytes
        await listener.close()

    run_quietly(scene())


def test_a_stream_whose_reader_falls_behind_fails_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framed_channel, "STREAM_ITEMS_MAX", 10)

    async def scene() -> None:
        servicer, _, _, stub, close = await start(FramedTransport(""), f"unix:{directory}/s")
        stream = stub.Subscribe(subscribe("1000 wait"))
        await servicer.until_noted("stream ended")
        error = await error_of(anext(stream))
        assert error.code is StatusCode.RESOURCE_EXHAUSTED and "fell behind" in error.message
        assert (await stub.KvGet(get(b"on"))).value == b"on"
        await close()

    run_quietly(scene())


def test_letting_go_of_a_stream_ends_it_at_the_server(directory: Path) -> None:
    async def scene() -> None:
        servicer, _, _, stub, close = await start(FramedTransport(""), f"unix:{directory}/s")
        async for _ in stub.Subscribe(subscribe("1 wait")):
            break
        await servicer.until_noted("stream ended")
        await close()

    run_quietly(scene())


def test_a_peer_that_never_reads_makes_calls_fail_and_one_way_messages_end_the_connection(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framed_channel, "UNSENT_BYTES_MAX", 6 << 20)

    async def scene() -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(f"{directory}/s")
            silent.listen()
            channel = await FramedTransport("").connect(f"unix:{directory}/s", WAIT_S)
            stub = GcsServiceAsyncStub(channel)
            large = get(bytes(5 << 20))
            first = asyncio.ensure_future(stub.KvGet(large))
            error = await error_of(stub.KvGet(large))
            assert error.code is StatusCode.RESOURCE_EXHAUSTED and "does not read" in error.message
            assert not channel.is_closed
            stub.KvGet.notify(large)
            assert channel.is_closed
            assert (await error_of(first)).code is StatusCode.UNAVAILABLE

    run_quietly(scene())


def test_messages_above_the_frame_limit_fail_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "PAYLOAD_BYTES_MAX", 1000)

    class LargeAnswers(ToyServicer):
        async def KvGet(self, request: gcs_pb2.KvGetRequest, context: CallContext) -> gcs_pb2.KvGetReply:
            return gcs_pb2.KvGetReply(value=bytes(2000 if request.key == b"large" else 1))

    async def scene() -> None:
        listener = await FramedTransport("").serve(
            f"unix:{directory}/s", gcs_service_handlers(LargeAnswers())
        )
        channel = await FramedTransport("").connect(listener.address, WAIT_S)
        stub = GcsServiceAsyncStub(channel)
        for key in (bytes(2000), b"large"):
            error = await error_of(stub.KvGet(get(key)))
            assert error.code is StatusCode.RESOURCE_EXHAUSTED and "at most 1000" in error.message
        assert len((await stub.KvGet(get(b"small"))).value) == 1
        channel.close()
        await listener.close()

    run_quietly(scene())


# ---- protocol errors


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<IBHI", (512 << 20) + 1, framing.REQUEST, 0, 1),
        framing.encode(framing.REQUEST, 7, 1, b""),
        framing.encode(framing.REPLY, 0, 1, b""),
        framing.encode(framing.METHOD, 0, 0, b"\xff"),
        framing.encode(framing.METHOD, 0, 0, b"a") * 2,
    ],
)
def test_a_stream_that_is_not_ours_ends_only_its_own_connection(directory: Path, garbage: bytes) -> None:
    async def scene() -> None:
        _, _, _, stub, close = await start(FramedTransport(""), f"unix:{directory}/s")
        reader, writer = await asyncio.open_unix_connection(f"{directory}/s")
        writer.write(garbage)
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        writer.close()
        assert (await stub.KvGet(get(b"on"))).value == b"on"
        await close()

    run_quietly(scene())


def test_a_call_cancelled_in_the_same_breath_never_answers(directory: Path) -> None:
    async def scene() -> None:
        servicer, _, _, stub, close = await start(FramedTransport(""), f"unix:{directory}/s")
        calls = [asyncio.ensure_future(stub.KvPut(put())) for _ in range(3)]
        calls[1].cancel()
        await stub.KvGet(get(b"x"))
        await servicer.until_noted("put cancelled")
        servicer.gate.set()
        await asyncio.gather(calls[0], calls[2])
        assert servicer.notes.count("put cancelled") == 1
        await close()

    run_quietly(scene())
