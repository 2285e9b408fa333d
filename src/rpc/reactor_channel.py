"""Framed connections on a reactor, the calling side: the channels that a core worker calls through.

Everything here runs under the reactor's lock, on whichever thread leads or submits. A channel may be used
before it is connected: what is sent waits for the handshake. When a connection ends, for whatever reason,
every unanswered call gets RpcError UNAVAILABLE, once.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ray_mono.common.limited_log import LimitedLog
from ray_mono.common.our_bug import OUR_BUG
from ray_mono.rpc import auth, framing
from ray_mono.rpc.framing import ERROR, HEADER, ITEM, REPLY, REQUEST
from ray_mono.rpc.reactor import Reactor, Waiter
from ray_mono.rpc.reactor_socket import READABLE, WRITABLE, ReactorSocket
from ray_mono.rpc.sockets import speaks_first, tune_tcp
from ray_mono.rpc.surface import OutOfReach, RpcError, StatusCode, take_answer
from ray_mono.rpc.timers import Timer

logger = logging.getLogger(__name__)
# One line says it for all connections that are tried again and again.
_log = LimitedLog(logger, lines_max=1)

CONNECT_TIMEOUT_S = 10.0
# Where there was no descriptor for a socket.
OPEN_RETRY_S = 0.2
CALL_ID_MAX = 0xFFFFFFFF
_REST = framing.HEADER_SIZE - 4

Request = TypeVar("Request")
Reply = TypeVar("Reply")
OnDone = Callable[[Any, RpcError | None], None]
OnPart = Callable[[Any], None]
OnEnd = Callable[[RpcError | None], None]


class ReactorChannel(ReactorSocket):
    """A connection to a peer that this process calls. See surface.Channel."""

    def __init__(self, reactor: Reactor, address: str, secret: str, peer_name: str = "") -> None:
        """Starts to connect to "unix:/path" or "host:port"; failing is told to the calls. Lock held.

        peer_name: of who answers there, for the message when it is gone: "the GCS".
        """
        self.address = address
        self._peer_name = peer_name
        self._pending: dict[int, tuple[Callable[[bytes], object], OnDone, OnPart | None]] = {}
        self._streams: dict[int, tuple[Callable[[bytes], object], OnPart, OnEnd]] = {}
        self._numbers = framing.MethodNumbers()
        self._next_id = 1
        self._reason = ""
        self._refused = False
        self._is_heard = self._is_unix = address.startswith("unix:")
        """Whether anything was heard of its machine."""
        self._timer: Timer | None = None
        self._secret = secret
        self._shakes = 0
        """How many handshakes were ended without a word."""
        super().__init__(reactor, None, "it" if peer_name else address)
        self._connecting = True
        self._open()
        if self._connecting:
            self._timer = reactor.call_later(CONNECT_TIMEOUT_S, self._check_connected)

    def _open(self) -> None:
        """Starts to connect. Where there is no descriptor left, says so and tries again;
        it is bounded as connecting is. Lock held.
        """
        if self.is_closed:
            return
        try:
            family = socket.AF_UNIX if self._is_unix else socket.AF_INET
            self._adopt(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
            self._reason = ""
            self._connect()
        except (OSError, auth.PeerRefusedError) as error:
            if self._fd < 0 and isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                _log.warning(
                    "%s: no connection to %s can be made before some files are closed "
                    "(or the limit is raised: ulimit -n)",
                    error.strerror,
                    self.address,
                )
                self._reason = f"cannot connect to {self.address}: {error.strerror}"
                self._is_heard = False
                self.reactor.call_later(OPEN_RETRY_S, self._open)
                return
            self._connecting = False
            self._is_heard = self._is_unix or isinstance(error, ConnectionRefusedError)
            self.close(f"cannot connect to {self.address}: {error}")

    def _connect(self) -> None:
        if self._is_unix:
            self._sock.connect(self.address[len("unix:") :])
            self._is_heard = True
            auth.check_peer_uid(self._sock)
            self.reactor.add(self, READABLE)
            self._connecting = False
            self.flush()
            return
        host, _, port = self.address.rpartition(":")
        self._handshake = auth.ClientHandshake(self._secret, int(port))
        tune_tcp(self._sock)
        speaks_first(self._sock)
        with contextlib.suppress(BlockingIOError):
            self._sock.connect((host, int(port)))
        self.reactor.add(self, WRITABLE)

    def _on_connected(self) -> None:
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._is_heard = error in (0, errno.ECONNREFUSED, errno.ECONNRESET)
        self._connected(error)

    def _lose(self, reason: str) -> None:
        # Nothing was sent yet: it waits for the next handshake.
        if self._handshake is None or self._shakes == auth.SHAKES_MAX - 1:
            self.close(reason)
            return
        self.reactor.remove(self._fd)
        self._sock.close()
        self._fd = -1
        self._connecting, self._reason = True, reason
        self._shakes += 1
        self.reactor.call_later(auth.pause_before_shake_s(self._shakes), self._open)

    def _check_connected(self) -> None:
        if self._connecting or self._handshake is not None:
            self._is_heard = False
            self.close(
                self._reason or f"cannot connect to {self.address}: no answer within {CONNECT_TIMEOUT_S:g} s"
            )

    @property
    def is_connecting(self) -> bool:
        """The peer's machine has not taken the connection yet, nor refused it."""
        return self._connecting and not self.is_closed

    @property
    def trouble(self) -> str:
        """Why it is not connected yet, where that is known; for people."""
        return self._reason if self._connecting else ""

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Request], bytes],
        response_deserializer: Callable[[bytes], Reply],
    ) -> ReactorMethod[Request, Reply]:
        return ReactorMethod(self, path, request_serializer, response_deserializer)

    def unary_stream(
        self,
        path: str,
        request_serializer: Callable[[Request], bytes],
        response_deserializer: Callable[[bytes], Reply],
    ) -> ReactorStream[Request, Reply]:
        return ReactorStream(self, path, request_serializer, response_deserializer)

    def number_of(self, path: str) -> int:
        """The method's number on this connection, named to the peer before its first use."""
        number, frame = self._numbers.number_of(path)
        if frame:
            self.write(frame)
        return number

    def error(self) -> RpcError:
        """Why calls fail on a closed channel."""
        if self._refused:
            return RpcError(StatusCode.UNAUTHENTICATED, self._reason)
        is_named = self._peer_name and not self.reactor.is_closed
        message = f"{self.who} is gone: {self._reason}" if is_named else self._reason
        return RpcError(StatusCode.UNAVAILABLE, message) if self._is_heard else OutOfReach(message)

    @property
    def who(self) -> str:
        return f"{self._peer_name} at {self.address}" if self._peer_name else self.address

    def send_request(self, kind: int, number: int, payload: bytes) -> int:
        """One frame; returns its call id."""
        if len(payload) > framing.PAYLOAD_BYTES_MAX:
            raise too_large(payload)
        call_id = self._next_id
        self._next_id = call_id + 1 if call_id < CALL_ID_MAX else 1
        self.write(HEADER.pack(len(payload) + _REST, kind, number, call_id) + payload)
        return call_id

    def _take(self, frame: framing.Frame) -> None:
        kind, _, call_id, payload = frame
        if kind == REPLY:
            found = self._pending.pop(call_id, None)
            if found is not None:
                found[1](found[0](payload), None)
        elif kind == ERROR:
            self._fail_call(call_id, framing.decode_error(payload))
        elif kind == ITEM:
            stream = self._streams.get(call_id)
            if stream is not None:
                stream[1](stream[0](payload))
                return
            found = self._pending.get(call_id)
            if found is not None and found[2] is not None:
                found[2](found[0](payload))
        else:
            stream = self._streams.pop(call_id, None)
            if stream is not None:
                stream[2](None)

    def _fail_call(self, call_id: int, error: RpcError) -> None:
        found = self._pending.pop(call_id, None)
        if found is not None:
            found[1](None, error)
            return
        stream = self._streams.pop(call_id, None)
        if stream is not None:
            stream[2](error)

    def _ended(self, reason: str) -> None:
        self._reason = reason
        self._refused = reason.startswith("refused:")
        if self._timer is not None:
            self._timer.cancel()
        for call_id in [*self._pending, *self._streams]:
            try:
                self._fail_call(call_id, self.error())
            except Exception:
                # The others have to hear of it all the same.
                logger.exception("a handler of a failed call failed; %s", OUR_BUG)


