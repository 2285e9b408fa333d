"""The framed transport on asyncio: what every service connects and listens with.

Unix sockets carry frames from the first byte: the kernel says who the peer is, and both ends ask it. TCP
begins with the handshake of `auth` (`tcp_door`), and its listeners hand HTTP/2 clients to the gRPC door
(`grpc_door`), which is imported when the first one comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import cast

from ray_mono.common.limited_log import LimitedLog
from ray_mono.rpc import sockets
from ray_mono.rpc.auth import PeerRefusedError, check_peer_uid
from ray_mono.rpc.framed_channel import FramedChannel
from ray_mono.rpc.framed_connection import FramedConnection
from ray_mono.rpc.framed_handshake import ClientDoor, found_addresses, shaken
from ray_mono.rpc.framed_server import ServerConnection
from ray_mono.rpc.grpc_splice import GrpcSplice
from ray_mono.rpc.sockets import TcpAddress, UnixAddress
from ray_mono.rpc.surface import Handlers, NobodyListens, RpcError, StatusCode
from ray_mono.rpc.tcp_door import TcpDoor
from ray_mono.rpc.unix_door import UnixDoor

# How long a closing listener waits for handlers that do not end when they are cancelled.
CLOSE_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)
_log = LimitedLog(logger)


class FramedTransport:
    """Connects and listens with one secret (surface.Transport). Used from the loop's thread only."""

    def __init__(self, secret: str, private_dir: str | None = None) -> None:
        """secret: the cluster's, as auth.find_secret gives it; empty for none. private_dir: where the gRPC
        door may put its socket, if one is ever needed; a session's directory, so that it goes with it (None:
        the system's temporary directory)."""
        self._secret = secret
        self._private_dir = private_dir

    async def connect(self, address: str, timeout_s: float) -> FramedChannel:
        """A new connection. A peer that refuses is not tried again: UNAVAILABLE at once, naming the address;
        so is one that does not answer within timeout_s. UNAUTHENTICATED, with what to do, when either side's
        secret or user is not the other's. Raises ValueError for a malformed address."""
        parsed = sockets.parse_address(address)
        channel = FramedChannel(address)
        try:
            async with asyncio.timeout(timeout_s):
                if isinstance(parsed, UnixAddress):
                    await self._connect_unix(parsed, channel)
                else:
                    await self._connect_tcp(parsed, channel)
        except TimeoutError:
            raise RpcError(
                StatusCode.UNAVAILABLE, f"{address} did not answer within {timeout_s:g} s"
            ) from None
        except OSError as error:
            message = f"cannot connect to {address}: {sockets.why_not(error)}"
            if isinstance(error, ConnectionRefusedError):
                raise NobodyListens(message) from error
            raise RpcError(StatusCode.UNAVAILABLE, message) from error
        return channel

    async def _connect_unix(self, address: UnixAddress, channel: FramedChannel) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(lambda: channel, address.path)
        try:
            check_peer_uid(transport.get_extra_info("socket"))
        except PeerRefusedError as error:
            channel.abort("its server is another user's")
            raise RpcError(
                StatusCode.UNAUTHENTICATED, f"{address}: the server cannot be trusted: {error}"
            ) from None

    async def _connect_tcp(self, address: TcpAddress, channel: FramedChannel) -> None:
        async def shake() -> None:
            sock = await _connected(address)
            transport, door = await asyncio.get_running_loop().create_connection(
                lambda: ClientDoor(self._secret, address, channel), sock=sock
            )
            try:
                await door.done
            except BaseException:
                transport.abort()
                raise

        await shaken(shake)

    async def serve(self, address: str, handlers: Handlers) -> FramedListener:
        """Listens on "unix:/path" (0600, stale files replaced) or "host:port" (port 0: any).
        Raises OSError as bind does.
        """
        parsed = sockets.parse_address(address)
        listener = FramedListener(self._secret, handlers, self._private_dir)
        if isinstance(parsed, UnixAddress):
            await listener.listen(sockets.listen_unix(parsed.path), parsed)
        else:
            sock = sockets.listen_tcp(parsed.host, parsed.port)
            await listener.listen(sock, TcpAddress(parsed.host, sock.getsockname()[1]))
        return listener


