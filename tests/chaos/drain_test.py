"""Nodes are drained: what is on them goes elsewhere, and nothing is lost or done again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import ray_mono as ray
from ray_mono._private.node.session import NodeRecord
from ray_mono._private.state import draining_nodes
from ray_mono.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.chaos.victims import Victims
from tests.integration.bounded import get
from tests.integration.clusters import Done, ask_store, join_cluster, run_command, service_pid
from tests.waiting import wait_until

BIG_BYTES = 8 << 20
IDLE, PREEMPTION = "DRAIN_NODE_REASON_IDLE_TERMINATION", "DRAIN_NODE_REASON_PREEMPTION"
STORE_BYTES = 80 << 20


@pytest.fixture
def node(session_base: Path) -> Iterator[NodeRecord]:
    """A node beside the head's. This process is a driver on the head's."""
    context = ray.init(address="local", num_cpus=2)
    options = {"node_ip_address": "127.0.0.1", "num_cpus": 2, "object_store_memory": STORE_BYTES}
    record = join_cluster(session_base, context.address_info["gcs_address"], **options)
    try:
        yield record
    finally:
        ray.shutdown()
        assert run_command("stop").status == 0


def drain(node: NodeRecord, reason: str = PREEMPTION, deadline_s: int | None = None) -> Done:
    deadline = [] if deadline_s is None else [f"--deadline-remaining-seconds={deadline_s}"]
    return run_command(
        "drain-node",
        f"--address={node.gcs_address}",
        f"--node-id={node.node_id}",
        f"--reason={reason}",
        "--reason-message=the spot is gone",
        *deadline,
    )


def row_of(node: NodeRecord) -> dict[str, Any]:
    return next(row for row in ray.nodes() if row["NodeID"] == node.node_id)


def until_it_ended(node: NodeRecord) -> dict[str, Any]:
    """Its row, when it is dead and all of its processes are gone."""
    wait_until(lambda: not row_of(node)["Alive"], "the node is dead")
    wait_until(lambda: not psutil.pid_exists(node.reaper_pid), "its processes end")
    return row_of(node)


def there(node: NodeRecord, soft: bool = True) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.node_id, soft=soft)}


@ray.remote
def node_when(begun: str, path: str) -> str:
    """Says that it has begun, and waits for the file."""
    with open(begun, "a") as file:
        file.write(f"{os.getpid()}\n")
    while not os.path.exists(path):
        time.sleep(0.01)
    return ray.get_runtime_context().get_node_id()


@ray.remote
def dies_second(begun: str, path: str) -> str:
    """Its first run never ends, its second one dies."""
    with open(begun, "a") as file:
        file.write(f"{os.getpid()}\n")
    num_runs = len(open(begun).read().split())
    while num_runs == 1:
        time.sleep(0.1)
    if num_runs == 2:
        os._exit(1)
    return ray.get_runtime_context().get_node_id()


@ray.remote
def big(number: int, runs: str) -> np.ndarray[Any, Any]:
    with open(runs, "a") as file:
        file.write(f"{number}\n")
    return np.full(BIG_BYTES, number, np.uint8)


@ray.remote
def puts() -> list[Any]:
    return [ray.put("small"), ray.put("small")]


@ray.remote(num_cpus=0)
class Place:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def node_when(self, begun: str, path: str) -> str:
        return node_when._function(begun, path)

    def puts(self) -> list[Any]:
        return [ray.put("small")]

    def wait(self) -> None:
        time.sleep(3600)


def test_tasks_finish_there_new_ones_run_elsewhere_and_then_the_node_ends(
    node: NodeRecord, tmp_path: Path
) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    running = node_when.options(**there(node)).remote(str(begun), str(go_on))
    wait_until(begun.exists, "the task runs")
    assert drain(node).status == 0
    assert row_of(node)["Alive"] and row_of(node)["Draining"]
    assert draining_nodes() == {node.node_id: 0}
    status = run_command("status", f"--address={node.gcs_address}").out
    assert "draining: PREEMPTION, the spot is gone (no deadline)" in status
    later = [node_when.options(**there(node)).remote(str(begun), "/") for _ in range(4)]
    assert node.node_id not in get(later)
    assert row_of(node)["Alive"]
    go_on.touch()
    assert get(running) == node.node_id
    row = until_it_ended(node)
    assert row["DeathReasonMessage"] == f"it was drained ({PREEMPTION}): the spot is gone"
    assert len(begun.read_text().split()) == 5


def test_values_are_there_afterwards_and_no_task_runs_again(node: NodeRecord, tmp_path: Path) -> None:
    """More of them than the node's store holds: some are on disk."""
    runs = tmp_path / "runs"
    values = [big.options(**there(node)).remote(number, str(runs)) for number in range(15)]
    ray.wait(values, num_returns=len(values), timeout=60, fetch_local=False)
    assert ask_store(node.store_socket).spilled_bytes_total
    assert drain(node).status == 0
    until_it_ended(node)
    for number, value in enumerate(values):
        assert get(value).max() == get(value).min() == number
    assert sorted(map(int, runs.read_text().split())) == list(range(15))


def test_a_worker_that_owns_what_others_use_keeps_the_node(node: NodeRecord) -> None:
    held: list[Any] = get(puts.options(**there(node, soft=False)).remote())
    assert drain(node).status == 0
    assert get(held) == ["small", "small"]
    assert row_of(node)["Alive"]
    held.clear()
    until_it_ended(node)


