"""Strangers at a TCP port: they cost little, they go, and who knows the secret gets in beside them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import Mock

import grpc
import grpc.aio
import pytest

from ray_mono.common import limited_log
from ray_mono.protobuf import gcs_pb2_grpc
from ray_mono.protobuf.gcs_rpc import gcs_service_handlers
from ray_mono.rpc import auth, grpc_splice, strangers
from ray_mono.rpc.framed import FramedListener, FramedTransport
from ray_mono.rpc.http2_greeting import HTTP2_PREFACE, Http2Greeting
from ray_mono.rpc.strangers import ADDRESS_MAX, Stage
from ray_mono.rpc.tcp_door import REST_BYTES_MAX, TcpDoor
from tests.rpc.http2_calls import call
from tests.rpc.out_of_descriptors import OutOfDescriptors
from tests.rpc.quiet import WAIT_S, run_quietly
from tests.rpc.toy_servicer import ToyServicer, get
from tests.waiting import until

SECRET = "open sesame"
METADATA = (("authorization", f"Bearer {SECRET}"),)
SETTINGS = bytes.fromhex("000000040000000000")
HELLO = auth.MAGIC + bytes(auth.NONCE_SIZE)
# What strangers say, and how many of one address may stay with it.
KINDS = {
    "silent": (b"", ADDRESS_MAX[Stage.SILENT]),
    "half a preface": (HTTP2_PREFACE[:20], ADDRESS_MAX[Stage.SILENT]),
    "hello": (HELLO, ADDRESS_MAX[Stage.SHAKING]),
    "http2": (HTTP2_PREFACE + SETTINGS, ADDRESS_MAX[Stage.SHAKING]),
    "wrong secret": (HELLO + bytes(auth.PROOF_SIZE), ADDRESS_MAX[Stage.TOLD]),
}


@asynccontextmanager
async def serving() -> AsyncIterator[FramedListener]:
    listener = await FramedTransport(SECRET).serve("127.0.0.1:0", gcs_service_handlers(ToyServicer()))
    try:
        yield listener
    finally:
        await listener.close()


async def knock(listener: FramedListener, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*listener.address.split(":"))
    writer.write(data)
    return reader, writer


async def until_sent_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read()
    except ConnectionError:
        pass
    writer.close()


def strangers_of(listener: FramedListener) -> int:
    assert listener._door is not None
    return len(listener._door._strangers)


def end_their_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all strangers that there are: the loop's clock is moved on."""
    loop = asyncio.get_running_loop()
    time, stay_s = loop.time, strangers.STAY_S
    monkeypatch.setattr(loop, "time", lambda: time() + stay_s)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("kind", KINDS)
def test_few_strangers_stay_and_a_rightful_client_gets_in_beside_them(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(strangers, "STAY_S", 30.0)
    monkeypatch.setattr(limited_log, "PERIOD_S", 60.0)
    data, most = KINDS[kind]

    async def scene() -> None:
        async with serving() as listener:
            before = descriptors()
            knocked = [await knock(listener, data) for _ in range(most + 50)]
            await until(lambda: strangers_of(listener) == most)
            (await FramedTransport(SECRET).connect(listener.address, WAIT_S)).close()
            end_their_stay(monkeypatch)
            await asyncio.gather(*(until_sent_away(*one) for one in knocked))
            await until(lambda: strangers_of(listener) == 0 and descriptors() <= before)
            # Nothing of them got to gRPC.
            assert listener._grpc._door is None

    run_quietly(scene())
    lines = [line for line in caplog.messages if line.startswith("refused")]
    assert 0 < len(lines) <= limited_log.LINES_MAX and "127.0.0.1" in lines[0]


def test_an_http2_client_is_a_stranger_until_its_first_call_with_the_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene() -> None:
        async with serving() as listener, grpc.aio.insecure_channel(listener.address) as channel:
            stub = gcs_pb2_grpc.GcsServiceStub(channel)
            await channel.channel_ready()
            assert strangers_of(listener) == 1
            for _ in range(3):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.KvGet(get(b"k"))
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert listener._grpc._door is None
            # The channel makes connections as it needs them: who makes a mistake once is not kept out.
            assert (await stub.KvGet(get(b"k"), metadata=METADATA)).value == b"k"
            assert len(listener._grpc._splices) == 1
            # Connections whose first call was refused are strangers', whether their client ends them or not.
            end_their_stay(monkeypatch)
            await until(lambda: strangers_of(listener) == 0)

    run_quietly(scene())


def test_calls_without_the_secret_take_none_that_have_it_with_them() -> None:
    async def scene() -> None:
        async with serving() as listener, grpc.aio.insecure_channel(listener.address) as channel:
            stub = gcs_pb2_grpc.GcsServiceStub(channel)
            calls = [stub.KvGet(get(b"k"), metadata=metadata) for metadata in ((), METADATA) * 5]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [reply.value for reply in results[1::2]] == [b"k"] * 5  # type: ignore[union-attr]
            codes = {error.code() for error in results[::2]}  # type: ignore[union-attr]
            assert codes == {grpc.StatusCode.UNAUTHENTICATED}

    run_quietly(scene())


@pytest.mark.parametrize("method", ["KvGet", "Subscribe", "NoSuchMethod"])
def test_a_client_that_sends_a_large_message_without_the_secret_hears_why_it_is_refused(method: str) -> None:
    async def scene() -> None:
        path = f"/ray_mono.rpc.GcsService/{method}"
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        async with serving() as listener:
            for metadata in ((), METADATA):
                async with grpc.aio.insecure_channel(listener.address, options=options) as channel:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await channel.unary_unary(path)(b"\xff" * (16 << 20), metadata=metadata)
                is_refused = caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert is_refused == (not metadata)
                assert "authorization: Bearer" in (caught.value.details() or "") or not is_refused

    run_quietly(scene())


def test_a_stranger_that_goes_on_to_send_is_not_read_from() -> None:
    # Frames that HTTP/2 has to ignore, without an end.
    unknown = bytes.fromhex("003fff") + b"\xbb" + bytes(5) + bytes(0x3FFF)

    async def scene() -> None:
        async with serving() as listener:
            reader, writer = await knock(listener, HTTP2_PREFACE + SETTINGS)

            async def send() -> None:
                for _ in range(2000):
                    writer.write(unknown)
                    await writer.drain()

            results = await asyncio.gather(send(), until_sent_away(reader, writer), return_exceptions=True)
            assert isinstance(results[0], ConnectionError) and strangers_of(listener) == 0

    run_quietly(scene())


def test_one_who_goes_on_to_send_after_a_refusal_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "STAY_S", 3600.0)

    async def scene() -> None:
        async with serving() as listener:
            reader, writer = await knock(listener, HELLO + bytes(auth.PROOF_SIZE))
            # Why, and the end.
            assert b"the secret is not the one of this cluster" in await reader.read()

            async def send() -> None:
                while True:
                    writer.write(bytes(REST_BYTES_MAX))
                    await writer.drain()

            with pytest.raises(ConnectionError):
                await send()
            await until(lambda: strangers_of(listener) == 0)
            writer.close()

    run_quietly(scene())


