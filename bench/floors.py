"""What this machine can do at best: plain Python's pipes, sockets, copies and forks, without any runtime.

No line of a runtime can pass its floor by more than a trick; how near it comes says what is left to win. Each
is measured by the same supervisor as the runtimes, in a process of its own.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ray_mono.microbenchmark import calls, nodes, objects, start
from ray_mono.microbenchmark.line import Bench, Group, Line, Unit
from ray_mono.microbenchmark.supervisor import Outcome, Side, Supervisor
from ray_mono.microbenchmark.timing import repeated_seconds, seconds

FLOORS = Group("floors")
GROUPS = [FLOORS]
SIDE = Side(
    "floor",
    "bench.floors",
    catalogue="bench.floors",
    catalogue_path=str(Path(__file__).absolute().parent.parent),
)

# About what a call and its reply take on the wire.
MESSAGE_BYTES = 150
IN_FLIGHT = 1000
BURST = 100
SENT_BYTES = 4 << 20
RECEIVED_BYTES = 256 << 10
PIPE = "floor: multiprocessing pipe round trip"
SHARED_MEMORY = "/dev/shm"


def _fork(child: Callable[[], object]) -> int:
    """Runs it in a new process, which ends with it. Returns the pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        child()
    finally:
        os._exit(0)


def _echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def _receive_all(sock: socket.socket, count: int) -> None:
    while count:
        received = len(sock.recv(1 << 16))
        if not received:
            raise ConnectionError("the echo ended")
        count -= received


def _with_echo(measure: Callable[[socket.socket], None]) -> None:
    here, there = socket.socketpair()
    with here, there:

        def answer() -> None:
            here.close()
            _echo(there)

        pid = _fork(answer)
        there.close()
        measure(here)
        here.close()
        os.waitpid(pid, 0)


@FLOORS.workload(Line(calls.ECHO), Line(calls.ECHO_ONE_CPU), Line(PIPE))
def round_trips(bench: Bench) -> None:
    """One at a time. Where the two processes run decides what a plain echo takes: ten times as long when the
    other CPU has to be woken. On one CPU nothing sleeps, so that the figure is the same on a machine that is
    idle and on one that is not."""
    message = bytes(MESSAGE_BYTES)

    def measure(name: str, sock: socket.socket) -> None:
        def once() -> None:
            sock.sendall(message)
            _receive_all(sock, MESSAGE_BYTES)

        bench.report_rate(name, once)

    _with_echo(partial(measure, calls.ECHO))
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    _with_echo(partial(measure, calls.ECHO_ONE_CPU))
    os.sched_setaffinity(0, cpus)
    _measure_pipe(bench)


@FLOORS.workload(Line(calls.ECHO_PIPELINED))
def socket_echo_pipelined(bench: Bench) -> None:
    """Messages are sent one by one, as a caller makes them; the answers come together."""
    message = bytes(MESSAGE_BYTES)

    def measure(sock: socket.socket) -> None:
        def once() -> None:
            received = 0
            for number in range(IN_FLIGHT):
                sock.sendall(message)
                # Both would wait for room otherwise, each for the other to read.
                if number % BURST == BURST - 1:
                    with contextlib.suppress(BlockingIOError):
                        received += len(sock.recv(1 << 16, socket.MSG_DONTWAIT))
            _receive_all(sock, IN_FLIGHT * MESSAGE_BYTES - received)

        bench.report_rate(calls.ECHO_PIPELINED, once, IN_FLIGHT)

    _with_echo(measure)


def _measure_pipe(bench: Bench) -> None:
    """multiprocessing's own: pickles and unpickles a call and its answer."""
    here, there = multiprocessing.Pipe()

    def answer() -> None:
        here.close()
        with contextlib.suppress(EOFError):
            while True:
                there.send((there.recv(), b"ok"))

    pid = _fork(answer)
    there.close()

    def once() -> None:
        here.send(("small_value", (), {}))
        here.recv()

    bench.report_rate(PIPE, once)
    here.close()
    os.waitpid(pid, 0)


def _mapped(size_bytes: int) -> np.ndarray:
    """Shared memory that nobody has touched."""
    with tempfile.TemporaryFile(dir=SHARED_MEMORY) as file:
        file.truncate(size_bytes)
        return np.frombuffer(mmap.mmap(file.fileno(), size_bytes), np.uint8)


