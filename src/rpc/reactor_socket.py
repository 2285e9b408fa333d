"""One non-blocking socket on a reactor: out-buffer, frame parser, handshake.
What both ends of a framed connection share.

Everything runs under the reactor's lock. What may wait here: callers bound what they have in flight;
answers to a peer that does not read are bounded by OUT_BYTES_MAX, above which the connection is ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence

from ray_mono.common.our_bug import OUR_BUG, known
from ray_mono.rpc import auth, framing
from ray_mono.rpc.framing import END, HEADER, HEADER_SIZE, METHOD
from ray_mono.rpc.reactor import Reactor

logger = logging.getLogger(__name__)

# Below 128 KiB, from where on malloc maps what it gives: then each read, whatever its size, is mmap, mremap
# and munmap as well, which cost a call and its answer a quarter of their time.
READ_BYTES = 1 << 16
OUT_BYTES_MAX = 1 << 31
# Frames smaller than this are joined into one send.
JOIN_BYTES = 1 << 16
HELD_BACK_LOOK_S = 0.001
READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
# Linux: how many bytes of a TCP socket have not been sent once, as an int.
_SIOCOUTQNSD = 0x894B
_NOTHING = bytes(4)


class ReactorSocket:
    """One non-blocking socket with a parser and an out-buffer. Subclasses say what a frame means."""

    def __init__(self, reactor: Reactor, sock: socket.socket | None, peer: str) -> None:
        """sock: None where `_adopt` follows."""
        self.reactor = reactor
        self.peer = peer
        self.is_closed = False
        self._sock: socket.socket
        self._fd = -1
        self._is_tcp = False
        self._parser = framing.FrameParser()
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._is_dirty = False
        self._wants_out = False
        # Until the connection is up: a handshake, or a connect in progress.
        self._handshake: auth.ClientHandshake | auth.ServerHandshake | None = None
        self._connecting = False
        self._close_callbacks: list[Callable[[str], None]] = []
        if sock is not None:
            self._adopt(sock)

    def _adopt(self, sock: socket.socket) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._is_tcp = sock.family != socket.AF_UNIX
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._fd

    def on_close(self, callback: Callable[[str], None]) -> None:
        """callback(reason) once, under the lock."""
        if self.is_closed:
            callback("closed")
        else:
            self._close_callbacks.append(callback)

    def close(self, reason: str = "closed by this side") -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self.reactor.remove(self._fd)
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._sock.close()
        self._out.clear()
        self._out_bytes = 0
        self._ended(reason)
        callbacks, self._close_callbacks = self._close_callbacks, []
        for callback in callbacks:
            try:
                callback(reason)
            except Exception:
                logger.exception("a handler of the end of a connection failed; %s", OUR_BUG)

    def abandon(self) -> None:
        """In a fork: the connection is the parent's."""
        self.is_closed = True
        self._out.clear()
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._sock.close()

    def _ended(self, reason: str) -> None:
        """For subclasses: the connection is over."""

    def _take(self, frame: framing.Frame) -> None:
        raise NotImplementedError

    # ---- sending

    def write(self, data: bytes, rings: bool = True) -> None:
        """Buffers; the reactor flushes. Who says rings=False sees to that: Reactor.mark_dirty."""
        if self.is_closed:
            return
        self._out.append(data)
        self._out_bytes += len(data)
        if not self._is_dirty:
            self._is_dirty = True
            self.reactor.mark_dirty(self, rings)
        if self._out_bytes > OUT_BYTES_MAX:
            self.close(f"{self.peer} reads too slowly: {self._out_bytes} bytes wait for it")

    def send(self, data: bytes) -> None:
        """Sends now, behind what was written before, what the peer takes now; the rest as it takes it."""
        sent = 0
        if not (self._out or self._connecting or self._handshake is not None or self.is_closed):
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                self._takes_no_more()
                return
            except OSError as error:
                self.close(f"{self.peer}: {error.strerror or error}")
                return
            if sent == len(data):
                return
        # A view: what is left of a large message is not copied at every attempt.
        self.write(data if sent == 0 else memoryview(data)[sent:], rings=False)  # type: ignore[arg-type]
        self.flush()

    @property
    def has_unsent(self) -> bool:
        """Whether something that was written has not left this machine. What TCP holds back counts: if this
        process died now, and had not read all that its peer sent, that would be thrown away.
        """
        if self._out or not self._is_tcp or self.is_closed:
            return bool(self._out)
        try:
            return fcntl.ioctl(self._fd, _SIOCOUTQNSD, _NOTHING) != _NOTHING
        except OSError:  # closed meanwhile: not everybody who asks has the lock
            return False

    def flush(self) -> None:
        """Sends what was written, as far as the peer takes it."""
        self._is_dirty = False
        if self._connecting or self._handshake is not None:
            return
        out = self._out
        try:
            while out:
                data = out.popleft()
                if out and len(data) < JOIN_BYTES:
                    parts = [data]
                    size = len(data)
                    while out and size < JOIN_BYTES:
                        data = out.popleft()
                        parts.append(data)
                        size += len(data)
                    data = b"".join(parts)
                sent = self._sock.send(data)
                self._out_bytes -= sent
                if sent < len(data):
                    out.appendleft(memoryview(data)[sent:])  # type: ignore[arg-type]
        except BlockingIOError:
            out.appendleft(data)
        except (BrokenPipeError, ConnectionResetError):
            self._takes_no_more()
        except OSError as error:
            self.close(f"{self.peer}: {error.strerror or error}")
            return
        if bool(out) != self._wants_out:
            self._wants_out = bool(out)
            self.reactor.modify(self, READABLE | WRITABLE if out else READABLE)

    def drain(self, timeout_s: float) -> bool:
        """Waits until all that was written has left, or the connection is over. False: the peer did not take
        it in time. Without the lock."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            with self.reactor.lock:
                self.flush()
                if not self.has_unsent:
                    return True
                poll = select.poll()
                if self._out:
                    poll.register(self._fd, select.POLLOUT)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            # Nobody is told when TCP has sent what it held back.
            poll.poll(1000 * (left_s if self._out else min(left_s, HELD_BACK_LOOK_S)))

    def _takes_no_more(self) -> None:
        """The peer is gone. Answers that it sent before may not be read yet; the end of the connection, which
        closes this one, comes behind them."""
        self._out.clear()
        self._out_bytes = 0

    # ---- receiving

    def on_events(self, events: int) -> None:
        if self._connecting:
            self._on_connected()
            return
        if events & WRITABLE:
            if events != WRITABLE:
                self.on_events(events & ~WRITABLE)
            if not self.is_closed:
                self.flush()
            return
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"{self.peer}: {error.strerror or error}")
            return
        if not data:
            self._lose(f"{self.peer} ended the connection")
            return
        if self._handshake is not None:
            data = self._shake(data)
        frames: Sequence[framing.Frame] = ()
        if len(data) >= HEADER_SIZE and not self._parser.is_inside_frame:
            length, kind, number, call_id = HEADER.unpack_from(data)
            if length == len(data) - 4 and METHOD <= kind <= END:
                # One whole frame, as most reads bring: the parser says the same.
                frames = ((kind, number, call_id, data[HEADER_SIZE:]),)
        if not frames:
            try:
                frames = self._parser.feed(data)
            except framing.FrameError as error:
                self.close(f"{self.peer}: {error}")
                return
        for frame in frames:
            try:
                self._take(frame)
            except framing.FrameError as error:
                self.close(f"{self.peer}: {error}")
            except Exception:
                # The frames behind it are others' answers.
                logger.exception("a handler failed; %s", OUR_BUG)
            if self.is_closed:
                return

    def _lose(self, reason: str) -> None:
        """The peer is gone."""
        self.close(reason)

    def _shake(self, data: bytes) -> bytes:
        handshake = known(self._handshake, "the handshake")
        answer = handshake.feed(data)
        if answer:
            # The handshake's few bytes always fit into an empty socket buffer.
            with contextlib.suppress(OSError):
                self._sock.send(answer)
        if handshake.state is auth.HandshakeState.PENDING:
            return b""
        if handshake.state is auth.HandshakeState.REFUSED:
            self.close(f"refused: {handshake.reason}")
            return b""
        rest = handshake.rest
        self._handshake = None
        self.flush()
        return rest

    def _on_connected(self) -> None:
        self._connected(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _connected(self, error: int) -> None:
        if error:
            how = self._lose if error == errno.ECONNRESET else self.close
            how(f"cannot connect to {self.peer}: {os.strerror(error)}")
            return
        self._connecting = False
        self.reactor.modify(self, READABLE)
        if isinstance(self._handshake, auth.ClientHandshake):
            with contextlib.suppress(OSError):
                self._sock.send(self._handshake.start())
        else:
            self.flush()
