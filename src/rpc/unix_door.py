"""The door of a Unix listener on asyncio: the kernel says who knocks.

asyncio's own, out of descriptors, tries as often as its backlog is long, logs each time, and plans as many
further attempts: a process that has none left would fill the disk. This one waits, and its log is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from ray_mono.common.limited_log import LimitedLog
from ray_mono.common.our_bug import known
from ray_mono.rpc.auth import PeerRefusedError, check_peer_uid, peer_of
from ray_mono.rpc.sockets import ACCEPT_RETRY_S

ACCEPTS_PER_TURN = 32

logger = logging.getLogger(__name__)


class UnixDoor:
    """One listening socket. Belongs to the loop's thread."""

    def __init__(self, on_client: Callable[[socket.socket, str], None]) -> None:
        """on_client(socket, peer) is given who came in."""
        self._on_client = on_client
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._log = LimitedLog(logger, self._loop.time)

    def open(self, listener: socket.socket) -> None:
        """Takes a listening, non-blocking socket over; once."""
        self._listener = listener
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        listener = known(self._listener, "the listening socket")
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # gone already
            except OSError as error:
                self._cannot_accept(listener, error)
                return
            self._let_in(sock)

    def _let_in(self, sock: socket.socket) -> None:
        try:
            sock.setblocking(False)
            check_peer_uid(sock)
            peer = "unix:pid={},uid={}".format(*peer_of(sock))
        except PeerRefusedError as error:
            self._log.warning("refused: %s", error)
            sock.close()
        except OSError:
            sock.close()  # gone already
        else:
            self._on_client(sock, peer)

    def _cannot_accept(self, listener: socket.socket, error: OSError) -> None:
        self._log.warning("cannot accept a connection: %s", error.strerror)
        self._loop.remove_reader(listener)
        self._retry = self._loop.call_later(ACCEPT_RETRY_S, self._loop.add_reader, listener, self._accept)
