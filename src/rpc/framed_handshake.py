"""The first bytes of a TCP connection on asyncio, the side that connects: a protocol that puts its successor
in its place when the handshake is done, and when another is begun. The side that listens is tcp_door.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from ray_mono.common.threads import no_thread
from ray_mono.rpc import auth
from ray_mono.rpc.auth import ClientHandshake, HandshakeState
from ray_mono.rpc.framed_connection import FramedConnection
from ray_mono.rpc.sockets import TcpAddress
from ray_mono.rpc.surface import RpcError, StatusCode

T = TypeVar("T")


async def found_addresses(host: str, port: int) -> Sequence[tuple[int, int, int, str, Any]]:
    """As getaddrinfo has them: family, kind, protocol, name, address. What is a number
    already asks nobody, and needs no thread. Raises OSError."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass
    try:
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except RuntimeError as error:
        raise no_thread(error) from error


async def shaken(shake: Callable[[], Awaitable[T]]) -> T:
    """What `shake` gives, which connects and raises ConnectionResetError where the handshake is ended without
    a word: then it does so again, up to SHAKES_MAX times in all."""
    for shakes in range(1, auth.SHAKES_MAX):
        try:
            return await shake()
        except (ConnectionResetError, BrokenPipeError):
            await asyncio.sleep(auth.pause_before_shake_s(shakes))
    return await shake()


def _hand_over(transport: asyncio.Transport, successor: FramedConnection, rest: bytes) -> None:
    transport.set_protocol(successor)
    successor.connection_made(transport)
    if rest:
        successor.take(rest)


class ClientDoor(asyncio.Protocol):
    """Proves this side to a server;
    `done` then holds None, an RpcError where it is refused, or a ConnectionResetError.
    """

    def __init__(self, secret: str, address: TcpAddress, successor: FramedConnection) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handshake = ClientHandshake(secret, address.port)
        self._address = address
        self._successor = successor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._handshake.start())

    def data_received(self, data: bytes) -> None:
        handshake = self._handshake
        self._transport.write(handshake.feed(data))
        if handshake.state is HandshakeState.DONE:
            _hand_over(self._transport, self._successor, handshake.rest)
            if not self.done.done():
                self.done.set_result(None)
        elif handshake.state is HandshakeState.REFUSED:
            self._fail(RpcError(StatusCode.UNAUTHENTICATED, f"{self._address}: {handshake.reason}"))
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(
            ConnectionResetError(f"the connection ended during the handshake{f': {exc}' if exc else ''}")
        )

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
