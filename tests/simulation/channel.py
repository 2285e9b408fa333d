"""The client's side of a simulated connection: SimChannel, an AsyncChannel like the framed one.

A call is sent when it is made and returns a future; cancelling it, or leaving a stream, sends CANCEL.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

from ray_mono.rpc.surface import RpcError, StatusCode
from tests.simulation.canonical import canonical_bytes
from tests.simulation.endpoint import Endpoint, Packet
from tests.simulation.handles import SimFuture
from tests.simulation.loop import VirtualLoop

Serializer = Callable[[Any], bytes]
Deserializer = Callable[[bytes], Any]


class Ending:
    """The callbacks of a connection's end: each runs once, at once if it comes too late."""

    def __init__(self) -> None:
        self.reason = ""
        self._callbacks: list[Callable[[str], None]] = []

    def add(self, callback: Callable[[str], None]) -> None:
        if self.reason:
            callback(self.reason)
        else:
            self._callbacks.append(callback)

    def happen(self, loop: VirtualLoop) -> None:
        """Runs the callbacks; one that fails is told to the loop, and the others still run."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self.reason)
            except Exception as error:
                loop.call_exception_handler({"message": "an on_close callback failed", "exception": error})


class SimChannel:
    """One connection to a peer (surface.AsyncChannel)."""

    def __init__(self, loop: VirtualLoop, address: str, endpoint: Endpoint) -> None:
        self.loop = loop
        self.address = address
        self._endpoint = endpoint
        self._calls: dict[int, _UnaryCall | _StreamState] = {}
        self._call_ids = itertools.count(1)
        self._ending = Ending()
        endpoint.receiver = self
        if not endpoint.is_open:
            self.connection_ended("it ended at once")

    @property
    def is_closed(self) -> bool:
        return bool(self._ending.reason)

    def on_close(self, callback: Callable[[str], None]) -> None:
        self._ending.add(callback)

    def close(self) -> None:
        if not self.is_closed:
            self._endpoint.close()
            self.connection_ended("it was closed by this side")

    def unary_unary(
        self, path: str, request_serializer: Serializer, response_deserializer: Deserializer
    ) -> _UnaryMethod:
        return _UnaryMethod(self, path, request_serializer, response_deserializer)

    def unary_stream(
        self, path: str, request_serializer: Serializer, response_deserializer: Deserializer
    ) -> _StreamMethod:
        return _StreamMethod(self, path, request_serializer, response_deserializer)

    async def say_hello(self, secret: str, timeout_s: float) -> None:
        """Raises RpcError UNAUTHENTICATED when the server refuses, UNAVAILABLE where it is silent."""
        call = _UnaryCall(self, "the handshake", bytes)
        self.start_call("HELLO", "", secret.encode(), call)
        call.expire_after(timeout_s)
        try:
            await call
        except RpcError as error:
            if error.code == StatusCode.DEADLINE_EXCEEDED:
                raise RpcError(StatusCode.UNAVAILABLE, error.message) from None
            raise

    # ---- for the calls

    def start_call(self, kind: str, path: str, payload: bytes, call: _UnaryCall | _StreamState) -> None:
        """Sends a request; the answer goes to `call`. Raises RpcError UNAVAILABLE after the end."""
        if self.is_closed:
            raise self._ended_error(path)
        call.call_id = next(self._call_ids)
        self._calls[call.call_id] = call
        self._endpoint.send(Packet(kind, path, call.call_id, payload))

    def notify(self, path: str, payload: bytes) -> None:
        self._endpoint.send(Packet("ONEWAY", path, 0, payload))

    def abandon(self, call_id: int) -> None:
        """The caller does not want the answer any more."""
        if self._calls.pop(call_id, None) is not None:
            self._endpoint.send(Packet("CANCEL", "", call_id))

    def _ended_error(self, path: str) -> RpcError:
        message = f"{path}: the connection to {self.address} has ended: {self._ending.reason}"
        return RpcError(StatusCode.UNAVAILABLE, message)

    # ---- Receiver

    def packet_received(self, packet: Packet) -> None:
        if packet.kind == "ITEM":
            call = self._calls.get(packet.call_id)
        else:
            call = self._calls.pop(packet.call_id, None)
        if call is not None and packet.kind == "ERROR":
            call.fail(RpcError(StatusCode(packet.code), packet.payload.decode()))
        elif call is not None:
            call.take(packet)

    def connection_ended(self, reason: str) -> None:
        self._ending.reason = reason
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.fail(self._ended_error(call.path))
        self._ending.happen(self.loop)


class _UnaryCall(SimFuture):
    """One answer to come."""

    call_id = 0

    def __init__(self, channel: SimChannel, path: str, deserialize: Deserializer) -> None:
        super().__init__(loop=channel.loop)
        self.number = channel.loop.next_number()
        self.path = path
        self._channel = channel
        self._deserialize = deserialize
        self._timer: asyncio.TimerHandle | None = None

    def expire_after(self, timeout_s: float) -> None:
        self._timer = self._channel.loop.call_later(timeout_s, self._expire, timeout_s)

    def _expire(self, timeout_s: float) -> None:
        self._channel.abandon(self.call_id)
        message = f"{self.path}: {self._channel.address} did not answer within {timeout_s:g} s"
        self.fail(RpcError(StatusCode.DEADLINE_EXCEEDED, message))

    def cancel(self, msg: Any = None) -> bool:
        if self.done():
            return False
        self._stop_timer()
        self._channel.abandon(self.call_id)
        return super().cancel(msg)

    def take(self, packet: Packet) -> None:
        self._stop_timer()
        if self.done():
            return
        if packet.kind == "REPLY":
            self.set_result(self._deserialize(packet.payload))
        else:
            self.fail(RpcError(StatusCode.INTERNAL, f"{self.path} answers with a stream"))

    def fail(self, error: RpcError) -> None:
        self._stop_timer()
        if not self.done():
            self.set_exception(error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class _StreamState:
    """The channel's half of a stream: what arrived and was not taken."""

    call_id = 0

    def __init__(self, channel: SimChannel, path: str) -> None:
        self.channel = channel
        self.path = path
        self.items: collections.deque[bytes] = collections.deque()
        # None while it runs; then the error, or StopAsyncIteration at its orderly end. Told after the items.
        self.end: RpcError | StopAsyncIteration | None = None
        self.reader: asyncio.Future[None] | None = None

    def take(self, packet: Packet) -> None:
        if packet.kind == "ITEM":
            self.items.append(packet.payload)
        elif packet.kind == "END":
            self.end = StopAsyncIteration()
        else:
            self.end = RpcError(StatusCode.INTERNAL, f"{self.path} answers with one message")
        self._wake()

    def fail(self, error: RpcError) -> None:
        self.end = error
        self._wake()

    def leave(self) -> None:
        """The reader wants no more."""
        if self.end is None:
            self.end = StopAsyncIteration()
            self.channel.abandon(self.call_id)
        self.items.clear()

    def _wake(self) -> None:
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)


