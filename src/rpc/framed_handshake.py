"""The first bytes of a TCP connection on asyncio: both ends of the handshake, and the choice between framed and gRPC.

Each is a protocol of its own that puts its successor in its place when it is done. Time belongs to these: a handshake that is not
over after auth.HANDSHAKE_TIMEOUT_S is cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from ray_mono.rpc.auth import HANDSHAKE_TIMEOUT_S, ClientHandshake, HandshakeState, ServerHandshake
from ray_mono.rpc.framed_connection import FramedConnection
from ray_mono.rpc.surface import RpcError, StatusCode

# The first bytes of HTTP/2, which gRPC speaks.
HTTP2_PREFACE = b"PRI "

logger = logging.getLogger(__name__)


def _hand_over(transport: asyncio.Transport, successor: FramedConnection, rest: bytes) -> None:
    transport.set_protocol(successor)
    successor.connection_made(transport)
    if rest:
        successor.data_received(rest)


class ClientDoor(asyncio.Protocol):
    """Proves this side to a server; `done` then holds None, or an RpcError."""

    def __init__(self, secret: str, address: str, successor: FramedConnection) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handshake = ClientHandshake(secret)
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


class ServerDoor(asyncio.Protocol):
    """Lets a client of a TCP port in: a framed one through the handshake; one that begins HTTP/2 is handed to `on_http2`."""

    def __init__(
        self,
        secret: str,
        peer: str,
        on_framed: Callable[[], FramedConnection],
        on_http2: Callable[[asyncio.Transport, bytes], None],
        on_end: Callable[[ServerDoor], None],
    ) -> None:
        """on_http2(transport, what arrived) takes the connection over. on_end(self) runs when this protocol has no part in it any more."""
        self._handshake = ServerHandshake(secret)
        self._peer = peer
        self._on_framed = on_framed
        self._on_http2 = on_http2
        self._on_end = on_end
        self._first_bytes: bytes | None = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self._expire)

    def data_received(self, data: bytes) -> None:
        if self._first_bytes is not None:
            data = self._first_bytes + data
            if len(data) < len(HTTP2_PREFACE) and HTTP2_PREFACE.startswith(data):
                self._first_bytes = data
                return
            self._first_bytes = None
            if data.startswith(HTTP2_PREFACE):
                self._leave()
                self._on_http2(self._transport, data)
                return
        handshake = self._handshake
        answer = handshake.feed(data)
        if answer:
            self._transport.write(answer)
        if handshake.state is HandshakeState.DONE:
            self._leave()
            _hand_over(self._transport, self._on_framed(), handshake.rest)
        elif handshake.state is HandshakeState.REFUSED:
            logger.warning("refused %s: %s", self._peer, handshake.reason)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def abort(self) -> None:
        self._transport.abort()

    def _leave(self) -> None:
        self._timer.cancel()
        self._on_end(self)

    def _expire(self) -> None:
        logger.warning("refused %s: no handshake within %g s", self._peer, HANDSHAKE_TIMEOUT_S)
        self._transport.abort()
