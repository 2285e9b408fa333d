"""From a TCP listener to the gRPC server behind it: bytes are carried both ways. Knows no gRPC.

The server (`grpc_door`) is imported and started when the first HTTP/2 client comes, on a Unix socket in a directory that only this user
can enter, so that no process pays for gRPC that nobody uses. It demands the secret itself, from every call.

    stranger ──► opening ──► spliced ──► in ──► over          a splice is one socket here, one to the server, and the server's end of it

Until the server has seen the secret on a connection, that is a stranger's: it may be ended at any time (tcp_door), and no more than
STRANGER_BYTES_MAX and STRANGER_CALLS_MAX of it get to the server, for which its frames are counted; the rest of what was read waits
here. The server knows a connection by the name of our socket to it, which the kernel chose. The first call with the secret lets it in.
A splice is over when either side ends: neither has a use for half a connection. What was on its way is delivered within LINGER_S.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from ray_mono.common.limited_log import LimitedLog
from ray_mono.rpc.auth import check_peer_uid
from ray_mono.rpc.framed_connection import LINGER_S
from ray_mono.rpc.sockets import UNIX_PATH_BYTES_MAX, tune_tcp
from ray_mono.rpc.surface import Handler
from ray_mono.rpc.tcp_door import HTTP2_PREFACE, Stranger

if TYPE_CHECKING:
    from ray_mono.rpc.grpc_door import GrpcDoor

# For the metadata of the first calls, in which the secret stands; gRPC takes 8 KiB of each.
STRANGER_BYTES_MAX = 12 << 10
# Calls may be refused before one has the secret. To begin and end one costs the server most of all that a stranger can do.
STRANGER_CALLS_MAX = 4
_FRAME_HEAD_BYTES, _HEADERS = 9, 1

logger = logging.getLogger(__name__)


class GrpcSplice:
    """The gRPC clients of one listener."""

    def __init__(
        self, secret: str, handlers: Mapping[str, Handler[Any, Any]], private_dir: str | None
    ) -> None:
        self._secret = secret
        self._private_dir = private_dir
        self._handlers = handlers
        self._directory = ""
        # Started by the first client, shared by all; None before.
        self._door: asyncio.Task[GrpcDoor] | None = None
        self._openings: set[asyncio.Task[None]] = set()
        # By the name of our socket to the server.
        self._splices: dict[str, _Splice] = {}
        self._is_closed = False
        self._log = LimitedLog(logger)

    def take(self, stranger: Stranger) -> None:
        """Takes over a connection of which HTTP2_PREFACE was read."""
        task = asyncio.get_running_loop().create_task(self._open(stranger), name="grpc splice")
        self._openings.add(task)
        task.add_done_callback(self._openings.discard)

    async def close(self) -> None:
        """Ends every client's connection and the server, if it was started. The listener's strangers were ended before."""
        self._is_closed = True
        door, self._door = self._door, None
        if door is not None and not door.done():
            door.cancel()
        await asyncio.gather(*self._openings, return_exceptions=True)
        for splice in list(self._splices.values()):
            splice.abort()
        if door is not None:
            results = await asyncio.gather(door, return_exceptions=True)
            if not isinstance(results[0], BaseException):
                await results[0].stop()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = ""

    async def _open(self, stranger: Stranger) -> None:
        try:
            if self._is_closed:
                raise ConnectionAbortedError("the listener is closed")
            if self._door is None:
                self._door = asyncio.get_running_loop().create_task(self._start_door(), name="grpc door")
            # Others wait for the same start: the end of this one must not end it.
            door = await asyncio.shield(self._door)
            await self._splice(stranger, door.path)
        except (Exception, asyncio.CancelledError) as error:
            if not self._is_closed and not stranger.is_gone:
                self._log.warning("a gRPC client cannot be served: %r", error)
            stranger.let_in()
            stranger.end()
            stranger.sock.close()

    async def _splice(self, stranger: Stranger, path: str) -> None:
        loop = asyncio.get_running_loop()
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            inner.bind("")  # any free abstract name
            await loop.sock_connect(inner, path)
            check_peer_uid(inner)
            if stranger.is_gone or self._is_closed:
                inner.close()
                return
            tune_tcp(stranger.sock)
        except BaseException:
            inner.close()
            raise
        name = inner.getsockname()[1:].decode()
        splice = self._splices[name] = _Splice(stranger, lambda: self._splices.pop(name, None))
        try:
            # A stranger may be sent away between these: each end that comes is then ended at once.
            await loop.create_unix_connection(lambda: splice.inner, sock=inner)
            await loop.connect_accepted_socket(lambda: splice.outer, stranger.sock)
        except BaseException:
            self._splices.pop(name, None)
            raise

    def _let_in(self, name: str) -> None:
        """The server has seen the secret on this connection."""
        splice = self._splices.get(name)
        if splice is not None:
            splice.let_in()

    async def _start_door(self) -> GrpcDoor:
        from ray_mono.rpc.grpc_door import GrpcDoor

        self._directory = tempfile.mkdtemp(prefix="grpc_", dir=self._private_dir)  # 0700
        path = os.path.join(self._directory, "s")
        if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
            os.rmdir(self._directory)
            self._directory = tempfile.mkdtemp(prefix="grpc_", dir="/tmp")
            path = os.path.join(self._directory, "s")
        door = GrpcDoor(self._secret, self._handlers, path, self._let_in)
        await door.start()
        return door


class _Splice:
    """Two ends that are joined."""

    def __init__(self, stranger: Stranger, on_over: Callable[[], object]) -> None:
        self._stranger: Stranger | None = stranger
        self._on_over = on_over
        self._is_ending = False
        self._linger: asyncio.TimerHandle | None = None
        self.inner, self.outer = _End(self), _End(self)
        self.inner.other, self.outer.other = self.outer, self.inner
        self.outer.bytes_max = STRANGER_BYTES_MAX
        stranger.end = self.abort

    def let_in(self) -> None:
        if self._stranger is not None:
            self._stranger.let_in()
            self._stranger = None
            self.outer.lift()

    def connected(self) -> None:
        if self._is_ending:
            self.abort()
        elif self.inner.transport is not None and self.outer.transport is not None:
            self.inner.transport.write(HTTP2_PREFACE)
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
            if self._stranger is not None:
                self._stranger.let_in()
            self._on_over()


class _End(asyncio.Protocol):
    """One end of a splice. Reading rests for as long as anything holds it."""

    other: _End

    def __init__(self, splice: _Splice) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_over = False
        self.bytes_max: int | None = None
        """How much more of it is passed on; None: all."""
        self._rest = b""
        self._calls = 0
        self._frame_head = b""
        self._frame_rest = 0
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
        if self.other.transport is None:
            self.hold("its other end is not there yet")
        self._splice.connected()

    def data_received(self, data: bytes) -> None:
        assert self.other.transport is not None
        if self.bytes_max is not None:
            size = self._allowed(data[: self.bytes_max])
            self.bytes_max -= size
            if size < len(data) or self.bytes_max <= 0 or self._calls > STRANGER_CALLS_MAX:
                self.bytes_max = 0
                self._rest += data[size:]
                self.hold("a stranger has said enough")
            data = data[:size]
        self.other.transport.write(data)

    def _allowed(self, data: bytes) -> int:
        """How much of a stranger's next bytes may pass: up to the frame that would begin one call too many."""
        at = 0
        while at < len(data):
            step = min(self._frame_rest, len(data) - at)
            self._frame_rest -= step
            at += step
            head = data[at : at + _FRAME_HEAD_BYTES - len(self._frame_head)]
            self._frame_head += head
            at += len(head)
            if len(self._frame_head) == _FRAME_HEAD_BYTES:
                self._frame_rest = int.from_bytes(self._frame_head[:3], "big")
                self._calls += self._frame_head[3] == _HEADERS
                self._frame_head = b""
                if self._calls > STRANGER_CALLS_MAX:
                    break
        return at

    def lift(self) -> None:
        """All of it is passed on from now on."""
        self.bytes_max = None
        rest, self._rest = self._rest, b""
        if rest and self.other.transport is not None:
            self.other.transport.write(rest)
        self.release("a stranger has said enough")

    def eof_received(self) -> bool:
        self._splice.end()
        return False

    def pause_writing(self) -> None:
        self.other.hold("its other end is full")

    def resume_writing(self) -> None:
        self.other.release("its other end is full")

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
        self._splice.lost()
