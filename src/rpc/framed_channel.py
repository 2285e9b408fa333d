"""The calling end of a framed connection: what generated asyncio stubs are made from.

A call is sent when it is made, not when it is awaited, so that calls of one task arrive in the order of their
lines; what is returned is a future. Cancelling it (a timeout around it, the end of the task that awaits it)
sends CANCEL, and so does leaving the iteration of a stream. An answer to a call that is not there any more is
ignored.

Limits. A channel always reads. If the peer does not, calls fail with RESOURCE_EXHAUSTED above
UNSENT_BYTES_MAX; a one-way message, which has no error, ends the connection instead. Items that nobody takes
wait up to STREAM_BYTES_MAX or STREAM_ITEMS_MAX; then that stream alone fails with RESOURCE_EXHAUSTED, since
the connection's other calls must not wait for its reader.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from ray_mono.rpc import framing
from ray_mono.rpc.framed_connection import FramedConnection
from ray_mono.rpc.framing import Frame, FrameError, FrameTooLargeError, MethodNumbers
from ray_mono.rpc.surface import RpcError, StatusCode

# Two of the largest frames.
UNSENT_BYTES_MAX = 1 << 30
STREAM_BYTES_MAX = 64 << 20
STREAM_ITEMS_MAX = 100_000

_Serializer = Callable[[Any], bytes]
_Deserializer = Callable[[bytes], Any]


class FramedChannel(FramedConnection):
    """One connection to a peer (surface.AsyncChannel)."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self._numbers = MethodNumbers()
        self._next_call_id = 1
        # By call id: the calls that wait for an answer, and the streams that are open.
        self._calls: dict[int, _UnaryCall | _StreamState] = {}

    def __str__(self) -> str:
        return f"to {self.address}"

    def unary_unary(
        self, path: str, request_serializer: _Serializer, response_deserializer: _Deserializer
    ) -> _UnaryMethod:
        return _UnaryMethod(self, path, request_serializer, response_deserializer)

    def unary_stream(
        self, path: str, request_serializer: _Serializer, response_deserializer: _Deserializer
    ) -> _StreamMethod:
        return _StreamMethod(self, path, request_serializer, response_deserializer)

    def start_call(self, path: str, payload: bytes, call: _UnaryCall | _StreamState) -> int:
        """Sends a request; `call` takes its answer. Returns its number. Raises RpcError if it is not sent."""
        if self._end_reason:
            raise RpcError(StatusCode.UNAVAILABLE, self._ended_message(path))
        if self.is_write_paused and self.unsent_bytes() + len(payload) > UNSENT_BYTES_MAX:
            raise RpcError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"{path}: {self.address} does not read; "
                f"{self.unsent_bytes()} bytes wait for it (at most {UNSENT_BYTES_MAX})",
            )
        call_id = self._next_call_id
        # After four billion calls the numbers start again, and a stream or a long poll may still hold its
        # own.
        while call_id in self._calls:
            call_id = call_id % 0xFFFFFFFF + 1
        self._next_call_id = call_id % 0xFFFFFFFF + 1
        self._send_message(framing.REQUEST, path, call_id, payload)
        self._calls[call_id] = call
        return call_id

    def send_oneway(self, path: str, payload: bytes) -> None:
        if self.is_write_paused and self.unsent_bytes() + len(payload) > UNSENT_BYTES_MAX:
            self.abort(
                "the peer does not read; "
                f"{self.unsent_bytes()} bytes wait for it (at most {UNSENT_BYTES_MAX})"
            )
        if not self._end_reason:
            self._send_message(framing.ONEWAY, path, 0, payload)

    def _send_message(self, kind: int, path: str, call_id: int, payload: bytes) -> None:
        number, naming = self._numbers.number_of(path)
        if naming:
            self.send(naming)
        try:
            frame = framing.encode(kind, number, call_id, payload)
        except FrameTooLargeError as error:
            raise RpcError(StatusCode.RESOURCE_EXHAUSTED, f"the request of {path}: {error}") from None
        self.send(frame)

    def abandon(self, call_id: int) -> None:
        """The caller does not want the answer any more."""
        if self._calls.pop(call_id, None) is not None:
            self.send(framing.encode(framing.CANCEL, 0, call_id, b""))

    def _on_frames(self, frames: list[Frame]) -> None:
        calls = self._calls
        for kind, _, call_id, payload in frames:
            if kind < framing.REPLY:
                raise FrameError(f"a server does not send frames of kind {kind}")
            if kind == framing.ITEM:
                call = calls.get(call_id)
            else:
                call = calls.pop(call_id, None)
            if call is not None:
                call.take(kind, payload)

    def _on_ended(self, reason: str) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.fail(RpcError(StatusCode.UNAVAILABLE, self._ended_message(call.path)))

    def _ended_message(self, path: str) -> str:
        return f"{path}: the connection to {self.address} has ended: {self._end_reason}"


