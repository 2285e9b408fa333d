"""The door of a TCP listener on asyncio: who knocks is asked for the secret, and only who has it becomes a client.

A stranger is a plain socket, a handshake (auth) and an entry in the table that says how long it may stay (strangers); it becomes a
client, with a transport and all that a client has, when the handshake is done. HTTP/2 clients show the secret later, with their first
call: they are handed on as strangers, and whoever takes them over says when they are in (grpc_splice).

A turn of the loop accepts a few connections: those of them that speak are heard in the next turn, before others push them out. What
strangers make us log is bounded (common/limited_log). Out of descriptors: a stranger goes, and where there is none, nobody is accepted
for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from ray_mono.common.limited_log import LimitedLog
from ray_mono.rpc.auth import MAGIC, HandshakeState, ServerHandshake
from ray_mono.rpc.sockets import TcpAddress, tune_tcp
from ray_mono.rpc.strangers import STAY_S, Stage, Strangers

# The first bytes of HTTP/2, which gRPC speaks.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ACCEPTS_PER_TURN = 32
ACCEPT_RETRY_S = 0.5
# How often HTTP/2 clients that wait are looked at.
SERVE_S = 0.05
# Of what follows a refused handshake.
REST_BYTES_MAX = 64 << 10

logger = logging.getLogger(__name__)


class Stranger:
    """One connection that has not shown the secret."""

    def __init__(self, door: TcpDoor, sock: socket.socket, peer: str, secret: str) -> None:
        self.sock = sock
        self.peer = peer
        self.end: Callable[[], None] = self.close
        """Ends the connection. Whoever takes it over puts another function in its place."""
        self.is_taken = False
        """Whether it is somebody else's to read from."""
        self._door = door
        self._handshake = ServerHandshake(secret)
        self._head = b""
        """The first bytes, until they tell the protocol; of HTTP/2 all of its preface."""

    @property
    def is_gone(self) -> bool:
        return self.sock.fileno() < 0

    def let_in(self) -> None:
        """It has shown the secret, or is gone."""
        self._door.forget(self)

    def close(self) -> None:
        self._door.unwatch(self)
        self.sock.close()

    def read(self) -> None:
        """Takes what is there, and never a byte beyond the handshake."""
        try:
            while size := self._wanted():
                data = self.sock.recv(size)
                if not data:
                    self._door.dismiss(self)
                    return
                self._take(data)
                if self.is_gone:
                    return
        except BlockingIOError:
            return
        except OSError:
            self._door.dismiss(self)

    def _wanted(self) -> int:
        if len(self._head) < len(MAGIC):
            return len(MAGIC) - len(self._head)
        if self._is_http2():
            return len(HTTP2_PREFACE) - len(self._head)
        return self._handshake.missing_bytes

    def _is_http2(self) -> bool:
        return self._head.startswith(HTTP2_PREFACE[: len(MAGIC)]) and self._door.serves_http2

    def _take(self, data: bytes) -> None:
        if len(self._head) < len(MAGIC) or self._is_http2():
            self._head += data
            if len(self._head) < len(MAGIC):
                return
            if self._is_http2():
                if self._head == HTTP2_PREFACE:
                    self._door.take_http2(self)
                elif not HTTP2_PREFACE.startswith(self._head):
                    self._door.refuse(self, "it begins like HTTP/2 and is not")
                return
            data = self._head
        self._shake(data)

    def _shake(self, data: bytes) -> None:
        handshake = self._handshake
        answer = handshake.feed(data)
        if answer:
            # The handshake's few bytes always fit into an empty socket buffer.
            self.sock.send(answer)
        if handshake.state is HandshakeState.REFUSED:
            # What it said beyond would have the kernel throw our answer away.
            with contextlib.suppress(OSError):
                self.sock.recv(REST_BYTES_MAX)
            self._door.refuse(self, handshake.reason)
        elif handshake.state is HandshakeState.DONE:
            self._door.take_framed(self)
        elif answer:
            self._door.advance(self, Stage.SHAKING)


