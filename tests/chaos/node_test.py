"""A node is lost with all that it does: its raylet is killed, all of its processes are, or they stand still.
What can run elsewhere does, and what cannot says why."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import ray_mono as ray
from ray_mono._private.node.session import NodeRecord
from ray_mono.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.integration.bounded import get
from tests.integration.clusters import join_cluster, processes_of_node, run_command, service_pid, signal_all
from tests.waiting import wait_until

SETTINGS = {
    "raylet": {"gcs_reconnect_timeout_s": 4.0},
    "gcs": {"health_check_period_s": 0.5, "health_check_timeout_s": 0.5, "health_check_failures_max": 3},
}
BIG_BYTES = 8 << 20


@pytest.fixture
def doomed(session_base: Path) -> Iterator[NodeRecord]:
    """A node beside the head's. This process is a driver on the head's."""
    context = ray.init(address="local", num_cpus=2, _system_config=SETTINGS)
    options = {"node_ip_address": "127.0.0.1", "num_cpus": 2}
    node = join_cluster(session_base, context.address_info["gcs_address"], **options)
    try:
        yield node
    finally:
        ray.shutdown()
        with contextlib.suppress(psutil.NoSuchProcess):  # a node that was lost may be gone
            signal_all(processes_of_node(node), signal.SIGCONT)
        assert run_command("stop").status == 0


def kill_raylet(node: NodeRecord) -> None:
    os.kill(service_pid(node, "raylet"), signal.SIGKILL)


def kill_all(node: NodeRecord) -> None:
    signal_all(processes_of_node(node), signal.SIGKILL)


def stop_all(node: NodeRecord) -> None:
    signal_all(processes_of_node(node), signal.SIGSTOP)


LOSSES = [kill_raylet, kill_all, stop_all]
Lose = Callable[[NodeRecord], None]


@ray.remote
def pid_when(begun: str, path: str) -> int:
    """Says that it has begun, and waits for the file."""
    with open(begun, "a") as file:
        file.write(f"{os.getpid()}\n")
    await_file(path)
    return os.getpid()


def await_file(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


@ray.remote
def big(number: int) -> np.ndarray[Any, Any]:
    return np.full(BIG_BYTES, number, np.uint8)


@ray.remote(num_cpus=0)
class StoreUser:
    """Uses its node's store in its second call, when it is told to."""

    def ready(self) -> bool:
        return True

    def returns(self, path: str, lent: list[Any]) -> np.ndarray[Any, Any]:
        await_file(path)
        return np.ones(BIG_BYTES, np.uint8)

    def puts(self, path: str, lent: list[Any]) -> Any:
        await_file(path)
        return ray.get(ray.put(np.ones(BIG_BYTES, np.uint8)))

    def reads(self, path: str, lent: list[Any]) -> Any:
        await_file(path)
        return ray.get(lent[0])


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.number = 0

    def next(self, awaited: str = "") -> tuple[int, int]:
        while awaited and not os.path.exists(awaited):
            time.sleep(0.01)
        self.number += 1
        return os.getpid(), self.number


def there(node: NodeRecord) -> dict[str, Any]:
    """On the node, and elsewhere if that is lost."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.node_id, soft=True)}


@pytest.mark.parametrize("lose", LOSSES)
def test_tasks_that_run_there_run_again_elsewhere(doomed: NodeRecord, tmp_path: Path, lose: Lose) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    running = pid_when.options(**there(doomed)).remote(str(begun), str(go_on))
    wait_until(begun.exists, "the task runs")
    lose(doomed)
    wait_until(lambda: len(begun.read_text().split()) == 2, "it runs again")
    go_on.touch()
    assert get(running) == int(begun.read_text().split()[1])


@pytest.mark.parametrize("lose", LOSSES)
def test_a_task_without_retries_says_that_its_node_is_gone(
    doomed: NodeRecord, tmp_path: Path, lose: Lose
) -> None:
    begun = tmp_path / "begun"
    options = {"max_retries": 0, **there(doomed)}
    running = pid_when.options(**options).remote(str(begun), str(tmp_path / "never"))
    wait_until(begun.exists, "the task runs")
    lose(doomed)
    with pytest.raises((ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError)):
        get(running)


@pytest.mark.parametrize("lose", LOSSES)
def test_an_actor_starts_elsewhere_and_its_queued_calls_with_retries_run_there(
    doomed: NodeRecord, tmp_path: Path, lose: Lose
) -> None:
    options = {"max_restarts": 1, "max_task_retries": -1, **there(doomed)}
    actor = Counter.options(**options).remote()
    first, _ = get(actor.next.remote())
    go_on = tmp_path / "go on"
    calls = [actor.next.remote(str(go_on)) for _ in range(20)]
    lose(doomed)
    wait_until(lambda: sum(row["Alive"] for row in ray.nodes()) == 1, "it is lost")
    go_on.touch()
    pids, numbers = zip(*get(calls), strict=True)
    assert list(numbers) == list(range(1, 21))
    assert len(set(pids)) == 1 and first not in pids


@pytest.mark.parametrize("lose", LOSSES)
def test_an_actor_without_restarts_is_dead_with_the_reason(doomed: NodeRecord, lose: Lose) -> None:
    actor = Counter.options(**there(doomed)).remote()
    get(actor.next.remote())
    waiting = actor.next.remote("/nowhere")
    lose(doomed)
    with pytest.raises(ray.exceptions.ActorDiedError, match=f"node {doomed.node_id} died"):
        get(waiting)


@pytest.mark.parametrize("lose", LOSSES)
def test_values_that_lay_there_are_made_again(doomed: NodeRecord, lose: Lose) -> None:
    value = big.options(**there(doomed)).remote(7)
    ray.wait([value], fetch_local=False)
    lose(doomed)
    assert int(get(value).max()) == 7


@pytest.mark.parametrize("how", ["returns", "puts", "reads"])
def test_what_a_call_finds_missing_while_its_node_ends_is_not_its_answer(
    doomed: NodeRecord, tmp_path: Path, how: str
) -> None:
    """Its store is gone, and the raylet does not know yet. The call is one of a lost node: it runs again."""
    options = {"max_restarts": -1, "max_task_retries": -1, **there(doomed)}
    actor = StoreUser.options(**options).remote()
    assert get(actor.ready.remote())
    lent, go_on = ray.put(np.ones(BIG_BYTES, np.uint8)), tmp_path / "go on"
    used = getattr(actor, how).remote(str(go_on), [lent])
    for pid in (doomed.reaper_pid, service_pid(doomed, "raylet")):
        os.kill(pid, signal.SIGSTOP)
    os.kill(service_pid(doomed, "object_manager"), signal.SIGKILL)
    go_on.touch()
    assert int(get(used).sum()) == BIG_BYTES
