"""Connections of processes, ended by somebody outside: both ends see that the other one is gone, and both
live."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
import struct
from collections.abc import Iterator

import psutil

_PIDFD_GETFD = 438
_CREDENTIALS = struct.Struct("3i")
_libc = ctypes.CDLL(None, use_errno=True)


def end_connections(one: int, other: int) -> int:
    """Ends all between these two processes, given by pid. Returns how many there were. Raises PermissionError
    where this machine does not allow it."""
    count = 0
    theirs = {(each.laddr, each.raddr) for each in psutil.Process(other).net_connections("tcp")}
    for connection in _connections_of(one):
        with connection:
            if _leads_to(connection, other, theirs):
                connection.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


def end_one_connection(pid: int, rng: random.Random) -> None:
    """Ends any one of this process's, if it has some."""
    found = list(_connections_of(pid))
    if found:
        rng.choice(found).shutdown(socket.SHUT_RDWR)
    for connection in found:
        connection.close()


def _leads_to(connection: socket.socket, pid: int, theirs: set[object]) -> bool:
    if connection.family == socket.AF_UNIX:
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return bool(_CREDENTIALS.unpack(told)[0] == pid)
    try:
        return (connection.getpeername()[:2], connection.getsockname()[:2]) in theirs
    except OSError:  # it has ended
        return False


def _connections_of(pid: int) -> Iterator[socket.socket]:
    """Copies of its sockets that listeners have accepted, or that were connected to one."""
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            made = _socket(pid, pidfd, int(name))
            if made is not None:
                if _is_connection(made):
                    yield made
                else:
                    made.close()
    finally:
        os.close(pidfd)


def _socket(pid: int, pidfd: int, fd: int) -> socket.socket | None:
    try:
        if not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:"):
            return None
    except FileNotFoundError:
        return None
    copy = int(_libc.syscall(_PIDFD_GETFD, pidfd, fd, 0))
    if copy >= 0:
        return socket.socket(fileno=copy)
    number = ctypes.get_errno()
    if number in (errno.EBADF, errno.ESRCH):  # it, or its process, is gone
        return None
    raise OSError(number, os.strerror(number))


def _is_connection(made: socket.socket) -> bool:
    """Pairs, by which a process talks to its own children and threads, have no name at either end."""
    try:
        peer = made.getpeername()
    except OSError:
        return False
    return bool(made.type == socket.SOCK_STREAM and (peer or made.getsockname()))
