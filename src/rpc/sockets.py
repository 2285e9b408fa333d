"""Addresses and the sockets behind them, for every transport:
"unix:/path" and "host:port" ("[::1]:80" for IPv6).

The listening functions return bound, listening, non-blocking sockets; who calls them owns them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass

# The kernel's sun_path is 108 bytes with the terminating zero.
UNIX_PATH_BYTES_MAX = 107
# A thousand nodes may come back to a restarted head at once, while strangers come too.
# (The kernel may have a lower limit of its own.)
LISTEN_BACKLOG = 4096
# Where there was no descriptor for a connection: so long until the listener looks again.
ACCEPT_RETRY_S = 0.5
# A peer whose machine is gone is noticed after 30 + 3 * 10 s, also on a connection that says nothing.
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3
UNACKNOWLEDGED_MAX_S = 60


@dataclass(frozen=True)
class UnixAddress:
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class TcpAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(address: str) -> UnixAddress | TcpAddress:
    """Raises ValueError for a string that is neither form."""
    if address.startswith("unix:") and len(address) > len("unix:"):
        return UnixAddress(address.removeprefix("unix:"))
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not colon or not port.isdecimal() or int(port) > 65535 or host == "unix":
        raise ValueError(f'an address is "unix:/path" or "host:port", got {address!r}')
    return TcpAddress(host, int(port))


def why_not(error: OSError) -> str:
    """In the system's words. asyncio's own, for a connection, name the address once more."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or str(error)


def tune_tcp(sock: socket.socket) -> None:
    """For both ends of a TCP connection: no Nagle delay, and an end for peers that vanished."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    # No probes are sent while data is unacknowledged: without this, that lasts a quarter of an hour.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MAX_S * 1000)


def speaks_first(sock: socket.socket) -> None:
    """For the connecting end, before it connects:
    the end of TCP's own handshake waits a moment for our first bytes and goes with them.

    So a listener sees us and our words at once, and not a silent stranger among others, of whom it keeps few
    (strangers).
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)


def listen_unix(path: str) -> socket.socket:
    """Listens at `path`, which only this user can connect to (0600).

    A socket file that nobody answers at is a dead process's and is replaced. Raises OSError: EADDRINUSE where
    somebody answers, or where the file is no socket; ENAMETOOLONG above UNIX_PATH_BYTES_MAX; otherwise as
    bind does.
    """
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise OSError(
            errno.ENAMETOOLONG, f"a Unix socket's path has at most {UNIX_PATH_BYTES_MAX} bytes", path
        )
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Linux makes the file with the socket's own mode, so that it is never there with another one.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        sock.listen(LISTEN_BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen there: {error.strerror}", path) from error
    return sock


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EADDRINUSE, "cannot listen there: the file is no socket", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except BlockingIOError:
            pass  # somebody listens, and is so busy that the queue is full
    raise OSError(errno.EADDRINUSE, "cannot listen there: another process answers", path)


def listen_tcp(host: str, port: int) -> socket.socket:
    """Listens on one address of this machine; port 0 is any.
    Raises OSError naming the address, as getaddrinfo and bind do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {TcpAddress(host, port)}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(LISTEN_BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {TcpAddress(host, port)}: {error.strerror}") from error
    return sock
