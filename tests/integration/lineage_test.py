"""What a killed node held is made again on another one, as often as the tasks may run."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private.node.session import NodeRecord
from ray_mono.core_worker.process import current
from ray_mono.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    OwnerDiedError,
    RayTaskError,
)
from ray_mono.protobuf import common_pb2
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.integration.clusters import CommandLineCluster, driven_cluster, service_pid
from tests.integration.nothing_left import wait_for_nothing_left
from tests.waiting import wait_until

LARGE = 1 << 18
THERE = {"num_cpus": 0, "resources": {"there": 0.001}}


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Iterator[CommandLineCluster]:
    """The head, with 2 CPUs; this process is a driver there."""
    with driven_cluster(shared_base, num_cpus=2, resources={"here": 10}) as cluster:
        ray.init(address=cluster.address)
        yield cluster


class Doomed:
    """One node at a time with 2 CPUs and "there"; `die` kills it, and starts the next."""

    def __init__(self, cluster: CommandLineCluster) -> None:
        self._cluster = cluster
        self._nodes: list[NodeRecord] = []
        self._start()

    def _start(self) -> None:
        self._nodes.append(self._cluster.add_node(num_cpus=2, resources={"there": 10}))

    @property
    def node_id(self) -> str:
        return self._nodes[-1].node_id

    def kill(self, service: str = "raylet") -> None:
        os.kill(service_pid(self._nodes[-1], service), signal.SIGKILL)

    def die(self, service: str = "raylet") -> None:
        lost = self._nodes[-1].node_id
        self.kill(service)
        wait_until(lambda: lost not in alive_nodes(), "the cluster knows that the node is dead")
        self._start()


def alive_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@pytest.fixture(scope="module")
def nodes_to_kill(cluster: CommandLineCluster) -> Doomed:
    return Doomed(cluster)


@pytest.fixture
def doomed(nodes_to_kill: Doomed) -> Iterator[Doomed]:
    yield nodes_to_kill
    wait_for_nothing_left()


class Runs:
    """How often each named piece of code ran."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, name: str) -> None:
        with open(self._folder / f"ran_{name}", "a") as file:
            file.write("x")

    def of(self, name: str) -> int:
        path = self._folder / f"ran_{name}"
        return len(path.read_text()) if path.exists() else 0


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def array_of(number: int) -> Any:
    return np.full(LARGE, number % 256, np.uint8)


@ray.remote(num_cpus=1, resources=THERE["resources"])
def make(runs: Runs, name: str, *parents: Any) -> Any:
    """One more than the sum of its parents."""
    runs.note(name)
    return array_of(1 + sum(int(parent[0]) for parent in parents))


def are_made(*references: Any) -> None:
    """Waits, and brings nothing here."""
    ready, _ = ray.wait(
        list(references), num_returns=len(references), timeout=GET_TIMEOUT_S, fetch_local=False
    )
    assert len(ready) == len(references)


# ---- plain tasks


@pytest.mark.parametrize("service", ["raylet", "object_manager"])
def test_a_value_that_died_with_its_node_is_made_again(doomed: Doomed, runs: Runs, service: str) -> None:
    lost = make.remote(runs, "lost")
    are_made(lost)
    doomed.die(service)
    assert get(lost)[0] == 1 and runs.of("lost") == 2


def test_a_chain_of_any_depth_is_made_again_each_once_whether_it_is_held_or_not(
    doomed: Doomed, runs: Runs
) -> None:
    held, dropped = [make.remote(runs, "held0")], make.remote(runs, "dropped0")
    for depth in range(1, 15):
        held.append(make.remote(runs, f"held{depth}", held[-1]))
        dropped = make.remote(runs, f"dropped{depth}", dropped)
    are_made(*held, dropped)
    doomed.die()
    assert get(dropped)[0] == 15 and get(held[-1])[0] == 15
    assert get(held[3])[0] == 4
    for name in ("held", "dropped"):
        assert [runs.of(f"{name}{depth}") for depth in range(15)] == [2] * 15


def test_what_is_not_held_any_more_is_made_again_once_for_all_that_need_it(
    doomed: Doomed, runs: Runs
) -> None:
    @ray.remote(num_cpus=1, resources=THERE["resources"], num_returns=6)
    def pieces() -> list[Any]:
        runs.note("pieces")
        return [array_of(number) for number in range(6)]

    sixth = pieces.remote()
    middle = [make.remote(runs, "middle", piece) for piece in sixth]
    last = [make.remote(runs, "last", each) for each in middle]
    are_made(*last)
    del sixth, middle
    doomed.die()
    assert [get(each)[0] for each in last] == [2, 3, 4, 5, 6, 7]
    assert (runs.of("pieces"), runs.of("middle"), runs.of("last")) == (2, 12, 12)


