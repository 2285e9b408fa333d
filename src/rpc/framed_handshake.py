"""The first bytes of a TCP connection on asyncio, the side that connects: a protocol that puts its successor in its place when the
handshake is done. The side that listens is tcp_door.
"""

from __future__ import annotations

import asyncio
from typing import cast

from ray_mono.rpc.auth import ClientHandshake, HandshakeState
from ray_mono.rpc.framed_connection import FramedConnection
from ray_mono.rpc.sockets import TcpAddress
from ray_mono.rpc.surface import RpcError, StatusCode


def _hand_over(transport: asyncio.Transport, successor: FramedConnection, rest: bytes) -> None:
    transport.set_protocol(successor)
    successor.connection_made(transport)
    if rest:
        successor.data_received(rest)


class ClientDoor(asyncio.Protocol):
    """Proves this side to a server; `done` then holds None, or an RpcError."""

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
            self._fail(StatusCode.UNAUTHENTICATED, handshake.reason)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(
            StatusCode.UNAVAILABLE, f"the connection ended during the handshake{f': {exc}' if exc else ''}"
        )

    def _fail(self, code: StatusCode, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(RpcError(code, f"{self._address}: {reason}"))
