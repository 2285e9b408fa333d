"""The door of a TCP listener on asyncio:
who knocks is asked for the secret, and only who has it becomes a client.

A stranger is a plain socket, a handshake (auth) and an entry in the table that says how long it may stay
(strangers); it becomes a client, with a transport and all that a client has, when the handshake is done; an
HTTP/2 client when its first call has the secret (http2_greeting).

A turn of the loop accepts a few connections: those of them that speak are heard in the next turn, before
others push them out. What strangers make us log is bounded (common/limited_log). Out of descriptors: a
stranger goes, and where there is none, nobody is accepted for a while.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from ray_mono.common.limited_log import LimitedLog
from ray_mono.common.our_bug import known
from ray_mono.rpc.auth import MAGIC, HandshakeState, ServerHandshake
from ray_mono.rpc.http2_greeting import HTTP2_PREFACE, Http2Greeting
from ray_mono.rpc.sockets import ACCEPT_RETRY_S, TcpAddress, tune_tcp
from ray_mono.rpc.strangers import STAY_S, Stage, Strangers

ACCEPTS_PER_TURN = 32
# Of what follows a refused handshake: an HTTP/2 client may send so much before it hears of it.
REST_BYTES_MAX = 128 << 10

logger = logging.getLogger(__name__)


class Stranger:
    """One connection that has not shown the secret."""

    def __init__(self, door: TcpDoor, sock: socket.socket, address: tuple[str, int]) -> None:
        self.sock = sock
        self._address = address
        self._door = door
        self._head = b""
        """The first bytes, until they tell the protocol."""
        self._handshake: ServerHandshake | Http2Greeting | None = None
        self._rest_bytes = REST_BYTES_MAX
        """How much more is read of one that was refused, and may still have to read why."""

    def __str__(self) -> str:
        return str(TcpAddress(*self._address))

    @property
    def is_gone(self) -> bool:
        return self.sock.fileno() < 0

    def close(self) -> None:
        self._door.unwatch(self)
        self.sock.close()

    def read(self) -> None:
        """Takes what is there, and never a byte beyond the handshake."""
        try:
            while size := self._wanted():
                data = self.sock.recv(size)
                if not data:
                    break
                self._take(data)
                if (
                    self._handshake is not None
                    and self._handshake.state is HandshakeState.DONE
                    or self.is_gone
                ):
                    return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._door.dismiss(self)

    def _wanted(self) -> int:
        handshake = self._handshake
        if handshake is None:
            return len(MAGIC) - len(self._head)
        return self._rest_bytes if handshake.state is HandshakeState.REFUSED else handshake.missing_bytes

    def _take(self, data: bytes) -> None:
        if self._handshake is None:
            self._head += data
            if len(self._head) < len(MAGIC):
                return
            self._handshake, data = self._door.greet(self._head), self._head
        if self._handshake.state is HandshakeState.REFUSED:
            self._rest_bytes -= len(data)
            if isinstance(self._handshake, Http2Greeting):
                self._send(self._handshake.feed(data))
                if self._handshake.is_exhausted:
                    self._rest_bytes = 0
            return
        self._shake(self._handshake, data)

    def _shake(self, handshake: ServerHandshake | Http2Greeting, data: bytes) -> None:
        answer = handshake.feed(data)
        self._send(answer)
        if handshake.state is HandshakeState.REFUSED:
            self._door.refuse(self, handshake.reason)
            if answer:
                # What it says beyond would have the kernel throw our answer away, if we closed at once.
                if isinstance(handshake, ServerHandshake):
                    self.sock.shutdown(socket.SHUT_WR)
                self._door.advance(self, Stage.TOLD)
            else:
                self._door.dismiss(self)
        elif handshake.state is HandshakeState.DONE:
            self._door.take(self, handshake)
        elif answer:
            self._door.advance(self, Stage.SHAKING)

    def _send(self, answer: bytes) -> None:
        if answer and self.sock.send(answer) < len(answer):
            # The few bytes of a handshake fit into the socket's buffer, if the peer reads what it is told.
            raise OSError(errno.ENOBUFS, "it does not read")


class TcpDoor:
    """One listening socket. Belongs to the loop's thread."""

    def __init__(
        self,
        secret: str,
        on_client: Callable[[socket.socket, str], None],
        on_http2: Callable[[socket.socket, Http2Greeting], None] | None,
    ) -> None:
        """on_client(socket, peer) is given who came in, on_http2 an HTTP/2 client that did (None:
        HTTP/2 is refused).
        """
        self._secret = secret
        self._on_client = on_client
        self._on_http2 = on_http2
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._port = 0
        self._strangers: Strangers[Stranger] = Strangers()
        self._sweep: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._log = LimitedLog(logger, self._loop.time)

    def open(self, listener: socket.socket) -> None:
        """Takes a listening, non-blocking socket over; once."""
        self._listener = listener
        self._port = listener.getsockname()[1]
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Stops listening and ends every stranger."""
        for timer in (self._sweep, self._retry):
            if timer is not None:
                timer.cancel()
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for stranger in self._strangers.clear():
            stranger.close()

    # ---- knocking

    def _accept(self) -> None:
        listener = known(self._listener, "the listening socket")
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # gone already
            except OSError as error:
                self._cannot_accept(error)
                return
            sock.setblocking(False)
            stranger = Stranger(self, sock, address[:2])
            self._end(self._strangers.enter(stranger, address[0], self._loop.time()))
            stranger.read()
            if stranger in self._strangers:
                # By its number: the loop would write a socket's name, with system calls, for an error that it
                # catches.
                self._loop.add_reader(sock.fileno(), stranger.read)
            if self._sweep is None:
                self._plan_sweep()

    def _cannot_accept(self, error: OSError) -> None:
        victim = self._strangers.give_up()
        self._log.warning(
            "cannot accept a connection: %s; %s",
            error.strerror,
            f"trying again in {ACCEPT_RETRY_S:g} s" if victim is None else f"{victim} goes for it",
        )
        if victim is not None:
            victim.close()
            return
        listener = known(self._listener, "the listening socket")
        self._loop.remove_reader(listener)
        self._retry = self._loop.call_later(ACCEPT_RETRY_S, self._accept_again, listener)

    def _accept_again(self, listener: socket.socket) -> None:
        self._loop.add_reader(listener, self._accept)

    # ---- what becomes of a stranger

    def greet(self, head: bytes) -> ServerHandshake | Http2Greeting:
        """What a stranger that begins so is asked."""
        is_http2 = self._on_http2 is not None and HTTP2_PREFACE.startswith(head)
        return Http2Greeting(self._secret) if is_http2 else ServerHandshake(self._secret, self._port)

    def take(self, stranger: Stranger, handshake: ServerHandshake | Http2Greeting) -> None:
        """It is in."""
        self.unwatch(stranger)
        self._strangers.leave(stranger)
        try:
            tune_tcp(stranger.sock)
        except OSError:
            stranger.sock.close()  # gone already
            return
        if isinstance(handshake, ServerHandshake):
            self._on_client(stranger.sock, str(stranger))
        elif self._on_http2 is not None:
            self._on_http2(stranger.sock, handshake)

    def advance(self, stranger: Stranger, stage: Stage) -> None:
        self._end(self._strangers.advance(stranger, stage))

    def refuse(self, stranger: Stranger, reason: str) -> None:
        self._log.warning("refused %s: %s", stranger, reason)

    def dismiss(self, stranger: Stranger) -> None:
        """Sends one away, in silence."""
        self._strangers.leave(stranger)
        stranger.close()

    def unwatch(self, stranger: Stranger) -> None:
        if not stranger.is_gone:
            self._loop.remove_reader(stranger.sock.fileno())

    def _end(self, victim: Stranger | None) -> None:
        if victim is not None:
            self.refuse(victim, "there are too many clients that have not shown the secret")
            victim.close()

    # ---- time

    def _plan_sweep(self) -> None:
        end_s = self._strangers.next_end_s
        self._sweep = None if end_s is None else self._loop.call_at(end_s, self._sweep_now)

    def _sweep_now(self) -> None:
        for stranger in self._strangers.expired(self._loop.time()):
            self.refuse(stranger, f"it did not show the secret within {STAY_S:g} s")
            stranger.close()
        self._log.settle()
        self._plan_sweep()