class _UnaryCall(asyncio.Future[Any]):
    """One answer to come."""

    def __init__(self, channel: FramedChannel, path: str, deserialize: _Deserializer) -> None:
        super().__init__(loop=channel._loop)
        self._channel = channel
        self.path = path
        self._deserialize = deserialize
        self._timer: asyncio.TimerHandle | None = None
        self._call_id = 0

    def start(self, payload: bytes) -> None:
        """Raises RpcError if the request cannot be sent."""
        self._call_id = self._channel.start_call(self.path, payload, self)

    def expire_after(self, timeout_s: float) -> None:
        self._timer = self._channel._loop.call_later(timeout_s, self._expire, timeout_s)

    def _expire(self, timeout_s: float) -> None:
        if not self.done():
            self._channel.abandon(self._call_id)
            self.fail(
                RpcError(
                    StatusCode.DEADLINE_EXCEEDED,
                    f"{self.path}: {self._channel.address} did not answer within {timeout_s:g} s",
                )
            )

    def cancel(self, msg: Any = None) -> bool:
        if self.done():
            return False
        if self._timer is not None:
            self._timer.cancel()
        self._channel.abandon(self._call_id)
        return super().cancel(msg)

    def take(self, kind: int, payload: bytes) -> None:
        if self.done():
            return
        if kind == framing.REPLY:
            try:
                reply = self._deserialize(payload)
            except Exception as error:
                self.fail(
                    RpcError(StatusCode.INTERNAL, f"the answer of {self.path} cannot be parsed: {error}")
                )
                return
            if self._timer is not None:
                self._timer.cancel()
            self.set_result(reply)
        elif kind == framing.ERROR:
            self.fail(framing.decode_error(payload))
        else:
            self._channel.abandon(self._call_id)
            self.fail(
                RpcError(
                    StatusCode.INTERNAL, f"{self.path} answers with a stream; the caller expects one message"
                )
            )

    def fail(self, error: RpcError) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.done():
            self.set_exception(error)


class _StreamState:
    """The channel's half of a stream: what arrived and was not taken.
    Holds no reference to the reader's half, whose end ends the call.
    """

    def __init__(self, channel: FramedChannel, path: str) -> None:
        self.channel = channel
        self.path = path
        self.items: deque[bytes] = deque()
        self._items_bytes = 0
        # None while it runs; then the error, or StopAsyncIteration at its orderly end. Told after the items.
        self.end: RpcError | StopAsyncIteration | None = None
        self._reader: asyncio.Future[None] | None = None
        self._call_id = 0

    def start(self, payload: bytes) -> None:
        """Raises RpcError if the request cannot be sent."""
        self._call_id = self.channel.start_call(self.path, payload, self)

    async def more(self) -> None:
        """Until there is an item, or the end."""
        self._reader = self.channel._loop.create_future()
        await self._reader

    def pop(self) -> bytes:
        """The first of the items."""
        payload = self.items.popleft()
        self._items_bytes -= len(payload)
        return payload

    def take(self, kind: int, payload: bytes) -> None:
        if kind == framing.ITEM:
            self.items.append(payload)
            self._items_bytes += len(payload)
            if (self._items_bytes > STREAM_BYTES_MAX and len(self.items) > 1) or len(
                self.items
            ) > STREAM_ITEMS_MAX:
                self._overflow()
        elif kind == framing.END:
            self.end = StopAsyncIteration()
        elif kind == framing.ERROR:
            self.end = framing.decode_error(payload)
        else:
            self.end = RpcError(
                StatusCode.INTERNAL, f"{self.path} answers with one message; the caller expects a stream"
            )
        self._wake()

    def fail(self, error: RpcError) -> None:
        self.end = error
        self._wake()

    def leave(self) -> None:
        """The reader wants no more. The connection may already have ended."""
        if self.end is None:
            self.end = StopAsyncIteration()
            self.channel.abandon(self._call_id)
        self.items.clear()
        self._wake()

    def _overflow(self) -> None:
        waiting = f"{len(self.items)} items of {self._items_bytes} bytes waited for it"
        message = f"{self.path}: the reader fell behind; {waiting}"
        self.items.clear()
        self.end = RpcError(
            StatusCode.RESOURCE_EXHAUSTED,
            f"{message} (at most {STREAM_ITEMS_MAX} items or {STREAM_BYTES_MAX} bytes)",
        )
        self.channel.abandon(self._call_id)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class FramedStream(AsyncIterator[Any]):
    """The reader's half of a stream. One task reads;
    aclose(), or letting go of it, ends the stream at the server.
    """

    def __init__(self, state: _StreamState, deserialize: _Deserializer) -> None:
        self._state = state
        self._deserialize = deserialize

    def __aiter__(self) -> FramedStream:
        return self

    async def __anext__(self) -> Any:
        state = self._state
        while not state.items:
            if state.end is not None:
                raise state.end
            await state.more()
        try:
            return self._deserialize(state.pop())
        except Exception as error:
            state.leave()
            raise RpcError(
                StatusCode.INTERNAL, f"an item of {state.path} cannot be parsed: {error}"
            ) from error

    async def aclose(self) -> None:
        self._state.leave()

    def __del__(self) -> None:
        state = self._state
        loop = state.channel._loop
        # Not here: a collection may run anywhere, in any thread.
        if state.end is None and not loop.is_closed():
            loop.call_soon_threadsafe(state.leave)


class _Method:
    def __init__(
        self, channel: FramedChannel, path: str, serialize: _Serializer, deserialize: _Deserializer
    ) -> None:
        self._channel = channel
        self._path = path
        self._serialize = serialize
        self._deserialize = deserialize


class _UnaryMethod(_Method):
    """surface.AsyncUnaryUnary."""

    def __call__(self, request: Any, timeout_s: float | None = None) -> asyncio.Future[Any]:
        channel = self._channel
        call = _UnaryCall(channel, self._path, self._deserialize)
        try:
            call.start(self._serialize(request))
        except RpcError as error:
            call.fail(error)
        else:
            if timeout_s is not None:
                call.expire_after(timeout_s)
        return call

    def notify(self, request: Any) -> None:
        self._channel.send_oneway(self._path, self._serialize(request))


class _StreamMethod(_Method):
    """surface.AsyncUnaryStream."""

    def __call__(self, request: Any) -> FramedStream:
        state = _StreamState(self._channel, self._path)
        stream = FramedStream(state, self._deserialize)
        try:
            state.start(self._serialize(request))
        except RpcError as error:
            state.fail(error)
        return stream