def too_large(payload: bytes) -> RpcError:
    size = f"a message of {len(payload)} bytes exceeds {framing.PAYLOAD_BYTES_MAX}"
    return RpcError(StatusCode.INVALID_ARGUMENT, size)


def await_answer(
    start: Callable[[OnDone], None], reactor: Reactor, who: str, path: str, timeout_s: float | None
) -> Any:
    """Starts a call to `who` and waits for its answer. Raises RpcError: the call's own, or that no answer
    came."""
    waiter = Waiter(reactor)
    result: list[tuple[Any, RpcError | None]] = []

    def done(reply: Any, error: RpcError | None) -> None:
        result.append((reply, error))
        waiter.set()

    start(done)
    if not reactor.wait(waiter, timeout_s) and not result:
        if reactor.is_closed:
            raise RpcError(StatusCode.CANCELLED, f"{path}: this process disconnected meanwhile")
        raise RpcError(StatusCode.DEADLINE_EXCEEDED, f"{who} did not answer {path} within {timeout_s} s")
    return take_answer(result)


class ReactorMethod(Generic[Request, Reply]):
    """One unary method of a channel. See surface.UnaryUnary."""

    __slots__ = ("_channel", "_deserialize", "_number", "_path", "_serialize")

    def __init__(
        self,
        channel: ReactorChannel,
        path: str,
        serialize: Callable[[Request], bytes],
        deserialize: Callable[[bytes], Reply],
    ) -> None:
        self._channel = channel
        self._path = path
        self._serialize = serialize
        self._deserialize = deserialize
        self._number = -1

    def start(self, request: Request, on_done: OnDone, on_part: OnPart | None = None) -> None:
        """See surface.UnaryUnary.start. May be called with or without the lock.

        on_part(reply) runs for each early part of the answer (ServerCall.part), before on_done.
        """
        channel = self._channel
        payload = self._serialize(request)
        with channel.reactor.lock:
            if channel.is_closed:
                on_done(None, channel.error())
                return
            if self._number < 0:
                self._number = channel.number_of(self._path)
            if len(payload) > framing.PAYLOAD_BYTES_MAX:
                on_done(None, too_large(payload))
                return
            call_id = channel._next_id
            channel._next_id = call_id + 1 if call_id < CALL_ID_MAX else 1
            frame = HEADER.pack(len(payload) + _REST, REQUEST, self._number, call_id) + payload
            # Goes out at once if nothing else waits for an answer here.
            if channel._pending:
                channel.write(frame)
            else:
                channel.send(frame)
            if channel.is_closed:
                # Too much waited for a peer that does not read, or it has gone.
                on_done(None, channel.error())
                return
            channel._pending[call_id] = (self._deserialize, on_done, on_part)

    def notify(self, request: Request) -> None:
        channel = self._channel
        payload = self._serialize(request)
        with channel.reactor.lock:
            if not channel.is_closed:
                if self._number < 0:
                    self._number = channel.number_of(self._path)
                channel.send_request(framing.ONEWAY, self._number, payload)

    def __call__(self, request: Request, timeout_s: float | None = None) -> Reply:
        channel = self._channel
        reply: Reply = await_answer(
            lambda done: self.start(request, done), channel.reactor, channel.who, self._path, timeout_s
        )
        return reply


class ReactorStream(Generic[Request, Reply]):
    """One streaming method of a channel. See surface.UnaryStream."""

    __slots__ = ("_channel", "_deserialize", "_path", "_serialize")

    def __init__(
        self,
        channel: ReactorChannel,
        path: str,
        serialize: Callable[[Request], bytes],
        deserialize: Callable[[bytes], Reply],
    ) -> None:
        self._channel = channel
        self._path = path
        self._serialize = serialize
        self._deserialize = deserialize

    def start(self, request: Request, on_item: Callable[[Reply], None], on_end: OnEnd) -> Callable[[], None]:
        channel = self._channel
        payload = self._serialize(request)
        with channel.reactor.lock:
            if channel.is_closed:
                on_end(channel.error())
                return lambda: None
            call_id = channel.send_request(framing.REQUEST, channel.number_of(self._path), payload)
            channel._streams[call_id] = (self._deserialize, on_item, on_end)

        def end() -> None:
            with channel.reactor.lock:
                if channel._streams.pop(call_id, None) is not None and not channel.is_closed:
                    channel.write(framing.encode(framing.CANCEL, 0, call_id, b""))

        return end
