"""Every socket that a process of a session listens on, asked of the kernel, so that a new one is found from
its first day."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import processes_of
from tests.integration.titles import title_of


@dataclass(frozen=True)
class Listener:
    """One TCP socket that listens."""

    pid: int
    process: str
    host: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def session_processes(base: Path) -> list[psutil.Process]:
    """Every process of the sessions below `base`, and this one, which is their driver."""
    return [psutil.Process(), *processes_of(base, set())]


def tcp_listeners(base: Path) -> list[Listener]:
    """One for each address that any of them listens at."""
    found = {}
    for process in session_processes(base):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr] = Listener(process.pid, _title(process), *connection.laddr)
    return list(found.values())


def unix_listeners(base: Path) -> dict[str, str]:
    """The path of each Unix socket that any of them listens on, and the process; a socket without a name has
    the path ""."""
    inodes = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path; of the flags, 10000 says that it listens.
        fields = line.split(maxsplit=7)
        if fields[3] == "00010000":
            inodes[fields[6]] = fields[7] if len(fields) > 7 else ""
    found = {}
    for process in session_processes(base):
        try:
            fds = os.listdir(f"/proc/{process.pid}/fd")
        except (FileNotFoundError, ProcessLookupError):
            continue
        for fd in fds:
            try:
                target = os.readlink(f"/proc/{process.pid}/fd/{fd}")
            except (FileNotFoundError, ProcessLookupError):
                continue
            inode = target.removeprefix("socket:[").removesuffix("]")
            if inode in inodes:
                found[inodes[inode]] = _title(process)
    return found


def _title(process: psutil.Process) -> str:
    return f"{process.pid} {title_of(process).strip()}"
