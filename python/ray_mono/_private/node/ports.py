"""TCP ports of a node's services: chosen before the services start, so that all of them can start at once.

A bound socket that never listens reserves the port. Linux lets another socket with SO_REUSEADDR bind the same
port as long as none listens: so a server takes the reservation over. Meanwhile the kernel gives the port to
nobody who asks for any.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator


class PortInUseError(OSError):
    """A port that was asked for by number is taken. The message says by whom, where that can be known."""


def reserve_port(host: str, port: int = 0) -> socket.socket:
    """A socket that holds the port until it is closed; port 0: a free one (ask getsockname).

    Raises PortInUseError, and OSError where host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = socket.socket(family, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((host, port))
    except OSError as error:
        holder.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                errno.EADDRINUSE, f"port {port} of {host} is in use{_by_whom(port)}"
            ) from None
        if error.errno == errno.EACCES:
            raise OSError(error.errno, f"port {port} of {host} may only be used by root") from None
        raise OSError(error.errno, f"cannot use port {port} of {host}: {error.strerror}") from None
    return holder


def _by_whom(port: int) -> str:
    """ " by ..." for an error message; empty where the process cannot be seen (another user's)."""
    inodes = set(_listening_inodes(port))
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            for fd in os.listdir(f"/proc/{name}/fd"):
                if os.readlink(f"/proc/{name}/fd/{fd}") in inodes:
                    with open(f"/proc/{name}/cmdline", errors="replace") as file:
                        return f" by process {name} ({file.read().replace(chr(0), ' ').strip()[:200]})"
        except OSError:
            continue
    return ""


def _listening_inodes(port: int) -> Iterator[str]:
    """The sockets that listen on the port, as /proc/<pid>/fd shows them."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                rows = file.read().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{columns[9]}]"
