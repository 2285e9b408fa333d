"""Clusters that the command line makes on this machine, node by node, and questions to their parts from
outside.

A node is known by its NodeRecord: what its services answered when they started stands in the session
directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import ray_mono as ray
from ray_mono._private.node.session import NodeRecord
from ray_mono.protobuf import common_pb2, object_manager_pb2
from ray_mono.protobuf.object_manager_rpc import ObjectStoreServiceAsyncStub
from ray_mono.rpc.framed import FramedTransport

COMMAND_TIMEOUT_S = 90.0
CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Done:
    """A program that has ended."""

    status: int
    out: str
    error: str


def run_command(*arguments: str) -> Done:
    """Runs `ray-mono ARGUMENTS`; returns when it has ended."""
    return run_python("-m", "ray_mono.scripts", *arguments)


def run_python(*arguments: str) -> Done:
    """Runs `python ARGUMENTS`, which can import what this process can; returns when it has ended."""
    return _run([sys.executable, *arguments])


def _run(command: Sequence[str]) -> Done:
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class CommandLineCluster:
    """A cluster on loopback, and what it is made of."""

    def __init__(self, base: Path, node_ip_address: str | None = "127.0.0.1", **head: Any) -> None:
        """base: RAY_MONO_TMPDIR. node_ip_address: None is what `start` takes by itself. head: options of
        `start`, with _ for -; values other than texts go as JSON."""
        self._base = base
        if node_ip_address is not None:
            head["node_ip_address"] = node_ip_address
        self.head = self._start("--head", "--port=0", *_options(head))
        self.address = self.head.gcs_address
        self.session_dir = Path(self.head.session_dir)

    def add_node(self, **options: Any) -> NodeRecord:
        return self._start(f"--address={self.address}", *_options(options))

    def remove_node(self, node: NodeRecord) -> None:
        """Ends one node in order, as `stop` does on a machine of its own."""
        reaper = psutil.Process(node.reaper_pid)
        reaper.terminate()
        reaper.wait(COMMAND_TIMEOUT_S)

    def _start(self, *arguments: str) -> NodeRecord:
        return _started(self._base, run_command("start", *arguments))

    @property
    def secret(self) -> str:
        return (self.session_dir / "auth_token").read_text().strip()

    def stats(self, node: NodeRecord) -> object_manager_pb2.StoreStats:
        """Of a node's store, asked on its own socket."""
        return ask_store(node.store_socket)

    def stop(self) -> None:
        done = run_command("stop")
        assert done.status == 0, done.out + done.error


@contextlib.contextmanager
def driven_cluster(base: Path, **head: Any) -> Iterator[CommandLineCluster]:
    """A CommandLineCluster for drivers in this process, which leave before it stops."""
    cluster = CommandLineCluster(base, **head)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.stop()


def join_cluster(base: Path, address: str, before: Sequence[str] = (), **options: Any) -> NodeRecord:
    """Adds a node to a cluster of this machine. before: what goes before the command. The rest is as for
    CommandLineCluster."""
    start = ["-m", "ray_mono.scripts", "start", f"--address={address}", *_options(options)]
    return _started(base, _run([*before, sys.executable, *start]))


def _started(base: Path, done: Done) -> NodeRecord:
    assert done.status == 0, done.out + done.error
    shown = re.search(r"\(node (\w+):", done.out)
    assert shown, done.out
    (path,) = base.glob(f"session_*/nodes/{shown[1]}*.json")
    return NodeRecord.read(path)


def _options(options: dict[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"--{name.replace('_', '-')}={text}"


def ask_store(socket_path: str) -> object_manager_pb2.StoreStats:
    """GetStats of the object manager at a Unix socket."""

    async def ask() -> object_manager_pb2.StoreStats:
        channel = await FramedTransport("").connect(f"unix:{socket_path}", CALL_TIMEOUT_S)
        try:
            stub = ObjectStoreServiceAsyncStub(channel)
            return await stub.GetStats(common_pb2.Empty(), timeout_s=CALL_TIMEOUT_S)
        finally:
            channel.close()

    return asyncio.run(ask())


def service_pid(node: NodeRecord, service: str) -> int:
    """service: gcs_server, object_manager or raylet."""
    return int(node.services[service]["pid"])


def processes_of_node(node: NodeRecord) -> list[psutil.Process]:
    """Its reaper and all that lives below it."""
    reaper = psutil.Process(node.reaper_pid)
    return [reaper, *reaper.children(recursive=True)]


def runs(process: psutil.Process) -> bool:
    """It has not ended, whether or not its parent has asked."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def signal_all(processes: Iterable[psutil.Process], signum: signal.Signals) -> None:
    """To those that have not ended meanwhile: some end because of others, or because they are idle."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signum)


def mapped_files(pid: int) -> set[str]:
    """Paths of the files that a process has mapped; empty where it has ended."""
    try:
        text = Path(f"/proc/{pid}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {fields[5] for line in text.splitlines() if len(fields := line.split(maxsplit=5)) == 6}