def test_an_actor_answers_from_elsewhere_and_keeps_its_restarts(node: NodeRecord) -> None:
    actor = Place.options(max_restarts=1, max_task_retries=-1, **there(node)).remote()
    assert get(actor.node.remote()) == node.node_id
    assert drain(node).status == 0
    wait_until(lambda: get(actor.node.remote()) != node.node_id, "it has moved")
    until_it_ended(node)
    # The move cost no restart: there is one for this.
    ray.kill(actor, no_restart=False)
    assert get(actor.node.remote()) != node.node_id


def test_calls_of_an_actor_that_moves_end_and_queued_ones_wait_for_its_next_process(
    node: NodeRecord, tmp_path: Path
) -> None:
    """Without max_task_retries: none of them is lost, and none runs twice."""
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    actor = Place.options(max_restarts=1, **there(node)).remote()
    runs = actor.node_when.remote(str(begun), str(go_on))
    wait_until(begun.exists, "the call runs")
    queued = [actor.node_when.remote(str(begun), str(go_on)) for _ in range(5)]
    assert drain(node, deadline_s=3600).status == 0
    later = actor.node_when.remote(str(begun), str(go_on))
    go_on.touch()
    assert get(runs) == node.node_id
    assert node.node_id not in get([*queued, later])
    assert len(begun.read_text().split()) == 7
    until_it_ended(node)


def test_what_an_actor_has_put_outlives_its_move(node: NodeRecord) -> None:
    """Its old process stays for that, and keeps the node."""
    actor = Place.options(max_restarts=1, **there(node)).remote()
    held: list[Any] = get(actor.puts.remote())
    assert drain(node).status == 0
    wait_until(lambda: get(actor.node.remote()) != node.node_id, "it has moved")
    assert get(held) == ["small"] and row_of(node)["Alive"]
    held.clear()
    until_it_ended(node)


def test_a_task_that_a_deadline_cuts_off_runs_again_without_cost(node: NodeRecord, tmp_path: Path) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    running = dies_second.options(max_retries=1, **there(node)).remote(str(begun), str(go_on))
    wait_until(begun.exists, "the task runs")
    assert drain(node, deadline_s=0).status == 0
    until_it_ended(node)
    assert get(running) != node.node_id
    assert len(begun.read_text().split()) == 3, "once for the deadline, once for its death"


def test_a_node_in_use_is_not_terminated_as_idle_and_an_idle_one_is(node: NodeRecord) -> None:
    actor = Place.options(**there(node)).remote()
    get(actor.node.remote())
    refused = drain(node, IDLE)
    assert refused.status == 1
    assert f"not accepted: node {node.node_id} is not idle: workers are leased there" in refused.error
    assert not row_of(node)["Draining"]
    ray.kill(actor)
    wait_until(lambda: drain(node, IDLE).status == 0, "it is idle")
    assert IDLE in until_it_ended(node)["DeathReasonMessage"]


def test_at_the_deadline_what_is_left_fails_and_says_why(node: NodeRecord, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    running = node_when.options(max_retries=0, **there(node)).remote(str(begun), str(tmp_path / "never"))
    actor = Place.options(**there(node)).remote()
    get(actor.node.remote())
    waiting = actor.wait.remote()
    wait_until(begun.exists, "the task runs")
    assert drain(node, deadline_s=3600).status == 0
    first_ms = row_of(node)["DrainDeadlineTimestampMs"]
    assert drain(node, deadline_s=7200).status == 0
    assert row_of(node)["DrainDeadlineTimestampMs"] == first_ms
    assert drain(node, deadline_s=1).status == 0
    with pytest.raises(ray.exceptions.NodeDiedError, match=r"drained.*the spot is gone"):
        get(running)
    with pytest.raises(ray.exceptions.ActorDiedError, match=r"drained.*the spot is gone") as caught:
        get(waiting)
    assert caught.value.preempted
    assert "its deadline had come" in until_it_ended(node)["DeathReasonMessage"]


def test_a_head_that_comes_back_knows_of_it(node: NodeRecord, tmp_path: Path) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    running = node_when.options(**there(node)).remote(str(begun), str(go_on))
    wait_until(begun.exists, "the task runs")
    assert drain(node).status == 0
    Victims().head.kill()
    assert row_of(node)["Draining"]
    assert get(node_when.options(**there(node)).remote(str(begun), "/")) != node.node_id
    go_on.touch()
    assert get(running) == node.node_id
    until_it_ended(node)


def test_a_node_that_dies_meanwhile_is_an_ordinary_dead_node(node: NodeRecord, tmp_path: Path) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    running = node_when.options(**there(node)).remote(str(begun), str(go_on))
    wait_until(begun.exists, "the task runs")
    assert drain(node).status == 0
    psutil.Process(service_pid(node, "raylet")).kill()
    until_it_ended(node)
    go_on.touch()
    assert get(running) != node.node_id


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"node_id": "00" * 28}, "is not in this cluster"),
        ({"node_id": "nonsense"}, "--node-id takes"),
    ],
)
def test_what_cannot_be_drained_is_refused(node: NodeRecord, change: dict[str, str], told: str) -> None:
    done = run_command(
        "drain-node",
        f"--address={node.gcs_address}",
        f"--node-id={change['node_id']}",
        f"--reason={PREEMPTION}",
        "--reason-message=-",
    )
    assert done.status and told in done.error


def test_the_head_is_not_drained(node: NodeRecord) -> None:
    head = next(row for row in ray.nodes() if row["NodeID"] != node.node_id)
    done = run_command(
        "drain-node",
        f"--address={node.gcs_address}",
        f"--node-id={head['NodeID']}",
        f"--reason={PREEMPTION}",
        "--reason-message=-",
    )
    assert done.status == 1 and "is the cluster's head" in done.error
