"""A connection ends, and the processes at both ends live: nobody is taken for dead who is not, what can be
done again is, and what cannot is told clearly."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private.node.session import NodeRecord
from ray_mono.exceptions import ActorUnavailableError, WorkerCrashedError
from ray_mono.experimental import internal_kv
from ray_mono.util import list_named_actors
from ray_mono.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.chaos.victims import Victims
from tests.integration import connections
from tests.integration.bounded import get
from tests.integration.clusters import CommandLineCluster, service_pid
from tests.integration.scripts import Script
from tests.waiting import wait_until

Start = Callable[..., Victims]
BIG_BYTES = 8 << 20
DRIVER = os.getpid()


@ray.remote(num_cpus=0)
class Actor:
    """Counts its calls, and keeps what it is given."""

    def __init__(self) -> None:
        self.number = 0

    def pid(self) -> int:
        return os.getpid()

    def next(self, awaited: str = "") -> int:
        await_file(awaited)
        self.number += 1
        return self.number

    def lend(self, awaited: str) -> list[Any]:
        """References of its own: a value that is there, and one that is not yet."""
        self.lent = [ray.put(np.ones(BIG_BYTES, np.uint8)), one_when.remote(awaited)]
        return self.lent

    def forget(self) -> None:
        self.lent = []

    def keep(self, lent: list[Any]) -> None:
        self.kept = lent

    def read(self) -> int:
        return sum(int(np.sum(value)) for value in ray.get(self.kept))


def end_connections(one: int, other: int) -> int:
    try:
        return connections.end_connections(one, other)
    except PermissionError:
        pytest.skip("this machine does not let a process use the sockets of another one")


def await_file(path: str) -> None:
    while path and not os.path.exists(path):
        time.sleep(0.01)


@ray.remote
def one_when(path: str) -> int:
    await_file(path)
    return 1


@ray.remote
def run_when(begun: str, path: str) -> int:
    with open(begun, "a") as file:
        file.write(f"{os.getpid()}\n")
    await_file(path)
    return 1


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


# ---- with the head


@pytest.mark.parametrize("who", ["driver", "raylet", "log_monitor"])
def test_who_is_cut_off_from_the_head_goes_on_and_comes_back(start: Start, who: str) -> None:
    victims = start()
    actor = Actor.options(name="known").remote()
    assert get(actor.next.remote()) == 1
    pid = DRIVER if who == "driver" else getattr(victims, who).pid
    assert end_connections(pid, victims.head.pid)
    assert get(actor.next.remote()) == 2
    assert get(Actor.remote().next.remote()) == 1
    internal_kv._internal_kv_put(b"key", b"value")
    assert internal_kv._internal_kv_get(b"key") == b"value"
    assert list_named_actors() == ["known"]
    assert [node["Alive"] for node in ray.nodes()] == [True]


# ---- between a caller and its worker


def test_calls_of_an_actor_that_lives_are_made_again_or_say_that_it_was_unavailable(
    start: Start, tmp_path: Path
) -> None:
    start()
    go_on = tmp_path / "go on"
    once = Actor.remote()
    again = Actor.options(max_task_retries=-1, max_restarts=-1).remote()
    pids = get([actor.pid.remote() for actor in (once, again)])
    lost, repeated = [actor.next.remote(str(go_on)) for actor in (once, again)]
    for pid in pids:
        assert end_connections(DRIVER, pid)
    go_on.touch()
    with pytest.raises(ActorUnavailableError):
        get(lost)
    assert get(repeated) >= 1
    assert get([actor.pid.remote() for actor in (once, again)]) == pids


def test_its_calls_that_waited_behind_the_one_that_ran_run_once_and_in_order(
    start: Start, tmp_path: Path
) -> None:
    start()
    lent, go_on = tmp_path / "lent", tmp_path / "go on"
    actor = Actor.remote()
    pid = get(actor.pid.remote())
    _, there = get(actor.lend.remote(str(lent)))
    running = actor.next.remote(str(go_on))
    waiting = [actor.next.remote() for _ in range(5)]
    lent.touch()
    assert get(there) == 1  # What asks for that comes behind the calls.
    assert end_connections(DRIVER, pid)
    with pytest.raises(ActorUnavailableError):
        get(running)
    go_on.touch()
    assert get([*waiting, actor.next.remote()]) == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("retries", [0, 1])
def test_a_task_whose_caller_lost_its_worker_runs_again_while_it_may(
    start: Start, tmp_path: Path, retries: int
) -> None:
    start()
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    task = run_when.options(max_retries=retries).remote(str(begun), str(go_on))
    wait_until(lambda: len(pids_in(begun)) == 1, "it runs")
    assert end_connections(DRIVER, pids_in(begun)[0])
    if not retries:
        with pytest.raises(WorkerCrashedError, match="whoever leased it had lost it"):
            get(task)
        return
    wait_until(lambda: len(pids_in(begun)) == 2, "it runs again")
    go_on.touch()
    assert get(task) == 1


# ---- between an owner and a borrower


def test_what_a_borrower_waits_for_comes_all_the_same(start: Start, tmp_path: Path) -> None:
    start()
    go_on = tmp_path / "go on"
    owner, borrower = Actor.remote(), Actor.remote()
    pids = get([actor.pid.remote() for actor in (owner, borrower)])
    lent = get(owner.lend.remote(str(go_on)))
    get(borrower.keep.remote(lent))
    reading = borrower.read.remote()
    for what in ("they are connected", "it has asked for the value"):
        wait_until(lambda: end_connections(*pids[::-1]) > 0, what)
    go_on.touch()
    assert get(reading) == BIG_BYTES + 1


def test_what_only_a_borrower_holds_is_kept_for_it(start: Start, tmp_path: Path) -> None:
    start()
    go_on = tmp_path / "go on"
    go_on.touch()
    owner, borrower = Actor.remote(), Actor.remote()
    pids = get([actor.pid.remote() for actor in (owner, borrower)])
    lent = get(owner.lend.remote(str(go_on)))
    get(borrower.keep.remote(lent))
    del lent
    get(owner.forget.remote())
    wait_until(lambda: end_connections(*pids) > 0, "they are connected")
    assert get(owner.next.remote()) == 1
    assert get(borrower.read.remote()) == BIG_BYTES + 1


# ---- within a node


@pytest.mark.parametrize("service", ["raylet", "object_manager"])
def test_a_worker_that_lost_a_service_of_its_node_ends_and_its_task_runs_again(
    start: Start, tmp_path: Path, service: str
) -> None:
    victims = start()
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    task = run_when.options(max_retries=1).remote(str(begun), str(go_on))
    wait_until(lambda: len(pids_in(begun)) == 1, "it runs")
    assert end_connections(pids_in(begun)[0], getattr(victims, service).pid)
    wait_until(lambda: len(pids_in(begun)) == 2, "it runs again")
    go_on.touch()
    assert get(task) == 1


PROGRAM = """
import sys, time
import numpy as np
import ray_mono as ray

