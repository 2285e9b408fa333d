"""Receives an object's bytes in a thread: a large one keeps a CPU busy, and the loop has others to serve.

The thread waits until the kernel has a slice whole (MSG_WAITALL). Woken for every few segments, as a loop is,
it takes about a third longer. The pages that a slice goes to are prepared just before, while the sender fills
the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Protocol

from ray_mono.common.threads import start
from ray_mono.object_manager.transfer_wire import WireError

_SLICE_BYTES = 256 << 10
_TIMEVAL = struct.Struct("@ll")


class Prepare(Protocol):
    """Makes memory[start : start + count] ready to be written. Called in the thread."""

    def __call__(self, start: int, count: int, /) -> None: ...


class BulkReceive(asyncio.Future[None]):
    """Done when `memory` is full or the peer has ended the connection: `received_bytes` says which.

    Raises WireError, OSError. The socket is the thread's until then. cancel() ends the connection, and
    returns when the thread writes no more.
    """

    def __init__(
        self,
        sock: socket.socket,
        memory: memoryview,
        timeout_s: float,
        prepare: Prepare,
        arrived: Callable[[int], None],
    ) -> None:
        """timeout_s: how long no byte may come (up to twice that passes before it is noticed). arrived(count)
        is called in the thread: so many bytes more are there. Raises OSError where no thread may be made: the
        socket is as before then."""
        super().__init__(loop=asyncio.get_running_loop())
        self.received_bytes = 0
        self._sock = sock
        self._memory = memory
        self._timeout_s = timeout_s
        self._prepare = prepare
        self._arrived = arrived
        self._is_stopping = False
        self._ended = threading.Event()
        seconds, microseconds = divmod(max(1, int(timeout_s * 1e6)), 1_000_000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(seconds, microseconds))
        sock.setblocking(True)
        try:
            start(threading.Thread(target=self._run, name="receive", daemon=True))
        except OSError:
            sock.setblocking(False)
            raise

    def cancel(self, msg: object = None) -> bool:
        if not self.done():
            self._is_stopping = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._ended.wait()  # for one slice at most
        return super().cancel(msg)

    def _run(self) -> None:
        error: Exception | None = None
        try:
            self._receive()
        except BlockingIOError:
            error = WireError(f"nothing came from the peer for {self._timeout_s:g} s")
        except Exception as failure:  # whoever awaits this has to hear of it
            error = failure
        self._ended.set()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self.get_loop().call_soon_threadsafe(self._finish, error)

    def _receive(self) -> None:
        memory = self._memory
        while self.received_bytes < len(memory) and not self._is_stopping:
            start = self.received_bytes
            part = memory[start : start + _SLICE_BYTES]
            self._prepare(start, len(part))
            count = self._sock.recv_into(part, 0, socket.MSG_WAITALL)
            if not count:
                break
            self.received_bytes += count
            self._arrived(count)

    def _finish(self, error: Exception | None) -> None:
        if self.done():
            return
        self._sock.setblocking(False)
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(None)
