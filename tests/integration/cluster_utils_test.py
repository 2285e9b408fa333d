"""ray_mono.cluster_utils: clusters of several nodes on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_mono as ray
from ray_mono.cluster_utils import Cluster

GET_TIMEOUT_S = 60


@pytest.fixture
def cluster(session_base: Path) -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@ray.remote
def where() -> str:
    return ray.get_runtime_context().get_node_id()


def test_nodes_are_added_used_and_removed(cluster: Cluster) -> None:
    head = cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=2, resources={"there": 1})
    cluster.wait_for_nodes()
    assert cluster.redis_address == cluster.address
    ray.init(address=cluster.address)
    assert ray.cluster_resources()["CPU"] == 3
    there = where.options(resources={"there": 1}).remote()
    assert ray.get(there, timeout=GET_TIMEOUT_S) == second.node_id
    assert cluster.list_all_nodes() == [head, second] and cluster.remaining_processes_alive()
    cluster.remove_node(second)
    cluster.wait_for_nodes()
    assert [node["NodeID"] for node in ray.nodes() if node["Alive"]] == [head.node_id]


def test_a_node_that_is_killed_is_gone(cluster: Cluster) -> None:
    cluster.add_node()
    second = cluster.add_node()
    cluster.remove_node(second, allow_graceful=False)
    cluster.wait_for_nodes()
    with pytest.raises(ValueError, match="no node of this cluster"):
        cluster.remove_node(second)


def test_a_head_can_be_made_and_joined_at_once(session_base: Path) -> None:
    cluster = Cluster(
        initialize_head=True, connect=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    try:
        assert cluster.connected and ray.cluster_resources()["CPU"] == 2
        ray.shutdown()
        ray.init(address="auto")
        assert ray.get_runtime_context().gcs_address == cluster.gcs_address
    finally:
        cluster.shutdown()
    assert not ray.is_initialized() and cluster.list_all_nodes() == []


def test_what_cannot_be_is_named(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match="connect=True needs initialize_head=True"):
        Cluster(connect=True)
    with pytest.raises(RuntimeError, match="needs a head"):
        cluster.connect()
    with pytest.raises(TypeError, match="'num_dogs' is no parameter of a node"):
        cluster.add_node(num_dogs=1)
    with pytest.raises(ValueError, match="num_cpus must be a whole number of at least 0, got 0.5"):
        cluster.add_node(num_cpus=0.5)
    with pytest.raises(TypeError, match="resources must be a dict from names to whole numbers, got 'A'"):
        cluster.add_node(resources="A")
    with pytest.raises(TypeError, match=r"labels must be a dict from strings to strings, got \[\]"):
        cluster.add_node(labels=[])
    with pytest.raises(ValueError, match="env_vars must be a dict from strings to strings, got 'X=1'"):
        cluster.add_node(env_vars="X=1")
    with pytest.raises(NotImplementedError, match="dashboard"):
        cluster.add_node(include_dashboard=True)
