"""Who gets into a running cluster: every socket that any of its processes listens on is found, and tried
without the secret, with a wrong one and with the right one, as a stranger and as another user.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import ray_mono as ray
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.protobuf.object_manager_pb2 import TransferRequest
from ray_mono.rpc.auth import HANDSHAKE_TIMEOUT_S, HOW_TO_PASS
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.integration.clusters import CommandLineCluster
from tests.integration.flood import OTHER_DESCRIPTORS, Figures, flood
from tests.integration.listeners import Listener, tcp_listeners, unix_listeners

GET_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 30.0
NOBODY_UID = 65534
# How STRANGER says so.
CANNOT_CHANGE_USER = 77
# Else a channel may go on with the connection of one before, whose few calls as a stranger are used up.
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
GARBAGE = (b"\x00" * 64, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", os.urandom(4096))
# A frame as it follows a handshake, without one: METHOD, then REQUEST.
FRAMES = bytes.fromhex("1000000001000000000000") + b"/x/Y" + bytes.fromhex("0c00000002000000000001") + b"\x00"


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Iterator[CommandLineCluster]:
    """Two nodes at this machine's address. This process is a driver, and each node has workers and an
    actor."""
    cluster = CommandLineCluster(shared_base, node_ip_address=None, num_cpus=1, resources={"here": 1})
    try:
        cluster.add_node(num_cpus=1, resources={"there": 1})
        ray.init(address=cluster.address)

        class Resident:
            def where(self) -> str:
                return ray.get_runtime_context().get_node_id()

        resident: Any = ray.remote(Resident)
        residents = [resident.options(num_cpus=0, resources={name: 1}).remote() for name in ("here", "there")]
        assert len(set(ray.get([actor.where.remote() for actor in residents], timeout=GET_TIMEOUT_S))) == 2
        yield cluster
        del residents
    finally:
        ray.shutdown()
        cluster.stop()


@pytest.fixture
def listeners(cluster: CommandLineCluster, shared_base: Path) -> list[Listener]:
    return tcp_listeners(shared_base)


def test_every_process_that_others_call_listens_and_is_found(
    cluster: CommandLineCluster, listeners: list[Listener]
) -> None:
    titles = "\n".join(listener.process for listener in listeners)
    # GCS; two raylets, object managers and actors; this driver; besides idle workers.
    assert len(listeners) >= 8, titles
    for part in ("gcs_server", "raylet.raylet", "object_manager", "ray_mono::Resident", f"{os.getpid()} "):
        assert part in titles, titles
    assert cluster.address in {listener.address for listener in listeners}


# ---------------------------------------------------------------- TCP


def talk(listener: Listener, data: bytes) -> bytes:
    """Everything that the listener says to a client that sends this, up to the end of the connection."""
    with socket.create_connection((listener.host, listener.port), CONNECT_TIMEOUT_S) as sock:
        answer = b""
        try:
            sock.sendall(data)
            while part := sock.recv(65536):
                answer += part
        except ConnectionError:
            pass
    return answer


@pytest.mark.parametrize("data", [*GARBAGE, FRAMES], ids=["zeros", "http", "random", "frames"])
def test_bytes_that_are_no_handshake_end_the_connection_without_a_word(
    listeners: list[Listener], data: bytes
) -> None:
    for listener in listeners:
        assert talk(listener, data) == b"", listener


def test_a_request_to_another_object_manager_needs_the_handshake_first(listeners: list[Listener]) -> None:
    message = TransferRequest().SerializeToString()
    for listener in listeners:
        assert talk(listener, len(message).to_bytes(4, "little") + message + b"\x00" * 64) == b"", listener


def test_a_flood_of_silent_strangers_costs_little_and_keeps_no_rightful_client_out(
    cluster: CommandLineCluster, listeners: list[Listener]
) -> None:
    flooded = [
        next(listener for listener in listeners if part in listener.process)
        for part in ("gcs_server", "raylet.raylet", "object_manager", "ray_mono::Resident")
    ]

    def flood_one(listener: Listener) -> Figures:
        return flood(listener, "silent", 1100, cluster.secret, cluster.session_dir / "logs")

    # Meanwhile those that come to all of them, and say nothing or too little, are sent away.
    with ThreadPoolExecutor() as threads:
        floods = [threads.submit(flood_one, listener) for listener in flooded]
        _be_sent_away(listeners)
        for listener, future in zip(flooded, floods, strict=True):
            figures = future.result()
            assert figures.opened == 1100, (listener, figures)
            assert figures.memory_bytes <= 64 << 20 and figures.descriptors <= 512, (listener, figures)
            assert figures.descriptors_left <= OTHER_DESCRIPTORS and figures.log_bytes <= 1 << 20, (
                listener,
                figures,
            )


def _be_sent_away(listeners: list[Listener]) -> None:
    opened = [
        (listener, socket.create_connection((listener.host, listener.port), CONNECT_TIMEOUT_S))
        for listener in listeners
    ]
    # Half a handshake is as good as none.
    more = [
        (listener, socket.create_connection((listener.host, listener.port), CONNECT_TIMEOUT_S))
        for listener in listeners
    ]
    for _, sock in more:
        sock.sendall(b"RMF1" + b"n" * 8)
    for listener, sock in opened + more:
        with sock:
            sock.settimeout(HANDSHAKE_TIMEOUT_S + CONNECT_TIMEOUT_S)
            try:
                assert sock.recv(1) == b"", listener
            except ConnectionError:
                pass


async def refusal_of(secret: str, listener: Listener) -> RpcError:
    with pytest.raises(RpcError) as caught:
        channel = await FramedTransport(secret).connect(listener.address, CONNECT_TIMEOUT_S)
        channel.close()
        raise AssertionError(f"{listener} let {secret!r} in")
    return caught.value


@pytest.mark.parametrize("secret", ["", "wrong", "0" * 64])
def test_another_secret_is_refused_with_how_to_pass_the_right_one(
    listeners: list[Listener], secret: str
) -> None:
    async def try_all() -> None:
        for listener in listeners:
            error = await refusal_of(secret, listener)
            assert error.code is StatusCode.UNAUTHENTICATED and HOW_TO_PASS in error.message, listener

    asyncio.run(try_all())


def test_a_client_without_the_secret_that_goes_on_is_refused_as_well(
    cluster: CommandLineCluster, listeners: list[Listener]
) -> None:
    """A client that is not honest: it ignores the server's proof, sends a wrong one, and a request after
    it."""
    for listener in listeners:
        answer = talk(listener, b"RMF1" + b"n" * 16 + b"p" * 32 + FRAMES)
        # Nonce and proof of the server; then: refused, and why.
        assert answer[48:49] == b"\x00" and HOW_TO_PASS in answer[51:].decode(), (listener, answer)
        assert cluster.secret.encode() not in answer


def test_the_right_secret_is_let_in(cluster: CommandLineCluster, listeners: list[Listener]) -> None:
    async def try_all() -> None:
        for listener in listeners:
            channel = await FramedTransport(cluster.secret).connect(listener.address, CONNECT_TIMEOUT_S)
            channel.close()
        channel = await FramedTransport(cluster.secret).connect(cluster.address, CONNECT_TIMEOUT_S)
        reply = await GcsServiceAsyncStub(channel).GetAllNodes(
            common_pb2.Empty(), timeout_s=CONNECT_TIMEOUT_S
        )
        assert len(reply.nodes) == 2
        channel.close()

    asyncio.run(try_all())


async def grpc_refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize("credential", [None, "Bearer ", "Bearer wrong", "wrong"])
def test_grpc_without_the_secret_is_refused_wherever_it_is_spoken(
    cluster: CommandLineCluster, listeners: list[Listener], credential: str | None
) -> None:
    metadata = [] if credential is None else [("authorization", credential)]
    speaking, silent = [], []

    async def try_all() -> None:
        for listener in listeners:
            async with grpc.aio.insecure_channel(listener.address, OWN_CONNECTION) as channel:
                for path in ("/ray_mono.rpc.GcsService/GetAllNodes", "/ray_mono.rpc.RayletService/DumpState"):
                    call = channel.unary_unary(path, None, None)(
                        b"", metadata=metadata, timeout=CONNECT_TIMEOUT_S
                    )
                    code, details = await grpc_refusal(call)
                    if code is grpc.StatusCode.UNAUTHENTICATED:
                        assert HOW_TO_PASS in details
                        speaking.append(listener.process)
                    else:
                        assert code is grpc.StatusCode.UNAVAILABLE, (listener, code, details)
                        silent.append((" ".join(listener.process.split()[1:5])[-40:], path, details))

    asyncio.run(try_all())
    assert len(speaking) == 2 * 3 and "gcs_server" in " ".join(speaking), (speaking, silent)


def test_grpc_with_the_secret_is_let_in(cluster: CommandLineCluster) -> None:
    metadata = [("authorization", f"Bearer {cluster.secret}")]

    async def ask() -> bytes:
        async with grpc.aio.insecure_channel(cluster.address, OWN_CONNECTION) as channel:
            call = channel.unary_unary("/ray_mono.rpc.GcsService/GetAllNodes", None, None)
            return bytes(await call(b"", metadata=metadata, timeout=CONNECT_TIMEOUT_S))

    assert asyncio.run(ask())


# ---------------------------------------------------------------- Unix sockets


def test_unix_sockets_lie_where_only_their_user_can_go(
    cluster: CommandLineCluster, shared_base: Path
) -> None:
    found = unix_listeners(shared_base)
    assert len(found) >= 8, found
    for path, process in found.items():
        # Not abstract: those have no permissions.
        assert path.startswith("/"), (path, process)
        status, directory = os.stat(path), os.stat(os.path.dirname(path))
        assert status.st_uid == directory.st_uid == os.getuid()
        assert stat.S_IMODE(directory.st_mode) == 0o700, path
        assert stat.S_IMODE(status.st_mode) & 0o077 == 0 or "grpc" in path, (path, process)


STRANGER = """
import os, socket, sys
try:
    os.setgroups([])
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
except OSError:
    sys.exit(77)