ray.init(address=sys.argv[1], namespace="here")

@ray.remote(name="mortal")
class Actor:
    def wait(self):
        time.sleep(1000)

actor = Actor.remote()
ray.get(actor.__ray_ready__.remote())
waiting = actor.wait.remote()
print("ready", flush=True)
sys.stdin.readline()
for use in (lambda: ray.put(np.ones(1 << 20)), lambda: ray.get(waiting, timeout=1)):
    try:
        use()
    except Exception as error:
        print(type(error).__name__, error, flush=True)
ray.shutdown()
print("has left", flush=True)
"""


@pytest.mark.parametrize(
    ("service", "told"), [("raylet", "LocalRayletDiedError"), ("object_manager", "RaySystemError")]
)
def test_a_driver_that_lost_a_service_of_its_node_is_told_and_others_notice_nothing(
    cluster: CommandLineCluster, tmp_path: Path, service: str, told: str
) -> None:
    other = Actor.remote()
    assert get(other.next.remote()) == 1
    path = tmp_path / "driver.py"
    path.write_text(PROGRAM)
    script = Script(path, cluster.address)
    script.wait_for_line("ready")
    assert end_connections(script.pid, service_pid(cluster.head, service))
    script.say("go on")
    output = script.check_ended_well()
    assert told in output and "has left" in output, output
    wait_until(lambda: not list_named_actors(), "its actor is gone")
    wait_until(lambda: ray.available_resources().get("CPU") == 2, "its CPUs are free")
    assert get(other.next.remote()) == 2


# ---- between nodes


@ray.remote
def big(number: int) -> np.ndarray[Any, Any]:
    return np.full(8 * BIG_BYTES, number, np.uint8)


def on(node: NodeRecord) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.node_id, soft=False)


def test_copies_between_nodes_are_finished_over_other_connections(cluster: CommandLineCluster) -> None:
    node = cluster.add_node(num_cpus=1)
    values = [big.options(scheduling_strategy=on(node)).remote(number) for number in range(8)]
    ray.wait(values, num_returns=len(values), fetch_local=False)
    stores = [service_pid(each, "object_manager") for each in (cluster.head, node)]
    read: list[int] = []
    reader = threading.Thread(target=lambda: read.extend(int(value.max()) for value in get(values)))
    reader.start()
    num_ended = 0
    while reader.is_alive() and num_ended < 10:
        num_ended += end_connections(*stores)
    reader.join()
    assert num_ended and read == list(range(8))