class TcpDoor:
    """One listening socket. Belongs to the loop's thread."""

    def __init__(
        self,
        secret: str,
        on_client: Callable[[socket.socket, str], None],
        on_http2: Callable[[Stranger], None] | None,
    ) -> None:
        """on_client(socket, peer) is given who came in. on_http2(stranger) is given one of whose bytes HTTP2_PREFACE was read: it sets
        `end` and calls `let_in` (None: HTTP/2 is refused)."""
        self._secret = secret
        self._on_client = on_client
        self._on_http2 = on_http2
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._strangers: Strangers[Stranger] = Strangers()
        self._sweep: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._serving: asyncio.TimerHandle | None = None
        self._log = LimitedLog(logger, self._loop.time)

    @property
    def serves_http2(self) -> bool:
        return self._on_http2 is not None

    def open(self, listener: socket.socket) -> None:
        """Takes a listening, non-blocking socket over; once."""
        self._listener = listener
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Stops listening and ends every stranger."""
        for timer in (self._sweep, self._retry, self._serving):
            if timer is not None:
                timer.cancel()
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for stranger in self._strangers.clear():
            stranger.end()

    # ---- knocking

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # gone already
            except OSError as error:
                self._cannot_accept(error)
                return
            sock.setblocking(False)
            stranger = Stranger(self, sock, str(TcpAddress(address[0], address[1])), self._secret)
            self._end(self._strangers.enter(stranger, address[0], self._loop.time()))
            stranger.read()
            if stranger in self._strangers and not stranger.is_taken:
                self._loop.add_reader(sock, stranger.read)
            if self._sweep is None:
                self._plan_sweep()

    def _cannot_accept(self, error: OSError) -> None:
        victim = self._strangers.give_up()
        self._log.warning(
            "cannot accept a connection: %s; %s",
            error.strerror,
            f"trying again in {ACCEPT_RETRY_S:g} s" if victim is None else f"{victim.peer} goes for it",
        )
        if victim is not None:
            victim.end()
            return
        assert self._listener is not None
        self._loop.remove_reader(self._listener)
        self._retry = self._loop.call_later(ACCEPT_RETRY_S, self._accept_again, self._listener)

    def _accept_again(self, listener: socket.socket) -> None:
        self._loop.add_reader(listener, self._accept)

    # ---- what becomes of a stranger

    def take_framed(self, stranger: Stranger) -> None:
        self.unwatch(stranger)
        self.forget(stranger)
        try:
            tune_tcp(stranger.sock)
        except OSError:
            stranger.sock.close()  # gone already
            return
        self._on_client(stranger.sock, stranger.peer)

    def take_http2(self, stranger: Stranger) -> None:
        self.unwatch(stranger)
        stranger.is_taken = True
        self.advance(stranger, Stage.WAITING)
        self._serve()

    def _serve(self) -> None:
        """Hands on those HTTP/2 clients whose turn it is."""
        if self._on_http2 is None or self._listener is None:
            return
        served, victims = self._strangers.serve(self._loop.time())
        for victim in victims:
            self._end(victim)
        for stranger in served:
            self._on_http2(stranger)
        if self._serving is None and self._strangers.is_anyone_waiting:
            self._serving = self._loop.call_later(SERVE_S, self._serve_again)

    def _serve_again(self) -> None:
        self._serving = None
        self._serve()

    def advance(self, stranger: Stranger, stage: Stage) -> None:
        self._end(self._strangers.advance(stranger, stage, self._loop.time()))

    def refuse(self, stranger: Stranger, reason: str) -> None:
        self._log.warning("refused %s: %s", stranger.peer, reason)
        self.dismiss(stranger)

    def dismiss(self, stranger: Stranger) -> None:
        """Sends one away, in silence."""
        self.forget(stranger)
        stranger.end()

    def forget(self, stranger: Stranger) -> None:
        self._strangers.leave(stranger)
        self._serve()

    def unwatch(self, stranger: Stranger) -> None:
        if not stranger.is_gone:
            self._loop.remove_reader(stranger.sock)

    def _end(self, victim: Stranger | None) -> None:
        if victim is not None:
            self._log.warning(
                "refused %s: there are too many clients that have not shown the secret", victim.peer
            )
            victim.end()

    # ---- time

    def _plan_sweep(self) -> None:
        end_s = self._strangers.next_end_s
        self._sweep = None if end_s is None else self._loop.call_at(end_s, self._sweep_now)

    def _sweep_now(self) -> None:
        for stranger in self._strangers.expired(self._loop.time()):
            self._log.warning("refused %s: it did not show the secret within %g s", stranger.peer, STAY_S)
            stranger.end()
        self._log.settle()
        self._plan_sweep()