@FLOORS.workload(Line(calls.MEMCPY_800))
def copy_zeros(bench: Bench) -> None:
    """As the line that it is the floor of, which counts gigabytes: of zeros that nobody wrote, so that
    reading them costs little."""
    source = np.zeros(800 << 20, np.uint8)
    target = _mapped(len(source))
    bench.report_rate(calls.MEMCPY_800, lambda: np.copyto(target, source), calls.LARGE_PUT_GB)


def _register_copies(name: str, size_bytes: int) -> None:
    warm = Line(objects.memcpy_floor(name, "warm"), Unit.GB_PER_SECOND)
    cold = Line(objects.memcpy_floor(name, "cold"), Unit.GB_PER_SECOND)

    @FLOORS.workload(warm, cold)
    def copy(bench: Bench) -> None:
        source = np.ones(size_bytes, np.uint8)
        first = [size_bytes / 1e9 / seconds(lambda: np.copyto(_mapped(size_bytes), source)) for _ in range(3)]
        bench.report(cold.name, first)
        target = _mapped(size_bytes)
        bench.report_rate(warm.name, lambda: np.copyto(target, source), size_bytes / 1e9)


for _name, _size_bytes in objects.SIZES.items():
    _register_copies(_name, _size_bytes)


@FLOORS.workload(Line(nodes.TCP_WARM, Unit.GB_PER_SECOND), Line(nodes.TCP_COLD, Unit.GB_PER_SECOND))
def tcp_stream(bench: Bench) -> None:
    """Between two processes on loopback, from and into mapped shared memory, in slices that measured best.
    (sendfile from the shared memory saves the sender a copy and costs the receiver more: what the sender has
    just copied is in the cache.)"""
    size_bytes = nodes.OBJECT_BYTES
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def send() -> None:
            source = _mapped(size_bytes)
            source[:] = 1
            with socket.create_connection(listener.getsockname()) as sock:
                while sock.recv(1):
                    for start in range(0, size_bytes, SENT_BYTES):
                        sock.sendall(source.data[start : start + SENT_BYTES])

        pid = _fork(send)
        peer, _ = listener.accept()
    with peer:

        def receive(target: np.ndarray) -> None:
            peer.sendall(b"1")
            view = target.data
            while view:
                view = view[peer.recv_into(view[:RECEIVED_BYTES], 0, socket.MSG_WAITALL) :]

        bench.report(
            nodes.TCP_COLD,
            [size_bytes / 1e9 / seconds(lambda: receive(_mapped(size_bytes))) for _ in range(3)],
        )
        target = _mapped(size_bytes)
        bench.report_rate(nodes.TCP_WARM, lambda: receive(target), size_bytes / 1e9)
    os.waitpid(pid, 0)


def _register_forks(count: int) -> None:
    name = start.forks_floor(count)

    @FLOORS.workload(Line(name, Unit.SECONDS))
    def forks(bench: Bench) -> None:
        """All have said that they run."""

        def once() -> None:
            read_fd, write_fd = os.pipe()
            pids = [_fork(lambda: os.write(write_fd, b"1")) for _ in range(count)]
            said = 0
            while said < count:
                said += len(os.read(read_fd, count))
            for pid in pids:
                os.waitpid(pid, 0)
            os.close(read_fd)
            os.close(write_fd)

        bench.report(name, repeated_seconds(once, bench.duration_s))


for _count in start.ACTOR_COUNTS:
    _register_forks(_count)


@FLOORS.workload(Line(start.PYTHON_START, Unit.SECONDS))
def python_start(bench: Bench) -> None:
    """An interpreter that does nothing."""

    def once() -> None:
        subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)

    bench.report(start.PYTHON_START, repeated_seconds(once, bench.duration_s))


# ---- for those who measure against them


def measure(runner: Supervisor, names: Collection[str]) -> Iterator[Outcome]:
    """Those of these names, once each."""
    workloads = [
        workload for workload in FLOORS.workloads if any(line.name in names for line in workload.lines)
    ]
    if workloads:
        yield from runner.run(SIDE, replace(FLOORS, workloads=workloads))
