"""Programs that wait for room in a store, or for a value of another node, and what `explain` says of them:
the third table. Nothing is spilled. When it was explained, each does what the sentence says, and goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private.node.session import NodeRecord
from ray_mono.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.integration.bounded import get
from tests.integration.clusters import join_cluster, processes_of_node, service_pid, signal_all
from tests.integration.explained import MOVES, OPEN, STUCK, Outlook, expect_explained, first_node
from tests.waiting import wait_until

MIB = 1 << 20
STORE_BYTES = 64 * MIB
PIECE_BYTES = 10 * MIB
PIECES = STORE_BYTES // PIECE_BYTES
# Longer than a test waits.
PATIENCE_S = 120
SETTINGS = {
    "automatic_object_spilling_enabled": False,
    "object_manager": {"create_timeout_s": PATIENCE_S, "pull_memory_timeout_s": PATIENCE_S},
}


class Stores:
    """The driver's node, and the other one when it is needed."""

    def __init__(self, base: Path, address: str) -> None:
        self._base = base
        self._address = address
        self.near = ray.get_runtime_context().get_node_id()
        self.far: NodeRecord | None = None

    def add_far(self) -> NodeRecord:
        options = {"node_ip_address": "127.0.0.1", "num_cpus": 1, "object_store_memory": STORE_BYTES}
        self.far = join_cluster(self._base, self._address, **options)
        return self.far

    def far_piece(self) -> Any:
        """A value that lies there, and only there."""
        strategy = NodeAffinitySchedulingStrategy(self.add_far().node_id, soft=False)
        ref = make.options(scheduling_strategy=strategy).remote()
        ready, _ = ray.wait([ref], timeout=60, fetch_local=False)
        assert ready
        return ref


@pytest.fixture
def stores(session_base: Path, by_value: None) -> Iterator[Stores]:
    with first_node(object_store_memory=STORE_BYTES, _system_config=SETTINGS) as address:
        yield Stores(session_base, address)


def piece() -> Any:
    return np.zeros(PIECE_BYTES, np.uint8)


def fill() -> list[Any]:
    """No other piece has room beside these."""
    return [ray.put(piece()) for _ in range(PIECES)]


@ray.remote(num_cpus=0)
def make() -> Any:
    return np.zeros(PIECE_BYTES, np.uint8)


@ray.remote(num_cpus=0)
def put() -> int:
    return len(get(ray.put(np.zeros(PIECE_BYTES, np.uint8))))


@ray.remote(num_cpus=0)
def put_and_keep(path: str, number: int) -> int:
    """So many until there is such a file, and then one more."""
    kept = [ray.put(np.zeros(PIECE_BYTES, np.uint8)) for _ in range(number)]
    while not os.path.exists(path):
        time.sleep(0.01)
    kept.append(ray.put(np.zeros(PIECE_BYTES, np.uint8)))
    return len(kept)


@ray.remote(num_cpus=0)
def length(value: Any) -> int:
    return len(value)


@ray.remote(num_cpus=0)
def length_of(refs: list[Any]) -> int:
    return len(get(refs[0]))


@ray.remote(num_cpus=0)
class Keeper:
    def fill(self, number: int) -> None:
        self.kept = [ray.put(np.zeros(PIECE_BYTES, np.uint8)) for _ in range(number)]


class Getting(threading.Thread):
    """A get of this process, beside it."""

    def __init__(self, ref: Any) -> None:
        super().__init__(daemon=True)
        self._ref = ref
        self.length = 0
        self.start()

    def run(self) -> None:
        self.length = len(get(self._ref))

    def ended(self) -> int:
        self.join(60)
        return self.length


Program = Callable[[Stores, Path], Iterator[Any]]


# ---- room


def a_put_without_room(stores: Stores, tmp_path: Path) -> Iterator[Any]:
    kept = fill()
    waits = put.remote()
    yield waits
    kept.clear()
    assert get(waits) == PIECE_BYTES


def a_return_without_room(stores: Stores, tmp_path: Path) -> Iterator[Any]:
    kept = fill()
    waits = make.remote()
    yield waits
    kept.clear()
    assert len(get(waits)) == PIECE_BYTES


def room_that_an_actor_has(stores: Stores, tmp_path: Path) -> Iterator[Any]:
    keeper = Keeper.remote()
    get(keeper.fill.remote(PIECES))
    waits = put.remote()
    yield waits
    ray.kill(keeper)
    assert get(waits) == PIECE_BYTES