for path in sys.argv[3:]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        try:
            sock.connect(path)
            sock.sendall(bytes.fromhex(sys.argv[2]))
            print("answered" if sock.recv(1) else "ended", path)
        except ConnectionError:
            print("ended", path)
        except PermissionError:
            print("forbidden", path)
"""


def as_stranger(paths: list[str]) -> list[str]:
    """What another user is told at each of these sockets: answered, ended or forbidden. Skips where we cannot
    be one."""
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(NOBODY_UID), FRAMES.hex(), *paths],
        capture_output=True,
        text=True,
        timeout=GET_TIMEOUT_S * 2,
        cwd="/",
    )
    if done.returncode == CANNOT_CHANGE_USER:
        pytest.skip("only root, and not in every sandbox, can act as another user")
    assert done.returncode == 0, done.stderr
    return [line.split(" ", 1)[0] for line in done.stdout.splitlines()]


def test_another_user_is_kept_out_by_permissions_and_by_the_servers_themselves(
    cluster: CommandLineCluster, shared_base: Path
) -> None:
    # gRPC's own sockets know nobody by the kernel: in their 0700 directories, they ask everybody for the
    # secret.
    paths = [
        path
        for path in unix_listeners(shared_base)
        if path.startswith(str(shared_base)) and "grpc_" not in path
    ]
    assert as_stranger(paths) == ["forbidden"] * len(paths)
    # As if nothing were protected: then it is the server that asks the kernel who it is.
    opened = {Path(path) for path in paths}
    opened |= {
        parent for path in list(opened) for parent in path.parents if shared_base in (parent, *parent.parents)
    }
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in opened}
    try:
        for path in opened:
            path.chmod(0o777)
        assert as_stranger(paths) == ["ended"] * len(paths)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
