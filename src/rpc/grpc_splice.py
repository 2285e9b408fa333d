"""From a TCP listener to the gRPC server behind it: bytes are carried both ways and not looked at. Knows no gRPC.

The server (`grpc_door`) is imported and started when the first HTTP/2 client comes, on a Unix socket in a directory that only this user
can enter, so that no process pays for gRPC that nobody uses. It demands the secret itself, from every call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from ray_mono.rpc.surface import Handler

if TYPE_CHECKING:
    from ray_mono.rpc.grpc_door import GrpcDoor

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
        self._openings: dict[asyncio.Task[None], None] = {}
        self._pipes: dict[_Pipe, None] = {}
        self._is_closed = False

    def take(self, transport: asyncio.Transport, first_bytes: bytes) -> None:
        """Takes over a client's connection, of which these bytes have been read."""
        if self._is_closed:
            transport.abort()
            return
        transport.pause_reading()
        task = asyncio.get_running_loop().create_task(self._open(transport, first_bytes), name="grpc splice")
        self._openings[task] = None
        task.add_done_callback(lambda done: self._openings.pop(done, None))

    async def close(self) -> None:
        """Ends every client's connection and the server, if it was started."""
        self._is_closed = True
        for task in list(self._openings):
            task.cancel()
        for pipe in list(self._pipes):
            pipe.abort()
        door, self._door = self._door, None
        if door is not None:
            if not door.done():
                door.cancel()
            results = await asyncio.gather(door, return_exceptions=True)
            if not isinstance(results[0], BaseException):
                await results[0].stop()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = ""

    async def _open(self, transport: asyncio.Transport, first_bytes: bytes) -> None:
        inner = None
        try:
            if self._door is None:
                self._door = asyncio.get_running_loop().create_task(self._start_door(), name="grpc door")
            # Others wait for the same start: the end of this one must not end it.
            door = await asyncio.shield(self._door)
            inner, pipe = await asyncio.get_running_loop().create_unix_connection(_Pipe, door.path)
            if transport.is_closing() or self._is_closed:
                inner.abort()
                transport.abort()
                return
        except Exception:
            logger.exception("a gRPC client cannot be served")
            transport.abort()
            return
        except asyncio.CancelledError:
            transport.abort()
            raise
        outer_pipe = _Pipe()
        transport.set_protocol(outer_pipe)
        outer_pipe.connection_made(transport)
        for one, other in ((pipe, outer_pipe), (outer_pipe, pipe)):
            one.join(other)
            self._pipes[one] = None
            one.on_end = self._forget
        inner.write(first_bytes)
        transport.resume_reading()

    async def _start_door(self) -> GrpcDoor:
        from ray_mono.rpc.grpc_door import GrpcDoor

        self._directory = tempfile.mkdtemp(prefix="grpc_", dir=self._private_dir)  # 0700
        door = GrpcDoor(self._secret, self._handlers, os.path.join(self._directory, "grpc"))
        await door.start()
        return door

    def _forget(self, pipe: _Pipe) -> None:
        self._pipes.pop(pipe, None)


class _Pipe(asyncio.Protocol):
    """One end of a splice. A side that is not read from stops the reading of the other."""

    def __init__(self) -> None:
        self._other: _Pipe | None = None
        self._transport: asyncio.Transport | None = None
        self.on_end: Callable[[_Pipe], None] = lambda pipe: None

    def join(self, other: _Pipe) -> None:
        self._other = other

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.write(data)

    def eof_received(self) -> bool:
        if (
            self._other is not None
            and self._other._transport is not None
            and not self._other._transport.is_closing()
        ):
            self._other._transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_end(self)
        self._transport = None
        if self._other is not None and self._other._transport is not None:
            self._other._transport.close()
