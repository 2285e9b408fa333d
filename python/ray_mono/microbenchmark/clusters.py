"""Clusters to measure on: of one node by `init`, of several nodes on this machine by what each module has
for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

MIB = 1 << 20


def local(**arguments: Any) -> Callable[[Any], contextlib.AbstractContextManager[None]]:
    """Makes a cluster with `init(**arguments)`, and ends it."""

    @contextlib.contextmanager
    def connected(ray: Any) -> Iterator[None]:
        ray.init(**arguments)
        try:
            yield
        finally:
            ray.shutdown()

    return connected


@contextlib.contextmanager
def nodes(ray: Any, *node_resources: dict[str, float], store_bytes: int) -> Iterator[None]:
    """A cluster of as many nodes as there are dicts, each with the CPU and custom resources of its dict and a
    store of this size. The driver is on the first."""
    made = _with_cluster_utils if ray.__name__ == "ray" else _with_node
    with made(ray, list(node_resources), store_bytes):
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _with_cluster_utils(ray: Any, node_resources: list[dict[str, float]], store_bytes: int) -> Iterator[None]:
    import importlib

    cluster_utils = importlib.import_module(f"{ray.__name__}.cluster_utils")
    cluster = cluster_utils.Cluster()
    try:
        for resources in node_resources:
            custom = {name: amount for name, amount in resources.items() if name != "CPU"}
            cluster.add_node(
                num_cpus=resources["CPU"],
                resources=custom,
                object_store_memory=store_bytes,
                include_dashboard=False,
            )
        cluster.wait_for_nodes()
        ray.init(address=cluster.address)
        yield
    finally:
        cluster.shutdown()


@contextlib.contextmanager
def _with_node(ray: Any, node_resources: list[dict[str, float]], store_bytes: int) -> Iterator[None]:
    from ray_mono._private.node.node import Node
    from ray_mono._private.node.parameter import RayParams

    started: list[Node] = []
    try:
        for resources in node_resources:
            params = RayParams(
                node_ip_address="127.0.0.1",
                num_cpus=resources["CPU"],
                resources={name: amount for name, amount in resources.items() if name != "CPU"},
                object_store_memory=store_bytes,
            )
            if started:
                params.update(gcs_address=started[0].gcs_address)
                started.append(Node(params, session_dir=started[0].session_dir))
            else:
                started.append(Node(params, head=True))
        ray.init(address=started[0].gcs_address, _redis_password=started[0].secret)
        yield
    finally:
        for node in reversed(started):
            node.kill_all_processes()
