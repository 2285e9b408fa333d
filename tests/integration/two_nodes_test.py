"""A cluster of two nodes on one machine, made by the command line, and a driver on the first: what runs
where, and how objects get from node to node. No process maps the store of another node, so what crosses over
crosses on a stream, where it is counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private.node.session import NodeRecord
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.integration.clusters import (
    CommandLineCluster,
    mapped_files,
    processes_of_node,
    run_command,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing_on_both")

MIB = 1 << 20
BIG_BYTES = 30 * MIB
# Of an object on a stream: its pickle, beside the array's own bytes.
PICKLE_BYTES_MAX = 64 << 10


@ray.remote
def where() -> str:
    return ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=0, resources={"there": 1})
def make_there(value: int) -> Any:
    return np.full(BIG_BYTES, value, np.uint8)


@ray.remote(num_cpus=0, resources={"there": 1})
def read_there(array: Any) -> tuple[int, int, bool]:
    return int(array[0]), len(array), bool(array.flags.writeable)


@contextmanager
def hidden(path: str) -> Iterator[None]:
    """The file has another name meanwhile."""
    os.rename(path, f"{path}.hidden")
    try:
        yield
    finally:
        os.rename(f"{path}.hidden", path)


def moved_bytes(cluster: CommandLineCluster, node: NodeRecord) -> tuple[int, int]:
    """(sent, received) of objects, so far."""
    stats = cluster.stats(node)
    return stats.stream_sent_bytes, stats.stream_received_bytes


# ---------------------------------------------------------------- what runs where


def test_the_cluster_is_the_sum_of_its_nodes(cluster: CommandLineCluster, second: NodeRecord) -> None:
    assert {node["NodeID"]: node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"]} == {
        cluster.head.node_id: 1,
        second.node_id: 2,
    }
    total = ray.cluster_resources()
    assert (total["CPU"], total["there"]) == (3, 4)
    shown = run_command("status").out
    assert "Nodes: 2 alive" in shown and "0 of 4 there" in shown
    assert run_command("healthcheck").status == 0


def test_a_task_runs_on_the_node_that_has_what_it_needs(
    cluster: CommandLineCluster, second: NodeRecord
) -> None:
    assert get(where.remote()) == cluster.head.node_id
    there = where.options(num_cpus=0, resources={"there": 1})
    assert set(get([there.remote() for _ in range(8)])) == {second.node_id}
    # More than the head will ever have, without a name of its own.
    assert get(where.options(num_cpus=2).remote()) == second.node_id


def test_what_exceeds_the_cpus_of_a_node_spills_over(
    cluster: CommandLineCluster, second: NodeRecord, tmp_path: Path, touch_and_wait: Any
) -> None:
    @ray.remote
    def meet(own: int, others: list[int]) -> str:
        for other in others:
            touch_and_wait(f"{tmp_path}/{own}", f"{tmp_path}/{other}")
        return ray.get_runtime_context().get_node_id()

    # Each waits for the two others: they end only if all three run at once.
    nodes = get([meet.remote(own, [other for other in range(3) if other != own]) for own in range(3)])
    assert sorted(nodes) == sorted([cluster.head.node_id, second.node_id, second.node_id])


def test_tasks_of_tasks_cross_over_as_well(cluster: CommandLineCluster, second: NodeRecord) -> None:
    @ray.remote(num_cpus=0, resources={"there": 1})
    def ask_back() -> tuple[str, str]:
        own = ray.get_runtime_context().get_node_id()
        return own, ray.get(where.options(num_cpus=0, resources={"here": 1}).remote())

    assert get(ask_back.remote()) == (second.node_id, cluster.head.node_id)


# ---------------------------------------------------------------- objects


def test_the_driver_fetches_what_a_task_made_elsewhere(
    cluster: CommandLineCluster, second: NodeRecord
) -> None:
    sent, _ = moved_bytes(cluster, second)
    _, received = moved_bytes(cluster, cluster.head)
    reference = make_there.remote(7)
    ray.wait([reference], timeout=GET_TIMEOUT_S, fetch_local=False)
    assert moved_bytes(cluster, second)[0] == sent
    array = get(reference)
    assert len(array) == BIG_BYTES and (array == 7).all()
    moved = moved_bytes(cluster, second)[0] - sent
    assert BIG_BYTES <= moved < BIG_BYTES + PICKLE_BYTES_MAX
    assert moved_bytes(cluster, cluster.head)[1] - received == moved
    # It is here now.
    assert np.array_equal(get(reference), array)
    assert moved_bytes(cluster, second)[0] - sent == moved


def test_ten_readers_on_another_node_share_one_copy_that_travelled_once(
    cluster: CommandLineCluster, second: NodeRecord
) -> None:
    _, before = moved_bytes(cluster, second)
    reference = ray.put(np.full(BIG_BYTES, 3, np.uint8))
    assert get([read_there.remote(reference) for _ in range(10)]) == [(3, BIG_BYTES, False)] * 10
    moved = moved_bytes(cluster, second)[1] - before
    assert BIG_BYTES <= moved < BIG_BYTES + PICKLE_BYTES_MAX
    assert cluster.stats(second).num_objects == 1
    assert cluster.stats(cluster.head).num_objects == 1


def test_a_reference_that_is_passed_on_inside_a_value_is_fetched_where_it_is_read(
    cluster: CommandLineCluster, second: NodeRecord
) -> None:
    @ray.remote
    def relay(references: list[Any]) -> list[Any]:
        return references

    @ray.remote(num_cpus=0, resources={"there": 1})
    def total(references: list[Any]) -> int:
        return sum(int(array[0]) for array in ray.get(references))

    references = [ray.put(np.full(MIB, value, np.uint8)) for value in range(3)] + [make_there.remote(4)]
    assert get(total.remote(get(relay.remote(references)))) == 0 + 1 + 2 + 4


def test_no_process_maps_the_store_of_another_node(cluster: CommandLineCluster, second: NodeRecord) -> None:
    # Everybody has written and read by now, also what came from the other node.
    array = get(make_there.remote(1))
    reference = ray.put(array)
    assert get(read_there.remote(reference))[0] == 1
    for node, other in ((cluster.head, second), (second, cluster.head)):
        mapped = [mapped_files(process.pid) for process in processes_of_node(node)]
        assert any(node.store_file in files for files in mapped)
        assert not any(other.store_file in files for files in mapped)
    own = mapped_files(os.getpid())
    assert cluster.head.store_file in own and second.store_file not in own


def test_objects_travel_while_the_other_nodes_store_file_is_hidden(
    cluster: CommandLineCluster, second: NodeRecord
) -> None:
    made = make_there.remote(5)
    reference = ray.put(np.full(BIG_BYTES, 6, np.uint8))
    ray.wait([made], timeout=GET_TIMEOUT_S, fetch_local=False)
    with hidden(second.store_file):
        assert (get(made) == 5).all()
    with hidden(cluster.head.store_file):
        assert get(read_there.remote(reference)) == (6, BIG_BYTES, False)


# ---------------------------------------------------------------- actors


def test_an_actor_on_another_node_is_called_from_everywhere(
    cluster: CommandLineCluster, second: NodeRecord
) -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self, more: Any) -> int:
            self.count += int(more[0])
            return self.count

        def where(self) -> str:
            return ray.get_runtime_context().get_node_id()

        def make(self) -> Any:
            return np.full(BIG_BYTES, self.count, np.uint8)

    @ray.remote(num_cpus=0, resources={"here": 1})
    def add_twice(counter: Any) -> str:
        ray.get([counter.add.remote(np.ones(MIB, np.uint8)) for _ in range(2)])
        return ray.get_runtime_context().get_node_id()

    counter: Any = ray.remote(Counter).options(num_cpus=0, resources={"there": 1}).remote()
    assert get(counter.where.remote()) == second.node_id
    assert get(counter.add.remote(ray.put(np.full(MIB, 10, np.uint8)))) == 10
    assert get([add_twice.remote(counter) for _ in range(2)]) == [cluster.head.node_id] * 2
    assert (get(counter.make.remote()) == 14).all()


# ---------------------------------------------------------------- memory


def test_an_object_that_is_larger_than_the_store_of_a_node_is_read_in_a_file_there(
    cluster: CommandLineCluster, second: NodeRecord
) -> None:
    small = cluster.add_node(num_cpus=1, resources={"small": 1}, object_store_memory=16 * MIB)

    @ray.remote(num_cpus=0, resources={"small": 1})
    def read(array: Any) -> int:
        return int(array[0])

    @ray.remote(num_cpus=0, resources={"small": 1})
    def read_inside(references: list[Any]) -> int:
        return int(ray.get(references[0])[0])

    reference = ray.put(np.full(BIG_BYTES, 9, np.uint8))
    assert get([read.remote(reference), read_inside.remote([reference])]) == [9, 9]
    # The store serves what fits, as before.
    fits = ray.put(np.full(MIB, 8, np.uint8))
    assert get(read.remote(fits)) == 8
    assert cluster.stats(small).num_unsealed == 0
    cluster.remove_node(small)


# ---------------------------------------------------------------- drivers


def test_a_driver_that_is_killed_leaves_nothing_on_any_node_but_its_detached_actors(
    cluster: CommandLineCluster, second: NodeRecord, start_script: Any
) -> None:
    source = """
        import time
        import numpy as np
        import ray_mono as ray

        ray.init("auto", namespace="killed")

        @ray.remote(num_cpus=0, resources={"there": 1})
        class Keeper:
            def keep(self, references):
                self.kept = references, ray.put(np.zeros(1_000_000))

        @ray.remote(num_cpus=0, resources={"there": 1})
        def forever():
            time.sleep(3600)

        @ray.remote(num_cpus=0, resources={"there": 1})
        def make():
            return np.zeros(1_000_000)

        keeper, detached = Keeper.remote(), Keeper.options(name="kept", lifetime="detached").remote()
        references = [ray.put(np.zeros(1_000_000)), make.remote()]
        ray.get([keeper.keep.remote(references), detached.__ray_ready__.remote()], timeout=60)
        running = forever.remote()
        print("ready", flush=True)
        time.sleep(3600)
    """
    script = start_script(source)
    script.wait_for_line("ready")
    assert cluster.stats(second).num_objects and cluster.stats(cluster.head).num_objects
    script.kill()
    for node in (cluster.head, second):
        wait_until(lambda node=node: not cluster.stats(node).used_bytes, "empty stores")  # type: ignore[misc]
    wait_until(lambda: ray.available_resources().get("there") == 3, "only the detached actor holds something")
    detached = ray.get_actor("kept", namespace="killed")
    assert get(detached.__ray_ready__.remote())
    ray.kill(detached)
    wait_until(lambda: ray.available_resources().get("there") == 4, "nothing is held any more")
