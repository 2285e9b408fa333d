"""A node of the cluster is killed, and everybody else goes on: the cluster knows, what can run elsewhere
does, and what cannot says why."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import ray_mono as ray
from ray_mono._private.node.session import NodeRecord
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.integration.clusters import (
    CommandLineCluster,
    driven_cluster,
    processes_of_node,
    run_command,
    service_pid,
)
from tests.integration.nothing_left import wait_for_nothing_left
from tests.waiting import wait_until

END_TIMEOUT_S = 60
BIG_BYTES = 8 << 20


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Iterator[CommandLineCluster]:
    """The head, with 2 CPUs; this process is a driver there."""
    with driven_cluster(shared_base, num_cpus=2, resources={"here": 4, "both": 1}) as cluster:
        ray.init(address=cluster.address)
        yield cluster


@pytest.fixture
def doomed(cluster: CommandLineCluster) -> Iterator[NodeRecord]:
    """A node with 2 CPUs and 4 of "there", which the test kills. Nothing of the program is left on the
    others.

    Of "both" it has 1, and the head has 1.
    """
    node = cluster.add_node(num_cpus=2, resources={"there": 4, "both": 1})
    yield node
    wait_until(lambda: not psutil.pid_exists(node.reaper_pid), "the end of the node")
    wait_for_nothing_left()


def kill(node: NodeRecord, service: str = "raylet") -> None:
    os.kill(service_pid(node, service), signal.SIGKILL)


def row_of(node: NodeRecord) -> dict[str, Any]:
    (row,) = [row for row in ray.nodes() if row["NodeID"] == node.node_id]
    return row


@pytest.fixture
def occupant() -> Any:
    """An actor on the head that holds its "both": what needs that goes to the doomed node while it lives."""

    class Occupant:
        def where(self) -> str:
            return ray.get_runtime_context().get_node_id()

    return ray.remote(Occupant).options(num_cpus=0, resources={"both": 1, "here": 1})


def wait_until_dead(node: NodeRecord) -> None:
    wait_until(lambda: not row_of(node)["Alive"], "the cluster knows that the node is dead")


@pytest.fixture
def start_there(doomed: NodeRecord, tmp_path: Path, touch_and_wait: Any) -> Callable[..., Any]:
    """start_there(**options): a reference to what a task will return that runs on the doomed node, and does
    not end there."""

    def start(**options: Any) -> Any:
        def run() -> str:
            own = ray.get_runtime_context().get_node_id()
            if own == doomed.node_id:
                touch_and_wait(f"{tmp_path}/runs", f"{tmp_path}/never")
            return str(own)

        reference = ray.remote(run).options(num_cpus=0, **options).remote()
        wait_until((tmp_path / "runs").exists, "the task runs on the doomed node")
        return reference

    return start


@pytest.mark.parametrize("service", ["raylet", "object_manager"])
def test_a_node_that_loses_a_service_is_dead_and_nothing_of_it_is_left(
    cluster: CommandLineCluster, doomed: NodeRecord, service: str
) -> None:
    assert row_of(doomed)["Alive"] and ray.cluster_resources()["there"] == 4
    processes = processes_of_node(doomed)
    kill(doomed, service)
    wait_until_dead(doomed)
    assert row_of(doomed)["DeathReasonMessage"] and not row_of(doomed)["Resources"]
    assert "there" not in ray.cluster_resources()
    shown = run_command("status").out
    assert f"{doomed.node_id[:8]}" in shown and "  dead: " in shown
    _, alive = psutil.wait_procs(processes, timeout=END_TIMEOUT_S)
    assert not alive
    assert not [path for path in doomed.owned_files if os.path.exists(path)]
    assert get(ray.remote(lambda: 1).remote()) == 1


def test_a_task_that_may_not_run_again_fails(doomed: NodeRecord, start_there: Any) -> None:
    lost = start_there(resources={"there": 1}, max_retries=0)
    kill(doomed)
    with pytest.raises((ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError)):
        get(lost)


def test_a_task_that_may_run_again_does_so_elsewhere(
    cluster: CommandLineCluster, doomed: NodeRecord, start_there: Any, occupant: Any
) -> None:
    holder = occupant.remote()
    assert get(holder.where.remote()) == cluster.head.node_id
    retried = start_there(resources={"both": 1})
    kill(doomed)
    ray.kill(holder)
    assert get(retried) == cluster.head.node_id


def test_a_task_that_only_a_dead_node_could_run_waits_for_another_such_node(
    cluster: CommandLineCluster, doomed: NodeRecord, start_there: Any
) -> None:
    retried = start_there(resources={"there": 1})
    kill(doomed)
    wait_until_dead(doomed)
    assert ray.wait([retried], timeout=0) == ([], [retried])
    spare = cluster.add_node(num_cpus=1, resources={"there": 1})
    assert get(retried) == spare.node_id
    del retried
    cluster.remove_node(spare)
    wait_until_dead(spare)


def test_an_object_whose_only_copy_died_is_lost_and_one_that_is_here_too_is_not(doomed: NodeRecord) -> None:
    @ray.remote(num_cpus=0, resources={"there": 1}, max_retries=0)
    def make(value: int) -> Any:
        return np.full(BIG_BYTES, value, np.uint8)

    @ray.remote(num_cpus=0, max_retries=0)
    def use(array: Any) -> int:
        return int(array[0])

    lost, copied = make.remote(1), make.remote(2)
    assert ray.wait([lost, copied], num_returns=2, timeout=GET_TIMEOUT_S, fetch_local=False)[1] == []
    assert get(copied)[0] == 2
    kill(doomed)
    wait_until_dead(doomed)
    for reference in (lost, use.remote(lost)):
        with pytest.raises(ray.exceptions.ObjectLostError, match=lost.hex()):
            get(reference)
    assert get(use.remote(copied)) == 2 and get(copied)[0] == 2


def test_an_actor_dies_with_its_node_or_is_started_elsewhere(
    cluster: CommandLineCluster, doomed: NodeRecord, occupant: Any, tmp_path: Path, touch_and_wait: Any
) -> None:
    class Resident:
        def where(self) -> str:
            return ray.get_runtime_context().get_node_id()

        def stay(self) -> None:
            touch_and_wait(f"{tmp_path}/stays", f"{tmp_path}/never")

    resident: Any = ray.remote(Resident)
    mortal = resident.options(num_cpus=0, resources={"there": 1}).remote()
    holder = occupant.remote()
    get(holder.where.remote())
    phoenix = resident.options(num_cpus=0, resources={"both": 1}, max_restarts=1, max_task_retries=1).remote()
    assert get([mortal.where.remote(), phoenix.where.remote()]) == [doomed.node_id] * 2
    under_way = mortal.stay.remote()
    wait_until((tmp_path / "stays").exists, "the call runs")
    kill(doomed)
    with pytest.raises(ray.exceptions.ActorDiedError):
        get(under_way)
    with pytest.raises(ray.exceptions.ActorDiedError):
        get(mortal.where.remote())
    ray.kill(holder)
    assert get(phoenix.where.remote()) == cluster.head.node_id


def test_who_waits_for_a_task_of_a_dead_node_is_told(
    cluster: CommandLineCluster, doomed: NodeRecord, start_there: Any, tmp_path: Path
) -> None:
    """A thread of the driver and a task that borrows the reference, both in the middle of a `get`."""
    lost = start_there(resources={"there": 1}, max_retries=0)
    errors: list[BaseException] = []

    @ray.remote(num_cpus=0, resources={"here": 1}, max_retries=0)
    def wait_for(references: list[Any]) -> Any:
        (tmp_path / "waits").touch()
        return ray.get(references[0])

    def wait() -> None:
        try:
            get(lost)
        except Exception as error:
            errors.append(error.with_traceback(None))

    waiting = wait_for.remote([lost])
    wait_until((tmp_path / "waits").exists, "the task waits")
    thread = threading.Thread(target=wait)
    thread.start()
    kill(doomed)
    thread.join(GET_TIMEOUT_S)
    (error,) = errors
    # By the raylet's last word, or by its silence.
    assert isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.NodeDiedError)
    with pytest.raises(ray.exceptions.RayError):
        get(waiting)


def test_what_a_dead_node_owned_is_gone_and_what_it_borrowed_is_let_go(doomed: NodeRecord) -> None:
    class Owner:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def make(self) -> list[Any]:
            return [ray.put("small"), ray.put(np.zeros(BIG_BYTES, np.uint8))]

        def keep(self, references: list[Any]) -> int:
            self.kept += references
            return int(ray.get(references[0])[0])

    owner: Any = ray.remote(Owner).options(num_cpus=0, resources={"there": 1}).remote()
    theirs = get(owner.make.remote())
    ours = [ray.put(np.full(BIG_BYTES, 5, np.uint8)), ray.put("small")]
    assert get(owner.keep.remote(ours)) == 5
    kill(doomed)
    wait_until_dead(doomed)
    for reference in theirs:
        with pytest.raises(ray.exceptions.OwnerDiedError):
            get(reference)
    assert get(ours)[1] == "small"
