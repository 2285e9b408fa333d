"""From a TCP listener to the gRPC server behind it: bytes are carried both ways. Knows no gRPC.

The server (`grpc_door`) is imported and started when the first HTTP/2 client comes that has the secret
(http2_greeting), on a Unix socket in a directory that only this user can enter: so no process pays for gRPC
that nobody uses, and no stranger gets to it. It looks at the secret of every call.

A splice is one socket here, one to the server, and the server's end of it. It is over when either side ends:
neither has a use for half a connection. What was on its way is delivered within LINGER_S.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from ray_mono.common.limited_log import LimitedLog
from ray_mono.common.our_bug import known
from ray_mono.rpc.auth import check_peer_uid
from ray_mono.rpc.framed_connection import LINGER_S
from ray_mono.rpc.http2_greeting import Http2Greeting, OneAckLess
from ray_mono.rpc.sockets import UNIX_PATH_BYTES_MAX
from ray_mono.rpc.surface import Handlers

if TYPE_CHECKING:
    from ray_mono.rpc.grpc_door import GrpcDoor

logger = logging.getLogger(__name__)


class GrpcSplice:
    """The gRPC clients of one listener."""

    def __init__(self, secret: str, handlers: Handlers, private_dir: str | None) -> None:
        self._secret = secret
        self._private_dir = private_dir
        self._handlers = handlers
        self._directory = ""
        # Started by the first client, shared by all; None before.
        self._door: asyncio.Task[GrpcDoor] | None = None
        self._openings: set[asyncio.Task[None]] = set()
        self._splices: set[_Splice] = set()
        self._is_closed = False
        self._log = LimitedLog(logger)

    def take(self, sock: socket.socket, greeting: Http2Greeting) -> None:
        """Takes over the connection of a client that is in."""
        task = asyncio.get_running_loop().create_task(self._open(sock, greeting), name="grpc splice")
        self._openings.add(task)
        task.add_done_callback(self._openings.discard)

    async def close(self) -> None:
        """Ends every client's connection and the server, if it was started."""
        self._is_closed = True
        door, self._door = self._door, None
        if door is not None and not door.done():
            door.cancel()
        await asyncio.gather(*self._openings, return_exceptions=True)
        for splice in list(self._splices):
            splice.abort()
        if door is not None:
            results = await asyncio.gather(door, return_exceptions=True)
            if not isinstance(results[0], BaseException):
                await results[0].stop()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = ""

    async def _open(self, sock: socket.socket, greeting: Http2Greeting) -> None:
        try:
            if self._is_closed:
                raise ConnectionAbortedError("the listener is closed")
            if self._door is None:
                self._door = asyncio.get_running_loop().create_task(self._start_door(), name="grpc door")
            # Others wait for the same start: the end of this one must not end it.
            door = await asyncio.shield(self._door)
            await self._splice(sock, greeting, door.path)
        except (Exception, asyncio.CancelledError) as error:
            if not self._is_closed:
                self._log.warning("a gRPC client cannot be served: %r", error)
            sock.close()

    async def _splice(self, sock: socket.socket, greeting: Http2Greeting, path: str) -> None:
        loop = asyncio.get_running_loop()
        splice = _Splice(greeting, self._splices.discard)
        inner, _ = await loop.create_unix_connection(lambda: splice.inner, path)
        try:
            check_peer_uid(inner.get_extra_info("socket"))
            if self._is_closed:
                raise ConnectionAbortedError("the listener is closed")
            self._splices.add(splice)
            await loop.connect_accepted_socket(lambda: splice.outer, sock)
        except BaseException:
            self._splices.discard(splice)
            inner.abort()
            raise

    async def _start_door(self) -> GrpcDoor:
        from ray_mono.rpc.grpc_door import GrpcDoor

        self._directory = tempfile.mkdtemp(prefix="grpc_", dir=self._private_dir)  # 0700
        path = os.path.join(self._directory, "s")
        if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
            os.rmdir(self._directory)
            self._directory = tempfile.mkdtemp(prefix="grpc_", dir="/tmp")
            path = os.path.join(self._directory, "s")
        door = GrpcDoor(self._secret, self._handlers, path)
        await door.start()
        return door


class _Splice:
    """Two ends that are joined."""

    def __init__(self, greeting: Http2Greeting, on_over: Callable[[_Splice], object]) -> None:
        self._greeting = greeting
        self._on_over = on_over
        self._is_ending = False
        self._linger: asyncio.TimerHandle | None = None
        self.inner, self.outer = _End(self, None), _End(self, greeting.acks)

    def beside(self, end: _End) -> _End:
        """The other of the two."""
        return self.outer if end is self.inner else self.inner

    def connected(self) -> None:
        if self._is_ending:
            self.abort()
        elif self.inner.transport is not None and self.outer.transport is not None:
            self.inner.transport.write(self._greeting.take_rest())
            self.inner.release("its other end is not there yet")

    def end(self) -> None:
        """Delivers what is on its way, as long as that takes LINGER_S at most."""
        if not self._is_ending:
            self._is_ending = True
            for end in (self.inner, self.outer):
                if end.transport is not None:
                    end.transport.close()
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self.abort)

    def abort(self) -> None:
        self._is_ending = True
        for end in (self.inner, self.outer):
            if end.transport is not None:
                end.transport.abort()

    def lost(self) -> None:
        self.end()
        if self.inner.is_over and self.outer.is_over:
            if self._linger is not None:
                self._linger.cancel()
            self._on_over(self)


class _End(asyncio.Protocol):
    """One end of a splice. Reading rests for as long as anything holds it."""

    def __init__(self, splice: _Splice, acks: OneAckLess | None) -> None:
        """acks: takes one frame out of what is passed on."""
        self.transport: asyncio.Transport | None = None
        self.is_over = False
        self._acks = acks
        self._splice = splice
        self._holds: set[str] = set()

    def hold(self, why: str) -> None:
        if not self._holds and self.transport is not None:
            self.transport.pause_reading()
        self._holds.add(why)

    def release(self, why: str) -> None:
        if why in self._holds:
            self._holds.remove(why)
            if not self._holds and self.transport is not None:
                self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._splice.beside(self).transport is None:
            self.hold("its other end is not there yet")
        self._splice.connected()

    def data_received(self, data: bytes) -> None:
        if self._acks is not None:
            data = self._acks.feed(data)
            if self._acks.is_done:
                self._acks = None
        # Reading rests until the other end is there.
        known(self._splice.beside(self).transport, "the other end").write(data)

    def eof_received(self) -> bool:
        self._splice.end()
        return False

    def pause_writing(self) -> None:
        self._splice.beside(self).hold("its other end is full")

    def resume_writing(self) -> None:
        self._splice.beside(self).release("its other end is full")

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
        self._splice.lost()
