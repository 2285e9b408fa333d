"""On two nodes of four CPUs each, and a driver on the first: where tasks and actors run, by their options."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private.node.session import NodeRecord
from ray_mono.exceptions import ActorUnschedulableError, TaskUnschedulableError
from ray_mono.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)
from tests.integration.bounded import get
from tests.integration.clusters import CommandLineCluster, driven_cluster
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing_on_both")

NUM_CPUS = 4


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Iterator[CommandLineCluster]:
    with driven_cluster(shared_base, num_cpus=NUM_CPUS, labels="zone=a,tier=web") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def second(cluster: CommandLineCluster, shared_base: Path) -> NodeRecord:
    labels = shared_base / "labels.yaml"
    labels.write_text("zone: c\nmarket/type: spot\n")
    node = cluster.add_node(
        num_cpus=NUM_CPUS, resources={"there": 1}, labels="zone=b", labels_file=str(labels)
    )
    ray.init(address=cluster.address)
    return node


@pytest.fixture
def here(cluster: CommandLineCluster) -> str:
    return cluster.head.node_id


@pytest.fixture
def there(second: NodeRecord) -> str:
    return second.node_id


@ray.remote
def where(*arguments: Any) -> str:
    return ray.get_runtime_context().get_node_id()


@ray.remote(resources={"there": 0.1})
def make_there(num_bytes: int) -> Any:
    return np.zeros(num_bytes, np.uint8)


@ray.remote(num_cpus=1)
class Resident:
    def where(self) -> str:
        return ray.get_runtime_context().get_node_id()


@ray.remote
class Plain:
    def where(self) -> str:
        return ray.get_runtime_context().get_node_id()


class Meeting:
    """Tasks that run side by side until they may go."""

    def __init__(self, path: Path, touch_and_wait: Any) -> None:
        self._path = path

        @ray.remote
        def stay(number: int) -> str:
            touch_and_wait(f"{path}/{number}", f"{path}/go")
            return ray.get_runtime_context().get_node_id()

        self._stay = stay

    def begin(self, numbers: range, **options: Any) -> list[Any]:
        """They run when this returns."""
        refs = [self._stay.options(**options).remote(number) for number in numbers]
        wait_until(lambda: all((self._path / str(number)).exists() for number in numbers), "all of them run")
        return refs

    def end(self) -> None:
        (self._path / "go").touch()


@pytest.fixture
def meeting(tmp_path: Path, touch_and_wait: Any) -> Meeting:
    return Meeting(tmp_path, touch_and_wait)


def on(node_id: str, soft: bool = False, **more: bool) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft, **more)


def all_free() -> None:
    """Returns when every node has told that nothing runs."""
    wait_until(lambda: ray.available_resources().get("CPU") == 2 * NUM_CPUS, "all CPUs are free")


def test_long_tasks_fill_half_of_the_own_node_and_go_elsewhere_then(
    here: str, there: str, meeting: Meeting
) -> None:
    all_free()
    refs = meeting.begin(range(4))
    meeting.end()
    assert Counter(get(refs)) == {here: 2, there: 2}


def test_one_task_after_another_stays_on_the_own_node(here: str) -> None:
    assert {get(where.remote()) for _ in range(8)} == {here}


def test_a_task_goes_to_its_large_argument_and_not_to_a_small_one(here: str, there: str) -> None:
    large, small = make_there.remote(1 << 20), make_there.remote(100)
    ray.wait([large, small], num_returns=2, fetch_local=False)
    assert get(where.remote(large)) == there
    assert get(where.remote(small)) == here
    mine = ray.put(np.zeros(4 << 20, np.uint8))
    assert get(where.remote(mine, large)) == here


def test_a_task_whose_argument_lies_on_a_full_node_runs_elsewhere(
    here: str, there: str, meeting: Meeting
) -> None:
    large = make_there.remote(1 << 20)
    ray.wait([large], fetch_local=False)
    refs = meeting.begin(range(NUM_CPUS), scheduling_strategy=on(there))
    try:
        assert get(where.remote(large)) == here
    finally:
        meeting.end()
        get(refs)


def test_spread_takes_the_nodes_in_turn_also_one_after_another(here: str, there: str) -> None:
    all_free()
    spread = where.options(scheduling_strategy="SPREAD")
    visited = [get(spread.remote()) for _ in range(30)]
    assert visited in ([here, there] * 15, [there, here] * 15)


def test_actors_that_are_spread_take_the_nodes_in_turn(here: str, there: str) -> None:
    all_free()
    actors = [Resident.options(scheduling_strategy="SPREAD").remote() for _ in range(6)]
    assert Counter(get([actor.where.remote() for actor in actors])) == {here: 3, there: 3}


def test_actors_that_hold_nothing_take_the_nodes_in_turn_also_one_after_another(
    here: str, there: str
) -> None:
    for options in ({}, {"num_cpus": 0}):
        residents: list[Any] = []
        for _ in range(6):
            all_free()  # The head knows that the last one gave back the CPU that it was placed with.
            residents.append(Plain.options(**options).remote())
            get(residents[-1].where.remote())
        homes = Counter(get([resident.where.remote() for resident in residents]))
        assert homes == {here: 3, there: 3}


def test_affinity_that_may_spill_leaves_a_full_node_and_one_that_may_not_waits(
    here: str, there: str, meeting: Meeting
) -> None:
    refs = meeting.begin(range(NUM_CPUS), scheduling_strategy=on(there))
    patient = where.options(scheduling_strategy=on(there, soft=True)).remote()
    try:
        spills = on(there, soft=True, _spill_on_unavailable=True)
        assert get(where.options(scheduling_strategy=spills).remote()) == here
        assert get(Resident.options(scheduling_strategy=spills).remote().where.remote()) == here
        assert not ray.wait([patient], timeout=0)[0]
    finally:
        meeting.end()
        get(refs)
    assert get(patient) == there


def test_affinity_that_may_not_wait_is_an_error_on_a_full_node(
    here: str, there: str, meeting: Meeting
) -> None:
    all_free()
    fails = on(there, _fail_on_unavailable=True)

    def runs_there() -> bool:
        try:
            return bool(get(where.options(scheduling_strategy=fails).remote()) == there)
        except TaskUnschedulableError:
            return False

    # The head knows that it is free, and this node's raylet, which decides, a moment later.
    wait_until(runs_there, "it runs where there is room")
    refs = meeting.begin(range(NUM_CPUS), scheduling_strategy=on(there))
    try:
        with pytest.raises(TaskUnschedulableError, match=f"node {there}, which has not .CPU: 1. free now"):
            get(where.options(scheduling_strategy=fails).remote())
        actor = Resident.options(scheduling_strategy=fails).remote()
        with pytest.raises(ActorUnschedulableError, match="has not .CPU: 1. free now"):
            get(actor.where.remote())
    finally:
        meeting.end()
        get(refs)


def test_affinity_to_a_node_that_could_never_hold_it_or_has_other_labels_is_an_error(
    here: str, there: str
) -> None:
    for node, options, why in (
        (here, {"resources": {"there": 1}}, "which has .*there: 0.* in all"),
        (there, {"label_selector": {"zone": "a"}}, "with zone = a, and that has other labels"),
    ):
        placed: Any = {"scheduling_strategy": on(node), **options}
        with pytest.raises(TaskUnschedulableError, match=f"{node}.* {why}"):
            get(where.options(**placed).remote())
        with pytest.raises(ActorUnschedulableError, match=f"{node}.* {why}"):
            get(Resident.options(**placed).remote().where.remote())


# ---- labels


def test_every_node_tells_its_labels_and_its_id_among_them(here: str, there: str) -> None:
    told = {node["NodeID"]: node["Labels"] for node in ray.nodes()}
    assert told == {
        here: {"zone": "a", "tier": "web", "ray.io/node-id": here},
        there: {"zone": "b", "market/type": "spot", "ray.io/node-id": there},
    }
    assert ray.get_runtime_context().get_node_labels() == told[here]


def test_a_label_selector_says_where_tasks_and_actors_run(here: str, there: str) -> None:
    for selector, node_id in (
        ({"zone": "b"}, there),
        ({"zone": "!a"}, there),
        ({"zone": "in(c, b)"}, there),
        ({"zone": "!in(b, c)"}, here),
        ({"market/type": "spot", "tier": "!web"}, there),
        ({"ray.io/node-id": there}, there),
    ):
        assert {get(where.options(label_selector=selector).remote()) for _ in range(2)} == {node_id}
        actor = Resident.options(label_selector=selector).remote()
        assert get(actor.where.remote()) == node_id


def test_a_label_strategy_says_where_tasks_and_actors_run(here: str, there: str) -> None:
    for hard, soft, node_id in (
        ({"zone": In("b", "c")}, None, there),
        ({"zone": NotIn("b")}, None, here),
        ({"tier": DoesNotExist()}, None, there),
        ({"zone": Exists()}, {"market/type": In("spot")}, there),
        ({"tier": Exists()}, {"market/type": In("spot")}, here),
        (None, {"zone": In("b")}, there),
    ):
        strategy = NodeLabelSchedulingStrategy(hard, soft=soft)
        assert get(where.options(scheduling_strategy=strategy).remote()) == node_id
        # Soft labels are given up where the head believes that there is no room.
        all_free()
        actor = Resident.options(scheduling_strategy=strategy).remote()
        assert get(actor.where.remote()) == node_id
        del actor


def test_selected_nodes_are_packed_and_spread_as_all_are(here: str, there: str) -> None:
    all_free()
    spread = where.options(scheduling_strategy="SPREAD", label_selector={"zone": "b"})
    assert {get(spread.remote()) for _ in range(3)} == {there}
    both = where.options(scheduling_strategy="SPREAD", label_selector={"zone": "in(a, b)"})
    visited = [get(both.remote()) for _ in range(4)]
    assert visited in ([here, there] * 2, [there, here] * 2)


def test_a_fallback_is_taken_while_what_comes_first_has_no_room_or_is_nowhere(
    here: str, there: str, meeting: Meeting
) -> None:
    picky = {
        "label_selector": {"zone": "z"},
        "fallback_strategy": [{"label_selector": {"zone": "b"}}, {"label_selector": {"zone": "a"}}],
    }
    assert get(where.options(**picky).remote()) == there
    refs = meeting.begin(range(NUM_CPUS), label_selector={"zone": "b"})
    try:
        assert get(where.options(**picky).remote()) == here
        assert get(Resident.options(**picky).remote().where.remote()) == here
    finally:
        meeting.end()
        assert set(get(refs)) == {there}


def test_work_whose_labels_no_node_has_waits_for_one_that_joins(cluster: CommandLineCluster) -> None:
    waiting = where.options(label_selector={"zone": "z"}).remote()
    actor = Resident.options(label_selector={"zone": "z"}).remote()
    living = actor.where.remote()
    assert not ray.wait([waiting, living], timeout=0)[0]
    node = cluster.add_node(num_cpus=2, labels="zone=z")
    try:
        assert get([waiting, living]) == [node.node_id] * 2
    finally:
        del actor, waiting, living
        cluster.remove_node(node)


@ray.remote
def work() -> None:
    time.sleep(0.05)


def test_actors_that_each_need_a_node_have_one_each_beside_a_stream_of_tasks(here: str, there: str) -> None:
    """Tasks give way to one that waits on their node: so each has to wait on another one."""
    tasks = [work.remote() for _ in range(6 * NUM_CPUS)]

    def goes_on(until: Callable[[], bool]) -> bool:
        done, left = ray.wait(tasks, timeout=0.1)
        tasks[:] = [*left, *(work.remote() for _ in done)]
        return until()

    wait_until(lambda: goes_on(lambda: not ray.available_resources().get("CPU")), "both nodes are full")
    strategy = NodeLabelSchedulingStrategy(hard={}, soft={"zone": In("a")})
    options = {"num_cpus": NUM_CPUS, "scheduling_strategy": strategy}
    actors = [Resident.options(**options).remote() for _ in range(2)]
    calls = [actor.where.remote() for actor in actors]
    wait_until(lambda: goes_on(lambda: not ray.wait(calls, num_returns=2, timeout=0)[1]), "both live")
    assert {*get(calls)} == {here, there}
