"""The giving side of a transfer: whatever becomes of it, the object is pinned no longer than it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ray_mono.common.background import BackgroundTasks
from ray_mono.object_manager import transfer_server
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.seams import Fetch, PeerAddress, TransferFailed
from ray_mono.object_manager.transfer_client import TcpTransferStreams
from ray_mono.object_manager.transfer_server import TransferServer
from ray_mono.object_manager.transfer_wire import receive_message, send_message, shake_hands
from ray_mono.protobuf import object_manager_pb2
from ray_mono.rpc import auth
from ray_mono.rpc.auth import ClientHandshake
from tests.rpc.flooded_port import send_away

SECRET = "secret"
SIZE_BYTES = 64 << 20
"""More than sockets hold: the sender waits for its reader."""
LARGE = b"large".ljust(28)
TIMEOUT_S = 60.0


class PinnedStore:
    """A NodeStore with one object, and the pins of transfers on it."""

    def __init__(self) -> None:
        self.pins: dict[ObjectKey, int] = {}
        self.changed = asyncio.Event()
        self._data = memoryview(bytes(SIZE_BYTES))

    async def read_for_transfer(self, object_id: ObjectKey) -> Any:
        if object_id != ObjectKey(LARGE):
            return None
        self.pins[object_id] = self.pins.get(object_id, 0) + 1
        return SimpleNamespace(size_bytes=SIZE_BYTES, is_in_memory=True, metadata=b"", owner=b"")

    async def content(self, entry: Any, start: int, length: int) -> memoryview:
        return self._data[start : start + length]

    def release(self, object_id: ObjectKey, client: object) -> None:
        self.pins[object_id] -= 1
        self.changed.set()

    async def until_released(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while any(self.pins.values()):
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def fetching(
    store: PinnedStore, object_id: bytes = LARGE, idle_timeout_s: float = TIMEOUT_S
) -> AsyncIterator[tuple[TransferServer, socket.socket, object_manager_pb2.FetchHeader]]:
    """A server, a peer's connection to it, and the first of its answer to a fetch."""
    failures: list[BaseException] = []
    tasks = BackgroundTasks(lambda error, name: failures.append(error))
    config = ObjectManagerConfig(
        capacity_bytes=64, idle_transfer_timeout_s=idle_timeout_s, send_slice_bytes=1 << 20
    )
    server = TransferServer(cast("Any", store), SECRET, config, lambda count: None, tasks.spawn)
    host, _, port = server.listen("127.0.0.1", 0).rpartition(":")
    with socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        await shake_hands(sock, ClientHandshake(SECRET, int(port)))
        fetch = object_manager_pb2.FetchRequest(object_id=object_id)
        await send_message(sock, object_manager_pb2.TransferRequest(fetch=fetch), TIMEOUT_S)
        message = await receive_message(sock, TIMEOUT_S)
        assert message is not None
        yield server, sock, object_manager_pb2.FetchHeader.FromString(message)
    server.close()
    await tasks.close()
    assert not failures and not any(store.pins.values())


@pytest.mark.parametrize("lost", [1, auth.SHAKES_MAX])
def test_a_peer_that_a_flooded_port_sends_away_comes_again(
    monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """An object is not lost because strangers keep others from the port of its holder."""
    send_away(monkeypatch, lost)

    async def scene() -> None:
        config, tasks = ObjectManagerConfig(capacity_bytes=64), BackgroundTasks(lambda error, name: None)
        store = PinnedStore()
        server = TransferServer(cast("Any", store), SECRET, config, lambda count: None, tasks.spawn)
        host, _, port = server.listen("127.0.0.1", 0).rpartition(":")
        streams = TcpTransferStreams(SECRET, config, NodeKey(b"here"))
        why = "it holds no copy" if lost < auth.SHAKES_MAX else "during the handshake|reset by peer"
        with pytest.raises(TransferFailed, match=why):
            landing = cast("Any", SimpleNamespace(at=0, end=None))
            await streams.fetch(PeerAddress(host, int(port)), Fetch(ObjectKey(b"none".ljust(28))), landing)
        await streams.close()
        server.close()
        await tasks.close()

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["its peer goes", "its peer reads nothing", "the server closes"])
def test_a_transfer_that_is_broken_off_leaves_no_pin(how: str) -> None:
    async def scene() -> None:
        store = PinnedStore()
        idle_timeout_s = 0.1 if how == "its peer reads nothing" else TIMEOUT_S
        async with fetching(store, idle_timeout_s=idle_timeout_s) as (server, sock, header):
            assert header.found and store.pins == {ObjectKey(LARGE): 1}
            if how == "its peer goes":
                sock.close()
            elif how == "the server closes":
                server.close()
            await store.until_released()
            assert store.pins == {ObjectKey(LARGE): 0}

    asyncio.run(scene())


def test_what_is_not_there_is_not_pinned() -> None:
    async def scene() -> None:
        store = PinnedStore()
        async with fetching(store, b"absent".ljust(28)) as (_, _, header):
            assert not header.found and store.pins == {}

    asyncio.run(scene())


def test_peers_beyond_the_limit_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_server, "CONNECTIONS_MAX", 1)

    async def scene() -> None:
        async with fetching(PinnedStore(), b"absent".ljust(28)) as (_, first, _):
            with socket.socket() as second:
                second.setblocking(False)
                await asyncio.get_running_loop().sock_connect(second, first.getpeername())
                await shake_hands(second, ClientHandshake(SECRET, first.getpeername()[1]))
                async with asyncio.timeout(TIMEOUT_S):
                    assert await asyncio.get_running_loop().sock_recv(second, 1) == b""

    asyncio.run(scene())
