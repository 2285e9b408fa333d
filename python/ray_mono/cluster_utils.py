"""Clusters of several nodes on this machine, for tests and for trying things out.

Every node is made of real processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray_mono._private.node.gcs_query import query_gcs
from ray_mono._private.node.node import Node
from ray_mono._private.node.parameter import RayParams
from ray_mono.core_worker.process import current
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub

STORE_BYTES = 150 << 20
POLL_S = 0.05
LOOPBACK = "127.0.0.1"


class Cluster:
    """Several nodes; the first one that is added is the head. All end with `shutdown`, and with this process.

    Attributes:
        head_node: None until there is one.
        worker_nodes: the others.
        connected: whether `connect` was called.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: Mapping[str, Any] | None = None,
        shutdown_at_exit: bool = True,
    ) -> None:
        """initialize_head: add the head now, with head_node_args as add_node takes them. connect: then also
        call `init` with it.

        Raises RuntimeError for connect without initialize_head, and as add_node does.
        """
        self.head_node: Node | None = None
        self.worker_nodes: set[Node] = set()
        self.connected = False
        self._shutdown_at_exit = shutdown_at_exit
        if connect and not initialize_head:
            raise RuntimeError("connect=True needs initialize_head=True: there is no cluster to connect to")
        if initialize_head:
            self.add_node(**(head_node_args or {}))
            if connect:
                self.connect()

    @property
    def gcs_address(self) -> str | None:
        """host:port; None without a head."""
        return None if self.head_node is None else self.head_node.gcs_address

    @property
    def address(self) -> str | None:
        """As `init(address=...)` takes it. While the cluster runs, "auto" means it, too."""
        return self.gcs_address

    @property
    def redis_address(self) -> str | None:
        """The same as address, which programs of the time when Redis kept the tables ask for by this name."""
        return self.gcs_address

    @property
    def redis_password(self) -> str | None:
        """The cluster's secret."""
        return None if self.head_node is None else self.head_node.secret

    def connect(self, namespace: str | None = None) -> None:
        """Calls `init` with this cluster. Raises RuntimeError without a head, and the second time."""
        from ray_mono._private.worker import init

        if self.head_node is None or self.connected:
            raise RuntimeError("connect() needs a head, and can be called once")
        init(address=self.address, namespace=namespace, _redis_password=self.redis_password)
        self.connected = True

    def add_node(self, wait: bool = True, **node_args: Any) -> Node:
        """Starts a node: 1 CPU and a store of 150 MiB unless `node_args` says otherwise.

        Args:
            wait: until the cluster counts it.
            node_args: num_cpus, num_gpus, memory and object_store_memory (bytes), resources, labels, and
                whatever else `RayParams` has.

        Raises ValueError or TypeError naming a parameter that cannot be, and as Node does.
        """
        params = RayParams()
        params.update(**_without_dashboard(node_args))
        params.update_if_absent(
            num_cpus=1, num_gpus=0, object_store_memory=STORE_BYTES, node_ip_address=LOOPBACK
        )
        if self.head_node is None:
            node = self.head_node = Node(params, head=True, shutdown_at_exit=self._shutdown_at_exit)
            node.make_current()
        else:
            params.update(gcs_address=self.gcs_address, redis_password=self.redis_password)
            session_dir = self.head_node.session_dir
            node = Node(params, session_dir=session_dir, shutdown_at_exit=self._shutdown_at_exit)
            self.worker_nodes.add(node)
        if wait:
            self._wait(lambda alive: node.node_id in alive, 30.0, f"node {node.node_id} did not join")
        return node

    def remove_node(self, node: Node, allow_graceful: bool = True) -> None:
        """Ends a node and waits until the others know.

        allow_graceful: False kills its services instead of asking them to end. Raises ValueError for a node
        of another cluster.
        """
        if node is not self.head_node and node not in self.worker_nodes:
            raise ValueError(f"{node!r} is no node of this cluster")
        if not allow_graceful and node.record is not None:
            for service in node.record.services.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(service["pid"], signal.SIGKILL)
        node.kill_all_processes()
        if node is self.head_node:
            self.head_node = None
            return
        self.worker_nodes.remove(node)
        if self.head_node is not None:
            self._wait(lambda alive: node.node_id not in alive, 30.0, f"node {node.node_id} did not leave")

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Waits, for so many seconds, until the cluster counts exactly these nodes as alive.

        Raises TimeoutError.
        """
        expected = {node.node_id for node in self.list_all_nodes()}
        self._wait(
            lambda alive: alive == expected,
            timeout,
            f"the cluster does not have the nodes {sorted(expected)}",
        )

    def list_all_nodes(self) -> list[Node]:
        """The head first."""
        head = [] if self.head_node is None else [self.head_node]
        return [*head, *self.worker_nodes]

    def remaining_processes_alive(self) -> bool:
        """Whether no service of any node has ended that nobody asked to."""
        return not any(node.dead_processes() for node in self.list_all_nodes())

    def shutdown(self) -> None:
        """Ends all nodes, the head last. A driver that is connected disconnects first."""
        core = current.core
        if self.head_node is not None and core is not None and core.session_dir == self.head_node.session_dir:
            from ray_mono._private.worker import shutdown

            shutdown()
        self.connected = False
        for node in [*self.worker_nodes]:
            self.remove_node(node)
        if self.head_node is not None:
            self.remove_node(self.head_node)

    def _wait(self, is_right: Callable[[set[str]], bool], timeout_s: float, otherwise: str) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_right(alive := self._alive_node_ids()):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{otherwise} within {timeout_s:g} s; alive are {sorted(alive)}")
            time.sleep(POLL_S)

    def _alive_node_ids(self) -> set[str]:
        head = self.head_node
        if head is None:
            return set()

        async def ask(gcs: GcsServiceAsyncStub) -> set[str]:
            reply = await gcs.GetAllNodes(common_pb2.Empty(), timeout_s=10.0)
            return {node.node_id.hex() for node in reply.nodes if node.state == common_pb2.NODE_ALIVE}

        return query_gcs(head.gcs_address, head.secret, ask)


def _without_dashboard(node_args: Mapping[str, Any]) -> dict[str, Any]:
    """Programs for Ray switch its dashboard off, which is off here."""
    given = dict(node_args)
    if given.pop("include_dashboard", False):
        raise NotImplementedError("the dashboard is not part of ray_mono yet: leave out include_dashboard")
    private = ("_system_config", "_object_spilling_directory")
    return {name.removeprefix("_") if name in private else name: value for name, value in given.items()}
