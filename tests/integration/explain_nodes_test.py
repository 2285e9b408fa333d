"""Programs that wait on two nodes, and what `explain` says of them: the second table. Each has a cluster of
its own. When it was explained, it does what the sentence says, and goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono._private.node.session import NodeRecord
from ray_mono.util import placement_group
from ray_mono.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.integration.bounded import get
from tests.integration.clusters import join_cluster, processes_of_node, run_command, signal_all
from tests.integration.explained import MOVES, OPEN, STUCK, Outlook, expect_explained, first_node
from tests.waiting import wait_until

SETTINGS = {
    "raylet": {"gcs_reconnect_timeout_s": 4.0},
    "gcs": {"health_check_period_s": 0.5, "health_check_timeout_s": 0.5, "health_check_failures_max": 2},
}


class TwoNodes:
    """The near one is the driver's and the head's. The far one has `far`, and its zone is mars."""

    def __init__(self, base: Path, address: str) -> None:
        self._base = base
        self._address = address
        self.near = ray.get_runtime_context().get_node_id()
        self.far = self.add_node({"far": 1}, {"zone": "mars"})

    def add_node(self, resources: dict[str, float], labels: dict[str, str]) -> NodeRecord:
        options = {"node_ip_address": "127.0.0.1", "num_cpus": 1, "resources": resources, "labels": labels}
        return join_cluster(self._base, self._address, **options)

    def drain_far(self) -> None:
        """It ends when nothing runs there any more."""
        reason = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the spot is gone")
        node = (f"--address={self._address}", f"--node-id={self.far.node_id}")
        assert run_command("drain-node", *node, *reason).status == 0

    def there(self) -> NodeAffinitySchedulingStrategy:
        return NodeAffinitySchedulingStrategy(self.far.node_id, soft=False)


@pytest.fixture
def nodes(session_base: Path, by_value: None) -> Iterator[TwoNodes]:
    with first_node(labels={"zone": "earth"}, _system_config=SETTINGS) as address:
        yield TwoNodes(session_base, address)


@ray.remote(num_cpus=0)
def until(path: str) -> int:
    """Until there is such a file."""
    while not os.path.exists(path):
        time.sleep(0.01)
    return 1


@ray.remote(num_cpus=0)
def one() -> int:
    return 1


@ray.remote(num_cpus=0, max_retries=0)
def large() -> bytes:
    return bytes(1 << 20)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Thing:
    def one(self) -> int:
        return 1


Program = Callable[[TwoNodes, Path], Iterator[Any]]


def begin(path: Path, **options: Any) -> Any:
    """A task that runs until there is such a file, and does so already."""
    ref = until.options(**options).remote(str(path))
    wait_until(lambda: ray.explain(ref).code == "RUNNING", "it runs")
    return ref


# ---- what is in use, and where


def in_use_on_both(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    holders = [begin(tmp_path / "end", num_cpus=2), begin(tmp_path / "end", num_cpus=1)]
    waits = one.options(num_cpus=1).remote()
    yield waits
    (tmp_path / "end").touch()
    assert get([waits, *holders]) == [1, 1, 1]


def in_use_on_the_far_node(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    """The near one has enough."""
    holder = begin(tmp_path / "end", scheduling_strategy=nodes.there(), num_cpus=1)
    waits = one.options(scheduling_strategy=nodes.there(), num_cpus=1).remote()
    yield waits
    (tmp_path / "end").touch()
    assert get([waits, holder]) == [1, 1]


def labels_of_a_busy_node(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    holder = begin(tmp_path / "end", resources={"far": 1}, num_cpus=1)
    waits = one.options(label_selector={"zone": "mars"}, num_cpus=1).remote()
    yield waits
    (tmp_path / "end").touch()
    assert get([waits, holder]) == [1, 1]


def an_argument_of_the_far_node(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    argument = begin(tmp_path / "end", resources={"far": 1})
    waits = keep.remote(argument)
    yield waits
    (tmp_path / "end").touch()
    assert get(waits) == 1


@ray.remote(num_cpus=0)
def keep(value: Any) -> Any:
    return value


def an_actor_behind_one_on_the_far_node(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    holder = Thing.options(resources={"far": 1}).remote()
    get(holder.one.remote())
    waits = Thing.options(resources={"far": 1}).remote()
    yield waits
    ray.kill(holder)
    assert get(waits.one.remote()) == 1


# ---- drains


def only_a_drained_node_has_it(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    holder = begin(tmp_path / "end", resources={"far": 1})
    nodes.drain_far()
    waits = one.options(resources={"far": 1}).remote()
    yield waits
    nodes.add_node({"far": 1}, {})
    assert get(waits) == 1
    (tmp_path / "end").touch()
    assert get(holder) == 1


def only_a_drained_node_has_the_labels(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    begin(tmp_path / "end", resources={"far": 1})
    waits = one.options(label_selector={"zone": "mars"}, resources={"far": 1}).remote()
    nodes.drain_far()
    yield waits
    nodes.add_node({"far": 1}, {"zone": "mars"})
    assert get(waits) == 1


def an_actor_that_only_a_drained_node_can_hold(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    begin(tmp_path / "end", resources={"far": 1})
    nodes.drain_far()
    waits = Thing.options(resources={"far": 1}).remote()
    yield waits
    nodes.add_node({"far": 1}, {})
    assert get(waits.one.remote()) == 1


def a_group_that_only_a_drained_node_can_hold(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    begin(tmp_path / "end", num_cpus=1, scheduling_strategy=nodes.there())
    nodes.drain_far()
    waits = placement_group([{"far": 1}])
    yield waits
    nodes.add_node({"far": 1}, {})
    assert waits.wait(60)


def bound_to_a_drained_node(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    """It does not wait, as in Ray."""
    begin(tmp_path / "end", resources={"far": 1})
    nodes.drain_far()
    waits = one.options(scheduling_strategy=nodes.there()).remote()
    yield waits
    with pytest.raises(ray.exceptions.TaskUnschedulableError, match=nodes.far.node_id):
        get(waits)


def an_actor_bound_to_a_drained_node(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    begin(tmp_path / "end", resources={"far": 1})
    nodes.drain_far()
    yield Thing.options(scheduling_strategy=nodes.there()).remote()


# ---- nodes that are silent


def an_actor_of_a_silent_node(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    strategy = NodeAffinitySchedulingStrategy(nodes.far.node_id, soft=True)
    waits = Thing.options(scheduling_strategy=strategy).remote()
    get(waits.one.remote())
    processes = processes_of_node(nodes.far)
    signal_all(processes, signal.SIGSTOP)
    try:
        yield waits
        assert get(waits.one.remote()) == 1
    finally:
        signal_all(processes, signal.SIGCONT)


def an_object_of_a_node_that_is_gone(nodes: TwoNodes, tmp_path: Path) -> Iterator[Any]:
    made = large.options(scheduling_strategy=nodes.there()).remote()
    ray.wait([made], fetch_local=False)
    assert ray.explain(made).code == "READY"
    signal_all(processes_of_node(nodes.far), signal.SIGKILL)
    yield made
    with pytest.raises(ray.exceptions.ObjectLostError):
        get(made)


TOLD: dict[str, tuple[Program, str, Outlook, tuple[str, ...]]] = {
    "what both nodes have in use": (
        in_use_on_both,
        "RESOURCES",
        MOVES,
        (
            "one() needs {CPU: 1}; node NEAR has {CPU: 0} free of {CPU: 2}, node FAR has {CPU: 0, far: 1}"
            " free of {CPU: 1, far: 1}; until() runs on worker",
            "end one, or add a node with {CPU: 1}",
        ),
    ),
    "what the far node has in use": (
        in_use_on_the_far_node,
        "RESOURCES",
        MOVES,
        (
            "one() needs {CPU: 1}; node FAR has {CPU: 0, far: 1} free of {CPU: 1, far: 1}; until() runs on",
            "node FAR)",
        ),
    ),
    "labels that only a busy node has": (
        labels_of_a_busy_node,
        "RESOURCES",
        MOVES,
        (
            "needs {CPU: 1} on a node with zone = mars; node FAR has {CPU: 0} free of {CPU: 1, far: 1}",
            "node FAR)",
            "add a node with {CPU: 1} and zone = mars",
        ),
    ),
    "an argument that the far node makes": (
        an_argument_of_the_far_node,
        "RUNNING",
        MOVES,
        ("keep() waits for 1 argument; ", "until() runs on worker", "node FAR)"),
    ),
    "an actor where another lives": (
        an_actor_behind_one_on_the_far_node,
        "RESOURCES",
        OPEN,
        (
            "needs {far: 1}; node FAR has {CPU: 1, far: 0} free of",
            "actor Thing holds what it has",
            "end that",
        ),
    ),
    "what only a drained node has": (
        only_a_drained_node_has_it,
        "NODE_DRAINED",
        STUCK,
        ("its only node has {CPU: 2, far: 0}; node FAR has it, and is drained", "start a node with {far: 1}"),
    ),
    "labels that only a drained node has": (
        only_a_drained_node_has_the_labels,
        "NODE_DRAINED",
        STUCK,
        ("zone is earth (1)", "node FAR has it, and is drained", "with {far: 1} and zone = mars"),
    ),
    "an actor that only a drained node can hold": (
        an_actor_that_only_a_drained_node_can_hold,
        "NODE_DRAINED",
        STUCK,
        (
            "needs {far: 1}, which only node FAR has, and that is drained; the cluster has node NEAR",
            "start a node",
        ),
    ),
    "a placement group that only a drained node can hold": (
        a_group_that_only_a_drained_node_can_hold,
        "NODE_DRAINED",
        STUCK,
        (
            "which the only node of the cluster could not hold",
            "node FAR could hold some of it, and is drained",
        ),
    ),
    "a task that has to run on a drained node": (
        bound_to_a_drained_node,
        "READY",
        MOVES,
        ("is there, and is an error",),
    ),
    "an actor that has to live on a drained node": (
        an_actor_bound_to_a_drained_node,
        "ACTOR_DEAD",
        STUCK,
        ("has to live on node FAR", "which is drained"),
    ),
    "an actor of a node that is silent": (
        an_actor_of_a_silent_node,
        "ACTOR_RESTARTING",
        MOVES,
        (
            "restarts: node FAR",
            "is silent and may run it for up to ",
            " s more. To unblock it: wait, or end what",
        ),
    ),
    "an object of a node that is gone": (
        an_object_of_a_node_that_is_gone,
        "LOST",
        MOVES,
        ("was on node FAR, which is gone: whoever needs it",),
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_waits_on_several_nodes_is_explained(nodes: TwoNodes, tmp_path: Path, name: str) -> None:
    program, code, outlook, words = TOLD[name]
    steps = program(nodes, tmp_path)
    ids = {"NEAR": nodes.near[:8], "FAR": nodes.far.node_id[:8]}
    for title, node_id in ids.items():
        words = tuple(word.replace(title, node_id) for word in words)
    expect_explained(next(steps), code, outlook, words)
    # Here it does what it was told.
    assert next(steps, None) is None
