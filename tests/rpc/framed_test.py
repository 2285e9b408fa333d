"""The framed transport: the conformance scenes over Unix sockets and TCP, and what is its own."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import shutil
import socket
import stat
import struct
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_mono.protobuf import gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub, gcs_service_handlers
from ray_mono.rpc import auth, framed, framed_channel, framed_connection, framed_handshake, framing
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import CallContext, StatusCode
from tests.rpc.transport_conformance import (
    Scene,
    ToyServicer,
    TransportConformance,
    error_of,
    get,
    put,
    start,
    subscribe,
)

SECRET = "open sesame"
WAIT_S = 20.0


def run_quietly(scene: Coroutine[Any, Any, None]) -> None:
    """Runs a scene; fails if it leaves tasks behind, or anything that asyncio complains about."""
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        async with asyncio.timeout(WAIT_S):
            await scene
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)
        gc.collect()

    asyncio.run(main())
    gc.collect()
    assert complaints == []


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for a Unix socket's path."""
    path = tempfile.mkdtemp(prefix="rpc")
    yield Path(path)
    shutil.rmtree(path)


class TestUnix(TransportConformance):
    @pytest.fixture(autouse=True)
    def _directory(self, directory: Path) -> None:
        self._path = directory / "socket"

    def run(self, scene: Scene) -> None:
        run_quietly(scene(FramedTransport(SECRET), f"unix:{self._path}"))
        assert not self._path.exists()


class TestTcp(TransportConformance):
    def run(self, scene: Scene) -> None:
        run_quietly(scene(FramedTransport(SECRET), "127.0.0.1:0"))


# ---- Unix listeners


def test_a_unix_socket_is_for_its_user_alone(directory: Path) -> None:
    async def scene() -> None:
        listener = await FramedTransport("").serve(f"unix:{directory}/s", {})
        assert stat.S_IMODE(os.stat(directory / "s").st_mode) == 0o600
        await listener.close()

    run_quietly(scene())


def test_a_stale_socket_file_is_replaced_and_a_live_one_is_not(directory: Path) -> None:
    path = directory / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def scene() -> None:
        listener = await FramedTransport("").serve(f"unix:{path}", {})
        with pytest.raises(OSError) as caught:
            await FramedTransport("").serve(f"unix:{path}", {})
        assert caught.value.errno == errno.EADDRINUSE and str(path) in str(caught.value)
        await listener.close()

    run_quietly(scene())


def test_a_file_that_is_no_socket_is_left_alone(directory: Path) -> None:
    path = directory / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="no socket"):
        asyncio.run(FramedTransport("").serve(f"unix:{path}", {}))
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_named_with_the_limit() -> None:
    with pytest.raises(OSError, match="at most 107 bytes"):
        asyncio.run(FramedTransport("").serve("unix:/tmp/" + "x" * 120, {}))


@pytest.mark.parametrize("address", ["", "localhost", "unix:", ":80", "host:port", "host:70000"])
def test_a_malformed_address_is_a_value_error_that_shows_the_forms(address: str) -> None:
    with pytest.raises(ValueError, match="unix:/path"):
        asyncio.run(FramedTransport("").connect(address, 1.0))


def test_a_peer_of_another_user_is_refused_by_both_ends(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(sock: object) -> None:
        raise auth.PeerRefusedError("process 1 belongs to user id 99")

    async def scene() -> None:
        listener = await FramedTransport("").serve(f"unix:{directory}/s", {})
        monkeypatch.setattr(framed, "check_peer_uid", refuse)
        error = await error_of(FramedTransport("").connect(listener.address, WAIT_S))
        assert error.code is StatusCode.UNAUTHENTICATED and "user id 99" in error.message
        reader, writer = await asyncio.open_unix_connection(str(directory / "s"))
        assert await reader.read() == b""
        writer.close()
        await listener.close()

    run_quietly(scene())


# ---- who gets in by TCP


@pytest.mark.parametrize(("server", "client"), [("a", "b"), ("a", ""), ("", "b")])
def test_another_secret_is_refused_with_what_to_do(server: str, client: str) -> None:
    async def scene() -> None:
        listener = await FramedTransport(server).serve("127.0.0.1:0", {})
        error = await error_of(FramedTransport(client).connect(listener.address, WAIT_S))
        assert error.code is StatusCode.UNAUTHENTICATED and listener.address in error.message
        assert auth.TOKEN_VARIABLE in error.message or "empty secret" in error.message
        await listener.close()

    run_quietly(scene())


def test_a_client_that_lies_about_the_secret_is_told_why(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        listener = await FramedTransport(SECRET).serve("127.0.0.1:0", gcs_service_handlers(ToyServicer()))
        reader, writer = await asyncio.open_connection(*listener.address.split(":"))
        writer.write(auth.MAGIC + bytes(16))
        await reader.readexactly(48)
        writer.write(bytes(32) + framing.encode(framing.METHOD, 0, 0, b"/ray_mono.rpc.GcsService/KvGet"))
        answer = await reader.read()
        assert answer[0] == 0 and auth.TOKEN_VARIABLE.encode() in answer
        writer.close()
        await listener.close()

    run_quietly(scene())
    assert "does not know the secret" in caplog.text


def test_a_client_that_says_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framed_handshake, "HANDSHAKE_TIMEOUT_S", 0.02)

    async def scene() -> None:
        listener = await FramedTransport(SECRET).serve("127.0.0.1:0", {})
        for first_bytes in (b"", b"R", b"PRI", auth.MAGIC + bytes(16)):
            reader, writer = await asyncio.open_connection(*listener.address.split(":"))
            writer.write(first_bytes)
            try:
                assert len(await reader.read()) in (0, 48)
            except ConnectionResetError:
                pass
            writer.close()
        await listener.close()

    run_quietly(scene())


def test_strangers_in_the_handshake_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framed, "HANDSHAKES_MAX", 1)

    async def scene() -> None:
        transport = FramedTransport(SECRET)
        listener = await transport.serve("127.0.0.1:0", {})
        reader, writer = await asyncio.open_connection(*listener.address.split(":"))
        writer.write(auth.MAGIC + bytes(16))
        await reader.readexactly(48)
        assert (await error_of(transport.connect(listener.address, WAIT_S))).code is StatusCode.UNAVAILABLE
        writer.close()
        await reader.read()
        (await transport.connect(listener.address, WAIT_S)).close()
        await listener.close()

    run_quietly(scene())


def test_a_server_that_never_answers_is_unavailable_in_time() -> None:
    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            error = await error_of(FramedTransport(SECRET).connect(address, 0.05))
            assert error.code is StatusCode.UNAVAILABLE and address in error.message

    run_quietly(scene())


# ---- limits


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
            assert connection.unsent_bytes() < 2 * framed_connection.WRITE_HIGH_BYTES
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