class SimStream(AsyncIterator[Any]):
    """The reader's half of a stream. One task reads; aclose(), or letting go of it, ends it at the server."""

    def __init__(self, state: _StreamState, deserialize: Deserializer) -> None:
        self._state = state
        self._deserialize = deserialize

    def __aiter__(self) -> SimStream:
        return self

    async def __anext__(self) -> Any:
        state = self._state
        while not state.items:
            if state.end is not None:
                raise state.end
            state.reader = state.channel.loop.create_future()
            await state.reader
        return self._deserialize(state.items.popleft())

    async def aclose(self) -> None:
        self._state.leave()

    def __del__(self) -> None:
        loop = self._state.channel.loop
        if self._state.end is None and not loop.is_closed():
            loop.call_soon(self._state.leave)


class _Method:
    def __init__(
        self, channel: SimChannel, path: str, serialize: Serializer, deserialize: Deserializer
    ) -> None:
        self._channel = channel
        self._path = path
        self._serialize = serialize
        self._deserialize = deserialize


class _UnaryMethod(_Method):
    """surface.AsyncUnaryUnary."""

    def __call__(self, request: Any, timeout_s: float | None = None) -> asyncio.Future[Any]:
        call = _UnaryCall(self._channel, self._path, self._deserialize)
        try:
            self._channel.start_call("REQUEST", self._path, canonical_bytes(request, self._serialize), call)
        except RpcError as error:
            call.fail(error)
        else:
            if timeout_s is not None:
                call.expire_after(timeout_s)
        return call

    def notify(self, request: Any) -> None:
        self._channel.notify(self._path, canonical_bytes(request, self._serialize))


class _StreamMethod(_Method):
    """surface.AsyncUnaryStream."""

    def __call__(self, request: Any) -> SimStream:
        state = _StreamState(self._channel, self._path)
        stream = SimStream(state, self._deserialize)
        try:
            self._channel.start_call("REQUEST", self._path, canonical_bytes(request, self._serialize), state)
        except RpcError as error:
            state.fail(error)
        return stream
