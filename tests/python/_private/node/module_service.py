"""A stand-in for a service in Python, which a reaper runs in a fork of itself: says what it is, and talks to
its twin over their link."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path


def descriptors() -> list[str]:
    """What is open. The folder that is read for it is gone when it is looked at."""
    paths = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sorted(os.readlink(path).partition(":")[0] for path in paths if os.path.islink(path))


def main() -> None:
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    if "--fail" in arguments:
        raise RuntimeError(arguments["--fail"])
    with socket.socket(fileno=int(arguments["--link-fd"])) as link:
        link.sendall(arguments["--say"].encode())
        heard = link.recv(100).decode()
    facts = {
        "heard": heard,
        "title": Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode(),
        "variable": os.environ.get("MODULE_SERVICE_TEST"),
        "outside": os.environ.get("OUTSIDE"),
        "parent": os.getppid(),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": descriptors(),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "pipes_break_writes": signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN,
    }
    ready_fd = int(arguments["--ready-fd"])
    os.write(ready_fd, json.dumps(facts).encode() + b"\n")
    os.close(ready_fd)
    signal.pause()


if __name__ == "__main__":
    main()
