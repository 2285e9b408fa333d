"""What both ends of a framed asyncio connection share: frames in, frames out, and one orderly end.

Writing. The first frame of a turn of the loop goes straight to the socket, since somebody may be waiting for
it; what follows in the same turn is collected and sent at once in the next. Between cork() and uncork()
everything is collected.

Reading. All connections of a thread read into one buffer. An asyncio.Protocol is given bytes, for which each
read allocates as much as it may bring: that is memory mapped and unmapped by malloc, which costs a service
some 20 µs a read, more than all else that a read does.

Memory. The transport tells above WRITE_HIGH_BYTES that the peer does not keep up (is_write_paused). What then
happens is the side's own affair: a server stops reading (framed_server), a client never may, since two sides
that both wait for the other to read wait for ever; it gives up at UNSENT_BYTES_MAX (framed_channel).
Incoming, a connection holds one frame that is under way and one read.

The end. For whatever reason it comes, _end() runs once:
first what the side itself does (_on_ended), then the on_close callbacks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import cast

from ray_mono.rpc.framing import Frame, FrameError, FrameParser

# The bound of a server's unsent answers per connection, beyond those of handlers that already run.
WRITE_HIGH_BYTES = 4 << 20
WRITE_LOW_BYTES = 1 << 20
# Collected frames are handed to the socket when there are this many bytes, without waiting for the turn's
# end.
COLLECTED_BYTES_MAX = 256 << 10
READ_BYTES = 256 << 10
# How long a closed connection may take to deliver what it already accepted.
LINGER_S = 5.0

logger = logging.getLogger(__name__)
_of_thread = threading.local()


class FramedConnection(asyncio.BufferedProtocol):
    """One connection, already authenticated. Lives in its loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = _NO_TRANSPORT
        self._parser = FrameParser()
        self._incoming = _incoming()
        self._collected: list[bytes] = []
        self._collected_bytes = 0
        # Whether somebody is going to call flush() soon.
        self._is_corked = False
        self.is_write_paused = False
        # Why the connection ended; empty while it lives.
        self._end_reason = ""
        self._close_callbacks: list[Callable[[str], None]] = []
        self._linger: asyncio.TimerHandle | None = None

    # ---- what a side does with it

    def _on_frames(self, frames: list[Frame]) -> None:
        """Frames arrived. A FrameError ends the connection."""
        raise NotImplementedError

    def _on_ended(self, reason: str) -> None:
        """The connection ended; before the on_close callbacks."""

    # ---- the surface

    @property
    def is_closed(self) -> bool:
        return bool(self._end_reason)

    def on_close(self, callback: Callable[[str], None]) -> None:
        """callback(reason) runs once, in the loop, when the connection ends for whatever reason (at once if
        it has).
        """
        if self._end_reason:
            callback(self._end_reason)
        else:
            self._close_callbacks.append(callback)

    def close(self) -> None:
        """Ends the connection from this side;
        what was sent before is still delivered, if the peer takes it within LINGER_S.
        """
        if self._end_reason:
            return
        self.flush()
        self._end("it was closed by this side")
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._linger = self._loop.call_later(LINGER_S, self._transport.abort)

    def abort(self, reason: str) -> None:
        """Ends the connection without delivering anything more."""
        self._end(reason)
        self._transport.abort()

    # ---- writing

    def send(self, frame: bytes) -> None:
        """Sends, or collects, one frame; drops it after the end."""
        if self._end_reason:
            return
        if self._is_corked:
            self._collected.append(frame)
            self._collected_bytes += len(frame)
            if self._collected_bytes > COLLECTED_BYTES_MAX:
                self.flush()
        else:
            self._is_corked = True
            self._loop.call_soon(self._on_turn_end)
            self._transport.write(frame)

    def flush(self) -> None:
        collected = self._collected
        if collected:
            self._transport.write(collected[0] if len(collected) == 1 else b"".join(collected))
            collected.clear()
            self._collected_bytes = 0

    def cork(self) -> bool:
        """Collects from here on; returns what uncork() must be given."""
        was_corked = self._is_corked
        self._is_corked = True
        return was_corked

    def uncork(self, was_corked: bool) -> None:
        self._is_corked = was_corked
        self.flush()

    def _on_turn_end(self) -> None:
        self._is_corked = False
        self.flush()

    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() + self._collected_bytes

    # ---- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._incoming

    def buffer_updated(self, nbytes: int) -> None:
        self.take(self._incoming[:nbytes])

    def take(self, data: bytes | memoryview) -> None:
        """What has come. `data` may be reused after it."""
        if self._end_reason:
            return
        try:
            self._on_frames(self._parser.feed(data))
        except FrameError as error:
            self.protocol_error(error)

    def protocol_error(self, error: FrameError) -> None:
        logger.warning("connection %s breaks the protocol: %s", self, error)
        self.abort(f"the peer broke the protocol: {error}")

    def pause_writing(self) -> None:
        self.is_write_paused = True

    def resume_writing(self) -> None:
        self.is_write_paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._end(f"it was lost: {exc}" if exc else "the peer ended it")

    def _end(self, reason: str) -> None:
        if self._end_reason:
            return
        self._end_reason = reason
        self._collected.clear()
        self._collected_bytes = 0
        self._on_ended(reason)
        callbacks, self._close_callbacks = self._close_callbacks, []
        for callback in callbacks:
            try:
                callback(reason)
            except Exception:
                # One servicer's mistake must not keep another's state alive.
                logger.exception("an on_close callback of connection %s failed", self)


def _incoming() -> memoryview:
    """Where this thread's connections read into, one after the other:
    nothing of one read is left there when the next begins.
    """
    incoming: memoryview | None = getattr(_of_thread, "incoming", None)
    if incoming is None:
        incoming = _of_thread.incoming = memoryview(bytearray(READ_BYTES))
    return incoming


class _NoTransport(asyncio.Transport):
    """Before connection_made and never written to: spares every send a test for None."""


_NO_TRANSPORT = _NoTransport()
