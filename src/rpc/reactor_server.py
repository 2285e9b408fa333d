"""Framed connections on a reactor, the answering side: what a core worker serves to its peers.

Servicer methods on a reactor are plain functions `method(request, call)` that return nothing: they answer
with call.reply(message), now or later, or raise RpcError. They run under the reactor's lock and must not
block.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from ray_mono.common.limited_log import LimitedLog
from ray_mono.common.our_bug import OUR_BUG
from ray_mono.rpc import auth, framing
from ray_mono.rpc.framing import HEADER, ITEM, REPLY
from ray_mono.rpc.reactor import Reactor
from ray_mono.rpc.reactor_socket import READABLE, ReactorSocket
from ray_mono.rpc.sockets import ACCEPT_RETRY_S, LISTEN_BACKLOG, listen_unix, tune_tcp
from ray_mono.rpc.strangers import Stage, Strangers
from ray_mono.rpc.surface import Handlers, RpcError, StatusCode
from ray_mono.rpc.timers import Timer

logger = logging.getLogger(__name__)

_REST = framing.HEADER_SIZE - 4
_pack_header = HEADER.pack
ACCEPTS_PER_TURN = 16


class ServerCall:
    """One request that a servicer answers. See surface.CallContext."""

    __slots__ = ("_call_id", "connection", "is_oneway")

    def __init__(self, connection: ReactorConnection, call_id: int, is_oneway: bool) -> None:
        self.connection = connection
        self._call_id = call_id
        self.is_oneway = is_oneway

    def reply(self, message: Message, rings: bool = True) -> None:
        """Answers. Lost if the connection ended, as the caller knows by itself. Lock held. rings:
        see ReactorSocket.write.
        """
        self.reply_bytes(message.SerializeToString(), rings)

    def reply_bytes(self, payload: bytes, rings: bool = True) -> None:
        """As reply, with a message that is serialized."""
        if not self.is_oneway:
            self.connection.write(
                _pack_header(len(payload) + _REST, REPLY, 0, self._call_id) + payload, rings
            )

    def send_bytes(self, payload: bytes) -> None:
        """As reply_bytes, sent before this returns, as far as the peer takes it."""
        if not self.is_oneway:
            self.connection.send(_pack_header(len(payload) + _REST, REPLY, 0, self._call_id) + payload)

    def part(self, message: Message, rings: bool = False) -> None:
        """An early part of the answer, for callers that take parts; `reply` still has to come. Lock held.
        Whoever calls it flushes, unless it rings: see ReactorSocket.write.
        """
        self.part_bytes(message.SerializeToString(), rings)

    def part_bytes(self, payload: bytes, rings: bool = False) -> None:
        """As part, with a message that is serialized."""
        self.connection.write(_pack_header(len(payload) + _REST, ITEM, 0, self._call_id) + payload, rings)

    def fail(self, error: RpcError) -> None:
        if not self.is_oneway:
            self.connection.write(framing.encode_error(self._call_id, error))


class ReactorConnection(ReactorSocket):
    """A peer that calls this process. `state` is the servicer's own."""

    def __init__(
        self, server: ReactorServer, sock: socket.socket, peer: str, handshake: auth.ServerHandshake | None
    ) -> None:
        super().__init__(server.reactor, sock, peer)
        self.state: dict[Any, Any] = {}
        self._server = server
        self._paths = framing.MethodPaths()
        # By the number of the method: how its requests are read, and what answers them.
        self._handlers: dict[int, tuple[Callable[[bytes], Any], Callable[..., Any]]] = {}
        self._handshake = handshake

    def _shake(self, data: bytes) -> bytes:
        handshake = self._handshake
        rest = super()._shake(data)
        if self.is_closed:
            return b""
        if self._handshake is None:
            self._server.let_in(self)
            with contextlib.suppress(OSError):
                tune_tcp(self._sock)
        elif isinstance(handshake, auth.ServerHandshake) and handshake.has_answered:
            self._server.advance(self)
        return rest

    def _take(self, frame: framing.Frame) -> None:
        kind, number, call_id, payload = frame
        if kind == framing.METHOD:
            path = self._paths.add(number, payload)
            served = self._server.handlers.get(path)
            if served is not None:
                self._handlers[number] = (served.request_type.FromString, served.function)
            return
        if kind == framing.CANCEL:
            return  # the answer is thrown away by the caller
        # Without __init__, as every call comes here: it takes half as long.
        call = ServerCall.__new__(ServerCall)
        call.connection, call._call_id, call.is_oneway = self, call_id, kind == framing.ONEWAY
        handler = self._handlers.get(number)
        if handler is None:
            call.fail(RpcError(StatusCode.UNIMPLEMENTED, f"{self._paths.path_of(number)} is not served here"))
            return
        read, answer = handler
        try:
            answer(read(payload), call)
        except RpcError as error:
            call.fail(error)
        except Exception as error:
            logger.exception("%s failed; %s", self._paths.path_of(number), OUR_BUG)
            call.fail(RpcError(StatusCode.INTERNAL, f"{type(error).__name__}: {error}"))

    def _ended(self, reason: str) -> None:
        self._server.ended(self)