def test_each_loss_costs_a_retry_as_in_ray(doomed: Doomed, runs: Runs) -> None:
    """Ray 2.60 runs a task with max_retries=2 three times."""
    never, twice = make.options(max_retries=0).remote(runs, "never"), make.options(max_retries=2)
    ref = twice.remote(runs, "twice")
    are_made(never, ref)

    @ray.remote(**THERE)
    def look(boxed: list[Any]) -> int:
        return int(ray.get(boxed[0])[0])

    for _ in range(2):
        doomed.die()
        assert get(look.remote([ref])) == 1
    doomed.die()
    for lost, reason in ((never, "RETRIES_DISABLED"), (ref, "MAX_ATTEMPTS_EXCEEDED")):
        with pytest.raises(ObjectReconstructionFailedError, match=lost.hex()) as caught:
            get(lost)
        assert caught.value.reason == f"OBJECT_UNRECONSTRUCTABLE_{reason}"
        assert isinstance(caught.value, ObjectLostError)
        with pytest.raises(ObjectReconstructionFailedError, match=lost.hex()) as of_user:
            get(look.options(num_cpus=0).remote([lost]))
        assert isinstance(of_user.value, RayTaskError)
    assert (runs.of("never"), runs.of("twice")) == (1, 3)


def test_a_put_that_is_lost_is_told_as_that(doomed: Doomed) -> None:
    @ray.remote(num_cpus=0, resources={"here": 1})
    class Holder:
        """It puts on the head, and its node's store is the head's."""

        def put(self) -> list[Any]:
            return [ray.put(array_of(1))]

    @ray.remote(**THERE)
    class Owner:
        def put(self) -> list[Any]:
            return [ray.put(array_of(1))]

    owner, holder = Owner.remote(), Holder.remote()
    (theirs,), (ours,) = get(owner.put.remote()), get(holder.put.remote())
    doomed.die()
    with pytest.raises(OwnerDiedError, match=theirs.hex()):
        get(theirs)
    assert get(ours)[0] == 1


def test_several_returns_are_made_again_by_one_run(doomed: Doomed, runs: Runs) -> None:
    @ray.remote(**THERE, num_returns=3)
    def several() -> tuple[Any, ...]:
        runs.note("several")
        return array_of(1), "small", array_of(3)

    refs = several.remote()
    are_made(*refs)
    doomed.die()
    assert get(refs[2])[0] == 3 and get(refs[0])[0] == 1 and get(refs[1]) == "small"
    assert runs.of("several") == 2


def test_small_arguments_and_what_is_inside_of_them_are_kept_for_it(doomed: Doomed, runs: Runs) -> None:
    @ray.remote(**THERE)
    def use(boxed: list[Any], large: Any) -> Any:
        runs.note("use")
        return large + ray.get(boxed[0])

    inner = ray.put(1)
    ref = use.remote(ray.put([inner]), ray.put(array_of(1)))
    are_made(ref)
    del inner
    doomed.die()
    assert get(ref)[0] == 2 and runs.of("use") == 2


# ---- whoever waits


def test_borrowers_waits_gets_with_a_timeout_and_awaits_go_on(doomed: Doomed, runs: Runs) -> None:
    refs = [make.remote(runs, f"task{number}") for number in range(5)]
    are_made(*refs)

    @ray.remote(num_cpus=0, resources={"here": 1})
    def borrow(boxed: list[Any]) -> int:
        return int(ray.get(boxed[0])[0])

    @ray.remote(num_cpus=0, resources={"here": 1})
    def use(value: Any) -> int:
        return int(value[0])

    async def awaits(ref: Any) -> int:
        return int((await ref)[0])

    doomed.die()
    answers = [borrow.remote([refs[0]]), borrow.remote([refs[0]]), use.remote(refs[1])]
    ready, pending = ray.wait([refs[2]], timeout=GET_TIMEOUT_S, fetch_local=True)
    assert ready and not pending
    assert ray.get(refs[3], timeout=GET_TIMEOUT_S)[0] == 1
    assert asyncio.run(awaits(refs[4])) == 1
    assert get(answers) == [1, 1, 1]
    assert [runs.of(f"task{number}") for number in range(5)] == [2] * 5


def test_a_get_with_a_timeout_ends_while_it_is_made_again(
    cluster: CommandLineCluster, doomed: Doomed, tmp_path: Path
) -> None:
    @ray.remote(**THERE)
    def slow() -> Any:
        if (tmp_path / "ran").exists():
            wait_until((tmp_path / "go").exists, "it may go on")
        (tmp_path / "ran").touch()
        return array_of(1)

    ref = slow.remote()
    are_made(ref)
    doomed.die()
    with pytest.raises(GetTimeoutError, match="slow"):
        ray.get(ref, timeout=0.5)
    assert ray.wait([ref], timeout=0) == ([], [ref])
    (tmp_path / "go").touch()
    assert get(ref)[0] == 1