def test_an_end_that_is_lost_by_a_reset_ends_the_other() -> None:
    async def scene() -> None:
        is_over = Mock()
        splice = grpc_splice._Splice(Http2Greeting(SECRET), is_over)
        splice.inner.transport, splice.outer.transport = ends = (Mock(), Mock())
        # No EOF came before.
        splice.outer.connection_lost(ConnectionResetError())
        ends[0].close.assert_called_once()
        is_over.assert_not_called()
        splice.inner.connection_lost(None)
        is_over.assert_called_once_with(splice)

    run_quietly(scene())


@pytest.mark.parametrize("how", ["both ends", "one half", "half and no reading"])
def test_nothing_is_left_of_grpc_clients_that_have_ended(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_splice, "LINGER_S", 0.2)

    async def scene() -> None:
        async with serving() as listener:
            # The first one starts gRPC, which has descriptors of its own.
            async with grpc.aio.insecure_channel(listener.address) as channel:
                await gcs_pb2_grpc.GcsServiceStub(channel).KvGet(get(b"k"), metadata=METADATA)
            await until(lambda: not listener._grpc._splices)
            before = descriptors()
            for _ in range(8):
                if how == "both ends":
                    async with grpc.aio.insecure_channel(listener.address) as channel:
                        await gcs_pb2_grpc.GcsServiceStub(channel).KvGet(get(b"k"), metadata=METADATA)
                else:
                    reader, writer = await knock(listener, HTTP2_PREFACE + SETTINGS + call(SECRET))
                    await until(lambda: listener._grpc._splices)
                    writer.write_eof()
                    if how == "one half":
                        await reader.read()
                    else:
                        await until(lambda: not listener._grpc._splices)
                    writer.close()
            await until(lambda: not listener._grpc._splices and strangers_of(listener) == 0)
            await until(lambda: descriptors() <= before)

    run_quietly(scene())


@pytest.mark.parametrize("has_stranger", [True, False])
def test_out_of_descriptors_is_said_and_a_client_gets_in_when_there_are_some_again(
    has_stranger: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        listening = OutOfDescriptors(sock)
        came: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def take(client: socket.socket, peer: str) -> None:
            client.close()
            came.set_result(peer)

        door = TcpDoor(SECRET, take, None)
        door.open(listening)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        with socket.socket() as silent, socket.socket() as client:
            for one in (silent, client):
                one.setblocking(False)
            if has_stranger:
                await loop.sock_connect(silent, sock.getsockname())
                await until(lambda: len(door._strangers) == 1)
            listening.fails = 1
            await loop.sock_connect(client, sock.getsockname())
            handshake = auth.ClientHandshake(SECRET, sock.getsockname()[1])
            await loop.sock_sendall(client, handshake.start())
            while handshake.state is auth.HandshakeState.PENDING:
                await loop.sock_sendall(
                    client, handshake.feed(await loop.sock_recv(client, handshake.missing_bytes))
                )
            await came
            if has_stranger:
                # It had to make room.
                assert await loop.sock_recv(silent, 1) == b""
        door.close()

    with caplog.at_level(logging.WARNING):
        run_quietly(scene())
    assert "cannot accept a connection: Too many open files" in caplog.text
    assert ("goes for it" if has_stranger else "trying again") in caplog.text


def test_strangers_go_with_the_listener() -> None:
    async def scene() -> None:
        async with serving() as listener:
            knocked = [await knock(listener, data) for data, _ in KINDS.values()]
            await until(lambda: strangers_of(listener) == len(knocked))
        await asyncio.gather(*(until_sent_away(*one) for one in knocked))

    run_quietly(scene())