async def _connected(address: TcpAddress) -> socket.socket:
    """A connection to the first of the host's addresses that answers. Raises OSError, of the last."""
    loop = asyncio.get_running_loop()
    found = await found_addresses(address.host, address.port)
    for number, (family, kind, protocol, _, target) in enumerate(found):
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            sockets.tune_tcp(sock)
            sockets.speaks_first(sock)
            await loop.sock_connect(sock, target)
            return sock
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError) or number == len(found) - 1:
                raise
    raise OSError(f"{address.host} has no address")


class FramedListener:
    """A listening socket and the connections that came through it (surface.Listener)."""

    def __init__(self, secret: str, handlers: Handlers, private_dir: str | None) -> None:
        self.address = ""
        self._secret = secret
        self._handlers = handlers
        # Where clients show who they are, and those that have.
        self._door: TcpDoor | UnixDoor | None = None
        self._admissions: set[asyncio.Task[None]] = set()
        # An ordered set.
        self._connections: dict[ServerConnection, None] = {}
        self._grpc = GrpcSplice(secret, handlers, private_dir)
        self._is_closed = False
        self._unix_file: tuple[str, int] | None = None

    async def listen(self, sock: socket.socket, address: UnixAddress | TcpAddress) -> None:
        """Takes a listening socket over; once."""
        self.address = str(address)
        if isinstance(address, UnixAddress):
            self._unix_file = (address.path, os.stat(address.path).st_ino)
            self._door = UnixDoor(self._admit)
        else:
            self._door = TcpDoor(self._secret, self._admit, self._grpc.take)
        self._door.open(sock)

    async def close(self) -> None:
        """Stops listening and ends every connection:
        their handlers are cancelled and waited for, at most CLOSE_TIMEOUT_S.
        """
        self._is_closed = True
        if self._door is not None:
            self._door.close()
        self._remove_file()
        await asyncio.gather(*self._admissions)
        connections = list(self._connections)
        for connection in connections:
            connection.close()
        await self._grpc.close()
        ends = [connection.until_handlers_ended(CLOSE_TIMEOUT_S) for connection in connections]
        for names in await asyncio.gather(*ends):
            for name in names:
                logger.warning("the handler %s does not end; left behind", name)
        # The transports close their sockets in the next turn.
        await asyncio.sleep(0)

    def _remove_file(self) -> None:
        if self._unix_file is not None:
            path, inode = self._unix_file
            self._unix_file = None
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:  # not a successor's
                    os.unlink(path)

    def _connect_peer(self, peer: str) -> ServerConnection:
        connection = ServerConnection(self._handlers, peer)
        self._connections[connection] = None
        connection.on_close(lambda reason: self._forget(connection, reason))
        logger.debug("%s: client %s", self.address, peer)
        return connection

    def _forget(self, connection: ServerConnection, reason: str) -> None:
        self._connections.pop(connection, None)
        logger.debug("%s: client %s left: %s", self.address, connection.peer, reason)

    def _admit(self, sock: socket.socket, peer: str) -> None:
        """A client that has shown the secret, or is a process of this node."""

        async def connect() -> None:
            try:
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: _AdmittedDoor(lambda: None if self._is_closed else self._connect_peer(peer)), sock
                )
            except OSError as error:
                sock.close()
                logger.debug("%s: client %s is gone already: %s", self.address, peer, error)

        task = asyncio.get_running_loop().create_task(connect(), name=f"admit {peer}")
        self._admissions.add(task)
        task.add_done_callback(self._admissions.discard)


class _AdmittedDoor(asyncio.Protocol):
    """Puts a client in its place, now that it has a transport."""

    def __init__(self, accept: Callable[[], ServerConnection | None]) -> None:
        self._accept = accept

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        connection = self._accept()
        if connection is None:
            transport.abort()
        else:
            _put(transport, connection)


def _put(transport: asyncio.Transport, protocol: FramedConnection) -> None:
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