def room_that_tasks_have(stores: Stores, tmp_path: Path) -> Iterator[Any]:
    """Each has half of it, and wants more."""
    path = tmp_path / "more"
    first, second = (put_and_keep.remote(str(path), PIECES // 2) for _ in range(2))
    wait_until(lambda: ray.available_resources().get("object_store_memory", 0) < PIECE_BYTES, "it is full")
    path.touch()
    yield first
    ray.cancel(second, force=True)
    assert get(first) == PIECES // 2 + 1


def a_copy_without_room(stores: Stores, tmp_path: Path) -> Iterator[Any]:
    waits = stores.far_piece()
    kept = fill()
    getting = Getting(waits)
    yield waits
    kept.clear()
    assert getting.ended() == PIECE_BYTES


def a_get_of_a_task_without_room(stores: Stores, tmp_path: Path) -> Iterator[Any]:
    far = stores.far_piece()
    kept = fill()
    here = NodeAffinitySchedulingStrategy(stores.near, soft=False)
    waits = length_of.options(scheduling_strategy=here).remote([far])
    yield waits
    kept.clear()
    assert get(waits) == PIECE_BYTES


# ---- copies


def a_value_that_nobody_fetches(stores: Stores, tmp_path: Path) -> Iterator[Any]:
    waits = stores.far_piece()
    yield waits
    assert len(get(waits)) == PIECE_BYTES


def from_a_store_that_stands_still(stores: Stores, wait: Callable[[Any], Any]) -> Iterator[Any]:
    far = stores.far_piece()
    assert stores.far is not None
    pid = service_pid(stores.far, "object_manager")
    os.kill(pid, signal.SIGSTOP)
    try:
        waits = wait(far)
        yield far if isinstance(waits, Getting) else waits
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (waits.ended() if isinstance(waits, Getting) else get(waits)) == PIECE_BYTES


def a_get_from_a_store_that_stands_still(stores: Stores, tmp_path: Path) -> Iterator[Any]:
    return from_a_store_that_stands_still(stores, Getting)


def a_tasks_get_from_a_store_that_stands_still(stores: Stores, tmp_path: Path) -> Iterator[Any]:
    here = NodeAffinitySchedulingStrategy(stores.near, soft=False)
    task = length_of.options(scheduling_strategy=here)
    return from_a_store_that_stands_still(stores, lambda far: task.remote([far]))


def an_argument_from_a_store_that_stands_still(stores: Stores, tmp_path: Path) -> Iterator[Any]:
    here = NodeAffinitySchedulingStrategy(stores.near, soft=False)
    task = length.options(scheduling_strategy=here)
    return from_a_store_that_stands_still(stores, task.remote)


def from_a_node_that_stands_still(stores: Stores, tmp_path: Path) -> Iterator[Any]:
    waits = stores.far_piece()
    assert stores.far is not None
    processes = processes_of_node(stores.far)
    signal_all(processes, signal.SIGSTOP)
    try:
        getting = Getting(waits)
        yield waits
    finally:
        signal_all(processes, signal.SIGCONT)
    assert getting.ended() == PIECE_BYTES


# In a store a piece has a little more than its bytes.
FULL = "capacity 67108864 bytes, used 6291"
TOLD: dict[str, tuple[Program, str, Outlook, tuple[str, ...]]] = {
    "a put without room": (
        a_put_without_room,
        "STORE_FULL",
        OPEN,
        (
            "put() on worker ",
            "waits for room in its node's object store; the object store of node NEAR has no room for",
            "has no room for the 104",
            FULL,
            " owns 6291",
            "the driver (pid PID) holds its references until it drops them. To unblock it: drop references",
        ),
    ),
    "a return without room": (
        a_return_without_room,
        "STORE_FULL",
        OPEN,
        ("make() on worker ", "has no room for the 104", FULL, " owns 6291", "the driver (pid PID) holds"),
    ),
    "room that an actor has": (
        room_that_an_actor_has,
        "STORE_FULL",
        OPEN,
        ("has no room for the 104", FULL, " owns 6291", "actor Keeper holds what it has on worker"),
    ),
    "room of which each task has half": (
        room_that_tasks_have,
        "DEADLOCK",
        STUCK,
        ("has no room for the 104", " owns 3145", "put_and_keep()", "wait for each other"),
    ),
    "a copy without room": (
        a_copy_without_room,
        "STORE_FULL",
        OPEN,
        (
            "is there on node FAR, and is wanted on node NEAR; the object store of node NEAR has no room for",
            "of node FAR, which has 104",
            FULL,
            "the driver (pid PID) holds",
        ),
    ),
    "a task's get without room": (
        a_get_of_a_task_without_room,
        "STORE_FULL",
        OPEN,
        (
            "length_of() on worker ",
            "waits in its code for 1 object; the object store of node NEAR has no room",
        ),
    ),
    "a value of another node that nobody fetches": (
        a_value_that_nobody_fetches,
        "READY",
        MOVES,
        ("is there on node FAR.",),
    ),
    "a value of a store that stands still": (
        a_get_from_a_store_that_stands_still,
        "UNREACHABLE",
        OPEN,
        (
            "is there on node FAR, and is wanted on node NEAR; ",
            "is on its way from node FAR to node NEAR, which has 0 bytes so far",
            "the object store of node FAR cannot be asked: ",
            "To unblock it: look at the object manager of node FAR",
        ),
    ),
    "a task's get of a value of a store that stands still": (
        a_tasks_get_from_a_store_that_stands_still,
        "UNREACHABLE",
        OPEN,
        ("waits in its code for 1 object; ", "from node FAR to node NEAR", "of node FAR cannot be asked"),
    ),
    "an argument of a store that stands still": (
        an_argument_from_a_store_that_stands_still,
        "UNREACHABLE",
        OPEN,
        (
            "waits before it begins for 1 object; ",
            "from node FAR to node NEAR",
            "of node FAR cannot be asked",
        ),
    ),
    "a value of a node that stands still": (
        from_a_node_that_stands_still,
        "UNREACHABLE",
        OPEN,
        ("is on its way from node FAR to node NEAR", "the raylet at 127.0.0.1:", "did not answer within 2 s"),
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_waits_for_a_store_is_explained(stores: Stores, tmp_path: Path, name: str) -> None:
    program, code, outlook, words = TOLD[name]
    steps = program(stores, tmp_path)
    waits = next(steps)
    ids = {"NEAR": stores.near[:8], "PID": str(os.getpid())}
    if stores.far is not None:
        ids["FAR"] = stores.far.node_id[:8]
    for title, told in ids.items():
        words = tuple(word.replace(title, told) for word in words)
    expect_explained(waits, code, outlook, words)
    assert next(steps, None) is None
