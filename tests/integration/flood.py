"""Strangers at every TCP port of a real cluster: how much they cost, how long they stay, and whether a
rightful client still gets in.

By hand, with figures:    python -m tests.integration.flood --connections 10000
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from ray_mono.rpc.framed import FramedTransport
from tests.integration.listeners import Listener
from tests.rpc.http2_calls import END_HEADERS, HEADERS, RST_STREAM, call, frame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# What a stranger says, by the name of its kind.
KINDS = {
    "silent": b"",
    "half a hello": b"RMF1" + b"n" * 8,
    "hello": b"RMF1" + b"n" * 16,
    "PRI": b"PRI ",
    "http2": PREFACE,
    "http2 with settings": PREFACE + bytes.fromhex("000000040000000000"),
    "http2 call": PREFACE + bytes.fromhex("000000040000000000") + call("wrong"),
    "http2 headers": PREFACE + frame(HEADERS, END_HEADERS, 1, b"\xbe" * 12000),
    "http2 resets": PREFACE
    + b"".join(call("wrong", 2 * n + 1) + frame(RST_STREAM, 0, 2 * n + 1, bytes(4)) for n in range(500)),
    "wrong proof": b"RMF1" + b"n" * 16 + b"p" * 32,
    "garbage": b"\x00" * 64,
}
GONE_TIMEOUT_S = 30.0
# A peer may connect meanwhile.
OTHER_DESCRIPTORS = 10
SAMPLE_PERIOD_S = 0.02


@dataclass
class Figures:
    """What one flood cost the process that it came to."""

    opened: int
    gone_s: float
    """Between the last connection's opening and the last one's end."""
    memory_bytes: int
    descriptors: int
    """Both at most, above what there was before."""
    descriptors_left: int
    client_s: float
    """The slowest of the rightful clients that came meanwhile."""
    log_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.opened} opened, gone after {self.gone_s:.1f} s, +{self.memory_bytes / 2**20:.1f} MiB,"
            f" +{self.descriptors} descriptors (left: {self.descriptors_left}),"
            f" a client in {self.client_s:.3f} s, log +{self.log_bytes} bytes"
        )


def flood(listener: Listener, kind: str, connections: int, secret: str, logs: Path) -> Figures:
    """Strangers from another process, as fast as they can, and one rightful client after the other."""
    process = psutil.Process(listener.pid)
    log_bytes = _size_of(logs)
    with _watched(process) as watch:
        program = [
            sys.executable,
            "-m",
            "tests.integration.flood",
            "--strangers",
            kind,
            "--at",
            listener.address,
        ]
        attacker = subprocess.Popen(
            [*program, "--connections", str(connections)], stdout=subprocess.PIPE, text=True
        )
        slowest_s = 0.0
        while attacker.poll() is None:
            slowest_s = max(slowest_s, asyncio.run(_time_client(listener.address, secret)))
        assert attacker.stdout is not None and attacker.returncode == 0
        opened, gone_s = json.loads(attacker.stdout.read())
    return Figures(
        opened,
        gone_s,
        watch.memory_bytes,
        watch.descriptors,
        watch.descriptors_left(),
        slowest_s,
        _size_of(logs) - log_bytes,
    )


async def _time_client(address: str, secret: str) -> float:
    start_s = time.monotonic()
    (await FramedTransport(secret).connect(address, GONE_TIMEOUT_S)).close()
    return time.monotonic() - start_s


def _size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


class _Watch:
    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._memory_bytes, self._descriptors = self._look()
        self.memory_bytes = self.descriptors = 0
        self.is_over = threading.Event()

    def _look(self) -> tuple[int, int]:
        return self._process.memory_info().rss, self._process.num_fds()

    def run(self) -> None:
        while not self.is_over.wait(SAMPLE_PERIOD_S):
            memory_bytes, descriptors = self._look()
            self.memory_bytes = max(self.memory_bytes, memory_bytes - self._memory_bytes)
            self.descriptors = max(self.descriptors, descriptors - self._descriptors)

    def descriptors_left(self) -> int:
        """Above those of the beginning, once no more go."""
        deadline_s = time.monotonic() + GONE_TIMEOUT_S
        while (
            left := self._look()[1] - self._descriptors
        ) > OTHER_DESCRIPTORS and time.monotonic() < deadline_s:
            time.sleep(SAMPLE_PERIOD_S)
        return left


@contextlib.contextmanager
def _watched(process: psutil.Process) -> Iterator[_Watch]:
    watch = _Watch(process)
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield watch
    finally:
        watch.is_over.set()
        thread.join()


# ---------------------------------------------------------------- the strangers' process


def be_strangers(address: str, data: bytes, connections: int) -> tuple[int, float]:
    """Opens them all and leaves them open; returns (how many could be opened, how long after that the last
    one was ended)."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, _, port = address.rpartition(":")
    epoll, open_sockets = select.epoll(), {}
    opened = 0

    def turn(timeout_s: float) -> None:
        nonlocal opened
        for fd, events in epoll.poll(timeout_s):
            sock = open_sockets[fd]
            if events & select.EPOLLOUT and not events & (select.EPOLLERR | select.EPOLLHUP):
                opened += 1
                with contextlib.suppress(OSError):
                    sock.send(data)
                epoll.modify(fd, select.EPOLLIN)
                continue
            try:
                if sock.recv(65536):
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            epoll.unregister(fd)
            del open_sockets[fd]
            sock.close()

    for number in range(connections):
        sock = socket.socket()
        sock.setblocking(False)
        error = sock.connect_ex((host, int(port)))
        assert error in (0, errno.EINPROGRESS), os.strerror(error)
        open_sockets[sock.fileno()] = sock
        epoll.register(sock, select.EPOLLOUT)
        if number % 100 == 99:
            turn(0)
    deadline_s = time.monotonic() + GONE_TIMEOUT_S
    last_opening_s, seen = time.monotonic(), opened
    while open_sockets and time.monotonic() < deadline_s:
        turn(0.1)
        if opened > seen:
            last_opening_s, seen = time.monotonic(), opened
    assert not open_sockets, f"{len(open_sockets)} strangers are still there"
    return opened, time.monotonic() - last_opening_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument(
        "--strangers", metavar="KIND", help="only be these strangers (for the program itself)"
    )
    parser.add_argument("--at", metavar="HOST:PORT", help="where they go")
    arguments = parser.parse_args()
    if arguments.strangers:
        print(json.dumps(be_strangers(arguments.at, KINDS[arguments.strangers], arguments.connections)))
        return
    import ray_mono as ray
    from tests.integration.clusters import CommandLineCluster
    from tests.integration.listeners import tcp_listeners

    with tempfile.TemporaryDirectory(prefix="rm-", dir="/tmp") as base:
        os.environ["RAY_MONO_TMPDIR"] = base
        cluster = CommandLineCluster(Path(base), num_cpus=1)
        try:
            ray.init(address=cluster.address)
            ray.get(ray.remote(lambda: None).remote(), timeout=60)
            # Not this process, which measures: workers listen as it does.
            for listener in [one for one in tcp_listeners(Path(base)) if one.pid != os.getpid()]:
                print(listener.process[:110])
                for kind in KINDS:
                    logs = cluster.session_dir / "logs"
                    print(
                        f"  {kind:>20}: {flood(listener, kind, arguments.connections, cluster.secret, logs)}",
                        flush=True,
                    )
        finally:
            ray.shutdown()
            cluster.stop()


if __name__ == "__main__":
    main()
