"""The framed transport: the conformance scenes over Unix sockets and TCP, who gets in, and what becomes of
its files.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from ray_mono.protobuf.gcs_rpc import gcs_service_handlers
from ray_mono.rpc import auth, framed, framing, strangers, unix_door
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import StatusCode
from tests.no_threads import no_threads
from tests.rpc.flooded_port import send_away
from tests.rpc.passed_on import passed_on
from tests.rpc.quiet import WAIT_S, run_quietly
from tests.rpc.toy_servicer import ToyServicer, error_of
from tests.rpc.transport_conformance import Scene, TransportConformance

SECRET = "open sesame"


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
        for module in (framed, unix_door):
            monkeypatch.setattr(module, "check_peer_uid", refuse)
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


@pytest.mark.parametrize("lost", [1, auth.SHAKES_MAX - 1, auth.SHAKES_MAX])
def test_a_client_that_a_flooded_port_sends_away_comes_again(
    monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    came = send_away(monkeypatch, lost)

    async def scene() -> None:
        listener = await FramedTransport(SECRET).serve("127.0.0.1:0", {})
        coming = FramedTransport(SECRET).connect(listener.address, WAIT_S)
        if lost < auth.SHAKES_MAX:
            (await coming).close()
        else:
            assert (await error_of(coming)).code is StatusCode.UNAVAILABLE and len(came) == lost
        await listener.close()

    run_quietly(scene())


def test_who_passes_a_handshake_on_from_another_port_gets_nothing() -> None:
    async def scene() -> None:
        listener = await FramedTransport(SECRET).serve("127.0.0.1:0", {})
        with passed_on(listener.address) as address:
            error = await error_of(FramedTransport(SECRET).connect(address, WAIT_S))
        assert error.code is StatusCode.UNAUTHENTICATED and "a tunnel has to keep the number" in error.message
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
    monkeypatch.setattr(strangers, "STAY_S", 0.02)

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


def test_a_server_that_never_answers_is_unavailable_in_time() -> None:
    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            error = await error_of(FramedTransport(SECRET).connect(address, 0.05))
            assert error.code is StatusCode.UNAVAILABLE and address in error.message

    run_quietly(scene())


def test_where_no_thread_may_be_made_an_address_is_reached_and_a_name_is_unavailable() -> None:
    async def scene() -> None:
        transport = FramedTransport(SECRET)
        listener = await transport.serve("127.0.0.1:0", {})
        by_name = listener.address.replace("127.0.0.1", "localhost")
        with no_threads():
            channel = await transport.connect(listener.address, WAIT_S)
            channel.close()
            error = await error_of(transport.connect(by_name, WAIT_S))
        assert error.code is StatusCode.UNAVAILABLE and "temporarily unavailable" in error.message
        await listener.close()

    run_quietly(scene())