def test_many_that_get_one_lost_object_at_once_have_it_made_again_once(doomed: Doomed, runs: Runs) -> None:
    ref = make.remote(runs, "lost")
    are_made(ref)
    doomed.die()
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(int(get(ref)[0]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GET_TIMEOUT_S)
    assert found == [1] * 8 and runs.of("lost") == 2


def test_hundreds_of_lost_objects_are_made_again_each_once(doomed: Doomed, runs: Runs) -> None:
    @ray.remote(num_cpus=1, resources=THERE["resources"])
    def mapped(number: int) -> Any:
        runs.note("mapped")
        return array_of(number)

    refs = [*[make.remote(runs, "any") for _ in range(100)], *mapped.map(range(100))]
    are_made(*refs)
    doomed.die()
    assert [int(value[0]) for value in get(refs)] == [*[1] * 100, *range(100)]
    assert runs.of("any") == runs.of("mapped") == 200


def test_an_owner_in_another_process_makes_it_again(doomed: Doomed, runs: Runs) -> None:
    @ray.remote(num_cpus=0, resources={"here": 1})
    class Owner:
        def start(self) -> list[Any]:
            self.ref = make.remote(runs, "lost")
            return [self.ref]

    owner = Owner.remote()
    (ref,) = get(owner.start.remote())
    are_made(ref)
    doomed.die()
    assert get(ref)[0] == 1 and runs.of("lost") == 2


# ---- generators


@pytest.mark.parametrize("kind", ["streaming", "dynamic", 3])
def test_the_items_of_a_generator_are_made_again(doomed: Doomed, runs: Runs, kind: Any) -> None:
    @ray.remote(**THERE, num_returns=kind)
    def items() -> Iterator[Any]:
        runs.note("items")
        for number in range(3):
            yield array_of(number)

    made = items.remote()
    refs = list(made) if kind == "streaming" else list(get(made)) if kind == "dynamic" else made
    are_made(*refs)
    del made
    doomed.die()
    assert [int(get(ref)[0]) for ref in reversed(refs)] == [2, 1, 0]
    assert runs.of("items") == 2


@pytest.mark.parametrize("backpressure", [-1, 1])
def test_a_stream_goes_on_where_its_node_dies_in_the_middle_with_the_items_that_are_there(
    doomed: Doomed, runs: Runs, tmp_path: Path, backpressure: int
) -> None:
    @ray.remote(**THERE, _generator_backpressure_num_objects=backpressure)
    def items() -> Iterator[Any]:
        runs.note("items")
        for number in range(4):
            if number == 2 and runs.of("items") == 1:
                wait_until((tmp_path / "never").exists, "its node is killed")
            yield array_of(number)

    made = items.remote()
    first, second = next(made), next(made) if backpressure < 0 else None
    doomed.die()
    assert get(first)[0] == 0
    rest = [int(get(ref)[0]) for ref in ([second] if second is not None else []) + list(made)]
    assert rest == [1, 2, 3] and runs.of("items") == 2


# ---- actors


@pytest.mark.parametrize("max_task_retries", [0, 1])
def test_what_a_call_of_an_actor_returned_is_made_again_where_its_retries_allow(
    cluster: CommandLineCluster, doomed: Doomed, runs: Runs, max_task_retries: int
) -> None:
    @ray.remote(**THERE, max_restarts=1, max_task_retries=max_task_retries)
    class Maker:
        def make(self) -> Any:
            runs.note("call")
            return array_of(1)

    maker = Maker.remote()
    ref = maker.make.remote()
    are_made(ref)
    doomed.die()
    if max_task_retries:
        assert get(ref)[0] == 1 and runs.of("call") == 2
    else:
        with pytest.raises(ObjectReconstructionFailedError) as caught:
            get(ref)
        assert caught.value.reason == "OBJECT_UNRECONSTRUCTABLE_RETRIES_DISABLED" and runs.of("call") == 1


def test_an_actor_that_is_dead_makes_nothing_again(doomed: Doomed, runs: Runs) -> None:
    @ray.remote(**THERE, max_task_retries=1)
    class Maker:
        def make(self) -> Any:
            runs.note("call")
            return array_of(1)

    maker = Maker.remote()
    ref = maker.make.remote()
    are_made(ref)
    doomed.die()
    with pytest.raises(ActorDiedError):
        get(ref)
    assert runs.of("call") == 1


def test_results_keep_no_actor_alive(doomed: Doomed) -> None:
    @ray.remote(**THERE, max_task_retries=1)
    class Maker:
        def make(self) -> Any:
            return array_of(1)

    maker = Maker.remote()
    ref = maker.make.remote()
    are_made(ref)
    del maker
    wait_until(lambda: not alive_actors(), "the end of the actor")
    assert get(ref)[0] == 1


def alive_actors() -> list[Any]:
    rows = current.require().global_state.actors()
    return [row for row in rows if row.state != common_pb2.DEAD]
