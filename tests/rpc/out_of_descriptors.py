"""A process that has no descriptor left, for as long as a test says."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any


def no_descriptor() -> OSError:
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class OutOfDescriptors:
    """A listening socket whose accept fails `fails` times."""

    def __init__(self, sock: socket.socket, fails: int = 0) -> None:
        self._sock = sock
        self.fails = fails
        self.fileno, self.close, self.getsockname = sock.fileno, sock.close, sock.getsockname

    def accept(self) -> Any:
        if self.fails:
            self.fails -= 1
            raise no_descriptor()
        return self._sock.accept()


class SocketModule:
    """Stands for the module `socket`; making a socket fails `fails` times."""

    def __init__(self, fails: int) -> None:
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    def socket(self, *arguments: Any) -> socket.socket:
        if self.fails:
            self.fails -= 1
            raise no_descriptor()
        return socket.socket(*arguments)