class ReactorServer:
    """Listeners and connections of one process, answering from one table of handlers."""

    def __init__(self, reactor: Reactor, handlers: Handlers, secret: str) -> None:
        self.reactor = reactor
        self.handlers = handlers
        self.connections: set[ReactorConnection] = set()
        self._strangers: Strangers[ReactorConnection] = Strangers()
        self._sweep: Timer | None = None
        self._log = LimitedLog(logger)
        self._secret = secret
        self._port = 0
        self._listeners: list[_Listening] = []

    def listen_unix(self, path: str) -> None:
        """Raises OSError as bind does. Lock held."""
        self._listeners.append(_Listening(self, listen_unix(path), path))

    def listen_tcp(self, host: str) -> int:
        """Listens on any port of `host` and returns it. Lock held."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.bind((host, 0))
        self._port = int(sock.getsockname()[1])
        self._listeners.append(_Listening(self, sock, None))
        return self._port

    def accept(self, sock: socket.socket, is_unix: bool) -> None:
        if is_unix:
            try:
                auth.check_peer_uid(sock)
            except auth.PeerRefusedError as error:
                self._log.warning("refused a connection: %s", error)
                sock.close()
                return
            connection = ReactorConnection(self, sock, "a process of this node", None)
        else:
            host, port = sock.getpeername()[:2]
            connection = ReactorConnection(
                self, sock, f"{host}:{port}", auth.ServerHandshake(self._secret, self._port)
            )
            _send_away(self._strangers.enter(connection, host, time.monotonic()))
            if self._sweep is None:
                self._plan_sweep()
        self.connections.add(connection)
        self.reactor.add(connection, READABLE)
        if not is_unix:
            # It may have spoken already: before others push it out.
            connection.on_events(READABLE)

    def advance(self, stranger: ReactorConnection) -> None:
        _send_away(self._strangers.advance(stranger, Stage.SHAKING))

    def let_in(self, stranger: ReactorConnection) -> None:
        self._strangers.leave(stranger)

    def ended(self, connection: ReactorConnection) -> None:
        self.connections.discard(connection)
        self._strangers.leave(connection)

    def cannot_accept(self, error: OSError) -> bool:
        """Out of descriptors, say: whether a stranger went for it.
        The peer's connection waits in any case.
        """
        self._log.warning("cannot accept a connection: %s", error.strerror)
        victim = self._strangers.give_up()
        _send_away(victim)
        return victim is not None

    def _plan_sweep(self) -> None:
        end_s = self._strangers.next_end_s
        self._sweep = (
            None if end_s is None else self.reactor.call_later(end_s - time.monotonic(), self._sweep_now)
        )

    def _sweep_now(self) -> None:
        for connection in self._strangers.expired(time.monotonic()):
            connection.close("the client did not finish the handshake")
        self._log.settle()
        self._plan_sweep()

    @property
    def has_unsent(self) -> bool:
        """Whether a peer has not taken all of its answers from us yet."""
        return any(connection.has_unsent for connection in self.connections)

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.close()


def _send_away(stranger: ReactorConnection | None) -> None:
    if stranger is not None:
        stranger.close("there are too many clients that have not shown the secret")


class _Listening:
    """A listening socket in the epoll."""

    def __init__(self, server: ReactorServer, sock: socket.socket, unix_path: str | None) -> None:
        self._server = server
        self._sock = sock
        self._unix_path = unix_path
        sock.setblocking(False)
        sock.listen(LISTEN_BACKLOG)
        server.reactor.add(self, READABLE)

    def fileno(self) -> int:
        return self._sock.fileno()

    def on_events(self, events: int) -> None:
        # What else waits has its turn:
        # the process has its own work to do, and those who came and speak are to be heard first.
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                if not self._server.cannot_accept(error):
                    # Not at once again, or this would be all we do.
                    reactor = self._server.reactor
                    reactor.modify(self, 0)
                    reactor.call_later(ACCEPT_RETRY_S, self._accept_again)
                return
            with contextlib.suppress(OSError):
                self._server.accept(sock, self._unix_path is not None)

    def _accept_again(self) -> None:
        if self._sock.fileno() >= 0:
            self._server.reactor.modify(self, READABLE)

    def abandon(self) -> None:
        self._sock.close()

    def close(self) -> None:
        self._server.reactor.remove(self._sock.fileno())
        self._sock.close()
        if self._unix_path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._unix_path)
