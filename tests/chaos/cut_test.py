"""A node is cut off from the head, or stands still: its actor runs in one place at a time, no call is lost,
and the node comes back as a new one.

Where the machine allows no network namespaces the cut itself is not tried. The scenes in which processes
stand still are, and to the head they look the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import ray_mono as ray
from ray_mono._private.node.session import NodeRecord
from ray_mono.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.chaos.far_network import FAR_IP, NEAR_IP, FarNetwork, far_network
from tests.chaos.victims import Victims
from tests.integration.bounded import get
from tests.integration.clusters import join_cluster, processes_of_node, run_command, service_pid, signal_all
from tests.waiting import wait_until

NUM_CALLS = 300
CALL_S = 0.02
BEAT_S = 0.005
SETTINGS = {
    "raylet": {"gcs_reconnect_timeout_s": 4.0},
    "gcs": {"health_check_period_s": 0.5, "health_check_timeout_s": 0.5, "health_check_failures_max": 2},
}


@ray.remote(num_cpus=0)
class Beating:
    """Says all the time that it runs, and with each call that this one began."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        with open(self._folder / f"beats-{os.getpid()}", "a", buffering=1) as file:
            while True:
                file.write(f"{time.monotonic()}\n")
                time.sleep(BEAT_S)

    def call(self, number: int) -> int:
        with open(self._folder / f"calls-{os.getpid()}", "a", buffering=1) as file:
            file.write(f"{time.monotonic()}\n")
        time.sleep(CALL_S)
        return number


def periods(folder: Path, what: str) -> list[tuple[float, float]]:
    """From when to when each process of the actor wrote these, in order."""
    found = []
    for path in folder.glob(f"{what}-*"):
        # A process that has just opened its file has not written yet.
        if times := [float(line) for line in path.read_text().splitlines()]:
            found.append((times[0], times[-1]))
    return sorted(found)


class Cut:
    """The far node, and how it can be lost."""

    def __init__(self, node: NodeRecord, network: FarNetwork | None) -> None:
        self.node = node
        self._network = network
        self._processes = processes_of_node(node)

    def cut(self) -> None:
        assert self._network is not None
        self._network.cut()

    def stop_raylet(self) -> None:
        os.kill(service_pid(self.node, "raylet"), signal.SIGSTOP)

    def stop_raylet_and_template(self) -> None:
        self.stop_raylet()
        (template,) = [each for each in self._processes if "ray_mono::TEMPLATE" in " ".join(each.cmdline())]
        template.suspend()

    def stop_node(self) -> None:
        self._processes = processes_of_node(self.node)
        signal_all(self._processes, signal.SIGSTOP)

    def mend(self) -> None:
        if self._network is not None:
            self._network.mend()
        signal_all(self._processes, signal.SIGCONT)


Make = Callable[[bool], Cut]


@pytest.fixture
def make(session_base: Path) -> Iterator[Make]:
    """make(with_network): a cluster of two nodes, of which one is far. This process is a driver on the
    other."""
    made: list[Cut] = []
    with far_network() as network:

        def run(with_network: bool) -> Cut:
            if with_network and isinstance(network, str):
                pytest.skip(network)
            far = network if with_network and isinstance(network, FarNetwork) else None
            near_ip = "127.0.0.1" if far is None else NEAR_IP
            context = ray.init(address="local", num_cpus=2, _node_ip_address=near_ip, _system_config=SETTINGS)
            address, session_dir = (context.address_info[name] for name in ("gcs_address", "session_dir"))
            options = {"num_cpus": 1, "resources": {"far": 1}}
            if far is None:
                node = join_cluster(session_base, address, node_ip_address="127.0.0.1", **options)
            else:
                inside = far.inside(Path(session_dir) / "sockets")
                node = join_cluster(session_base, address, inside, node_ip_address=FAR_IP, **options)
            made.append(Cut(node, far))
            return made[0]

        try:
            yield run
        finally:
            for cut in made:
                cut.mend()
            ray.shutdown()
            assert run_command("stop").status == 0


def far_nodes() -> set[str]:
    """The ids of those that live."""
    return {row["NodeID"] for row in ray.nodes() if row["Alive"] and "far" in row["Resources"]}


def start_actor(cut: Cut, folder: Path) -> Any:
    """On the far node, and elsewhere if that is lost."""
    there = NodeAffinitySchedulingStrategy(cut.node.node_id, soft=True)
    options = {"max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": there}
    actor = Beating.options(**options).remote(folder)
    get(actor.call.remote(0))
    return actor


@pytest.mark.parametrize("how", ["cut", "stop_raylet", "stop_node"])
def test_an_actor_runs_in_one_place_at_a_time(make: Make, tmp_path: Path, how: str) -> None:
    cut = make(how == "cut")
    actor = start_actor(cut, tmp_path)
    calls = [actor.call.remote(number) for number in range(NUM_CALLS)]
    wait_until(lambda: periods(tmp_path, "calls")[0][1] > periods(tmp_path, "calls")[0][0], "it is called")
    getattr(cut, how)()
    assert get(calls) == list(range(NUM_CALLS))
    cut.mend()
    wait_until(lambda: len(far_nodes()) == 1, "the far node is back, as a new one")
    assert far_nodes() != {cut.node.node_id}
    assert not psutil.pid_exists(service_pid(cut.node, "raylet"))
    assert get(actor.call.remote(0)) == 0
    # A process that stands still in the middle of a call goes on there for a moment. It begins no other.
    first, second = periods(tmp_path, "calls" if how == "stop_node" else "beats")
    assert first[1] < second[0]


def test_the_same_where_nobody_calls_it_and_its_template_stands_still_as_well(
    make: Make, tmp_path: Path
) -> None:
    """Nobody is left who could kill its process, and no call by which that would notice."""
    cut = make(False)
    actor = start_actor(cut, tmp_path)
    cut.stop_raylet_and_template()
    wait_until(lambda: len(periods(tmp_path, "beats")) == 2, "it runs on the other node")
    cut.mend()
    assert get(actor.call.remote(0)) == 0
    first, second = periods(tmp_path, "beats")
    assert first[1] < second[0]


def test_the_same_of_an_actor_on_the_heads_node_whose_raylet_stands_still(make: Make, tmp_path: Path) -> None:
    """That node has no lease while the machine sleeps. It has one while it is awake."""
    make(False)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"max_restarts": -1, "lifetime": "detached", "name": "beating", "namespace": "here"}
    get(Beating.options(scheduling_strategy=here, **options).remote(tmp_path).call.remote(0))
    raylet = Victims().raylet
    raylet.suspend()
    try:
        wait_until(lambda: len(periods(tmp_path, "beats")) == 2, "it runs on the other node")
    finally:
        raylet.resume()
    first, second = periods(tmp_path, "beats")
    assert first[1] < second[0]
