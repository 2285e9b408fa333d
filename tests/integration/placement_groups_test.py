"""Placement groups on one node, as programs use them: their lives, what runs in them, what becomes of that
when they are removed."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import (
    ActorDiedError,
    ActorPlacementGroupRemoved,
    GetTimeoutError,
    TaskPlacementGroupRemoved,
)
from ray_mono.util import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray_mono.util.placement_group import PlacementGroup
from ray_mono.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup
from tests.integration.bounded import get
from tests.waiting import wait_until

NUM_CPUS = 4
WAIT_S = 30


@pytest.fixture(scope="module", autouse=True)
def session(shared_base: Path, by_value: None) -> Iterator[None]:
    ray.init(address="local", num_cpus=NUM_CPUS, resources={"A": 2}, namespace="space")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def everything_comes_back() -> Iterator[None]:
    """After each test no group is left, and all of the node is free."""
    yield
    for table in placement_group_table().values():
        if table["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(table["placement_group_id"])))
    wait_until(lambda: ray.available_resources().get("CPU") == NUM_CPUS, "all CPUs free", WAIT_S)
    assert not [name for name in ray.available_resources() if "_group_" in name]


@pytest.fixture
def group() -> PlacementGroup:
    made = placement_group([{"CPU": 1}, {"CPU": 2, "A": 1}])
    assert made.wait(WAIT_S)
    return made


@ray.remote(num_cpus=0)
def where() -> Any:
    context = ray.get_runtime_context()
    return (
        context.get_placement_group_id(),
        context.should_capture_child_tasks_in_placement_group,
        context.get_assigned_resources(),
    )


@ray.remote(num_cpus=0)
def of_child(**options: Any) -> Any:
    return ray.get(where.options(**options).remote(), timeout=WAIT_S)


@ray.remote
class Asker:
    def where(self) -> Any:
        return ray.get_runtime_context().get_placement_group_id()

    def of_child(self, **options: Any) -> Any:
        return ray.get(where.options(**options).remote(), timeout=WAIT_S)

    def of_thread(self) -> Any:
        seen: list[Any] = []
        thread = threading.Thread(
            target=lambda: seen.append(ray.get_runtime_context().get_placement_group_id())
        )
        thread.start()
        thread.join()
        return seen[0]

    def child_actor(self) -> Any:
        return ray.get(Asker.options(num_cpus=0).remote().where.remote(), timeout=WAIT_S)


# ---- lives


def test_a_group_is_created_and_its_resources_are_taken() -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 1, "A": 1}], strategy="SPREAD")
    assert group.wait(WAIT_S) and get(group.ready()) == group
    table = placement_group_table(group)
    node_id = ray.get_runtime_context().get_node_id()
    assert table["bundles"] == {0: {"CPU": 1.0}, 1: {"CPU": 1.0, "A": 1.0}}
    assert table["bundles_to_node_id"] == {0: node_id, 1: node_id}
    assert (table["state"], table["strategy"], table["name"]) == ("CREATED", "SPREAD", "")
    assert table["stats"]["scheduling_state"] == "FINISHED"
    wait_until(lambda: ray.available_resources()["CPU"] == NUM_CPUS - 2, "2 CPUs in the group", WAIT_S)
    remove_placement_group(group)
    wait_until(lambda: ray.available_resources()["CPU"] == NUM_CPUS, "all CPUs free again", WAIT_S)


def test_a_group_that_does_not_fit_waits_for_one_that_is_removed() -> None:
    first = placement_group([{"CPU": NUM_CPUS}])
    assert first.wait(WAIT_S)
    second = placement_group([{"CPU": NUM_CPUS}])
    ready = second.ready()
    assert not second.wait(0.2) and placement_group_table(second)["state"] == "PENDING"
    with pytest.raises(GetTimeoutError):
        ray.get(ready, timeout=0.1)
    remove_placement_group(first)
    assert get(ready) == second and second.wait(WAIT_S)


def test_a_removed_group_is_gone_for_whoever_waits() -> None:
    group = placement_group([{"CPU": 100}])
    ready = group.ready()
    remove_placement_group(group)
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemoved):
        get(ready)
    with pytest.raises(TaskPlacementGroupRemoved, match=f"of this task was removed: {group.id.hex()}"):
        get(group.ready())
    with pytest.raises(ValueError, match="does not exist any more"):
        group.wait(WAIT_S)
    wait_until(lambda: placement_group_table(group)["state"] == "REMOVED", "a removed group", WAIT_S)


def test_names_are_of_the_namespace_and_free_again_after_the_removal() -> None:
    group = placement_group([{"CPU": 1}], name="mine")
    found = get_placement_group("mine")
    assert found == group and found.bundle_specs == [{"CPU": 1}]
    with pytest.raises(ValueError, match=f"'mine' is taken.*{group.id.hex()}"):
        placement_group([{"CPU": 1}], name="mine")
    remove_placement_group(group)
    with pytest.raises(ValueError, match="there is no placement group named 'mine'"):
        get_placement_group("mine")
    assert placement_group([{"CPU": 1}], name="mine").wait(WAIT_S)


def test_a_thousand_groups_do_not_wait_for_an_answer_each() -> None:
    started_s = time.monotonic()
    groups = [placement_group([{"CPU": 0.001}]) for _ in range(1000)]
    made_s = time.monotonic() - started_s
    assert all(group.wait(WAIT_S) for group in groups)
    for group in groups:
        remove_placement_group(group)
    assert made_s < 10


def test_a_wait_for_no_time_tells_how_the_group_is() -> None:
    group = placement_group([{"CPU": NUM_CPUS}])
    assert group.wait(WAIT_S)
    too_many = placement_group([{"CPU": 1}])
    for _ in range(3):
        assert group.wait(0) and group.wait(0.0) and not too_many.wait(0)
    remove_placement_group(too_many)
    remove_placement_group(group)
    with pytest.raises(ValueError, match="it was removed"):
        group.wait(0)


def test_the_empty_group_is_there_at_once() -> None:
    empty = PlacementGroup.empty()
    assert get(empty.ready()) == empty


def test_nobody_knows_a_group_that_never_was() -> None:
    unknown = PlacementGroup(ray.PlacementGroupID(b"?" * 18))
    assert placement_group_table(unknown) == {} and not unknown.wait(0.2)
    remove_placement_group(unknown)


# ---- what runs in them


@pytest.mark.parametrize("index", [-1, 0, 1])
def test_a_task_runs_in_the_bundle_that_it_names(group: PlacementGroup, index: int) -> None:
    in_it = where.options(scheduling_strategy=InGroup(group, index), num_cpus=1)
    assert get(in_it.remote()) == (group.id.hex(), False, {"CPU": 1.0})
    needs_nothing = where.options(scheduling_strategy=InGroup(group, index))
    assert get(needs_nothing.remote()) == (group.id.hex(), False, {})


def test_tasks_of_a_group_share_what_it_has(group: PlacementGroup) -> None:
    @ray.remote(num_cpus=1)
    def one() -> float:
        time.sleep(0.05)
        return 1

    tasks = [one.options(scheduling_strategy=InGroup(group)).remote() for _ in range(20)]
    assert sum(get(tasks)) == 20


def test_handles_may_be_sent_on(group: PlacementGroup) -> None:
    @ray.remote(num_cpus=0)
    def use(handle: PlacementGroup) -> Any:
        assert handle.wait(WAIT_S) and ray.get(handle.ready()) == handle
        return ray.get(where.options(scheduling_strategy=InGroup(handle, 1)).remote())[0]

    assert get(use.remote(group)) == group.id.hex()
    assert pickle.loads(pickle.dumps(group)) == group


def test_children_of_what_captures_run_in_its_group(group: PlacementGroup) -> None:
    captures = of_child.options(scheduling_strategy=InGroup(group, 0, True))
    inside, outside = (group.id.hex(), True, {}), (None, False, {})
    assert get(captures.remote()) == inside
    for strategy in ("DEFAULT", "SPREAD", InGroup(None)):
        assert get(captures.remote(scheduling_strategy=strategy)) == outside
    assert get(captures.remote(placement_group_capture_child_tasks=False)) == outside
    does_not = of_child.options(scheduling_strategy=InGroup(group, 0))
    assert get(does_not.remote()) == outside
    assert get(does_not.remote(placement_group_capture_child_tasks=True)) == inside
    # The same worker may have run in the group before.
    assert get([of_child.remote() for _ in range(10)]) == [outside] * 10


def test_a_child_that_does_not_fit_into_the_group_is_refused(group: PlacementGroup) -> None:
    captures = of_child.options(scheduling_strategy=InGroup(group, 0, True))
    with pytest.raises(ValueError, match="cannot fit into any bundle"):
        get(captures.remote(num_cpus=3))


def test_a_task_knows_its_group(group: PlacementGroup) -> None:
    @ray.remote(num_cpus=0)
    def current() -> Any:
        found = get_current_placement_group()
        assert found is not None
        return found, found.bundle_specs

    told, bundles = get(current.options(scheduling_strategy=InGroup(group, 0)).remote())
    assert told == group and bundles == [{"CPU": 1}, {"CPU": 2, "A": 1}]
    assert get_current_placement_group() is None


def test_an_actor_lives_in_the_group_that_it_names(group: PlacementGroup) -> None:
    actor = Asker.options(scheduling_strategy=InGroup(group, 0, True)).remote()
    assert get(actor.where.remote()) == group.id.hex() == get(actor.of_thread.remote())
    assert get(actor.of_child.remote())[:2] == (group.id.hex(), True)
    assert get(actor.child_actor.remote()) == group.id.hex()


def test_actors_of_a_full_bundle_wait_for_each_other(group: PlacementGroup) -> None:
    in_it = Asker.options(scheduling_strategy=InGroup(group, 0), num_cpus=1)
    first = in_it.remote()
    get(first.where.remote())
    second = in_it.remote()
    call = second.where.remote()
    with pytest.raises(GetTimeoutError):
        ray.get(call, timeout=0.3)
    del first
    assert get(call) == group.id.hex()


@pytest.mark.parametrize(("index", "cpus"), [(2, 1), (-1, 3), (0, 2)])
def test_what_fits_into_no_bundle_is_refused(group: PlacementGroup, index: int, cpus: int) -> None:
    strategy = InGroup(group, index)
    with pytest.raises(ValueError, match="bundle"):
        where.options(scheduling_strategy=strategy, num_cpus=cpus).remote()
    with pytest.raises(ValueError, match="bundle"):
        Asker.options(scheduling_strategy=strategy, num_cpus=cpus).remote()


# ---- their end


@pytest.mark.parametrize("max_retries", [0, 3])
def test_what_runs_or_waits_in_a_removed_group_fails(
    group: PlacementGroup, tmp_path: Path, max_retries: int
) -> None:
    begun = tmp_path / "begun"

    @ray.remote(num_cpus=1)
    def long() -> None:
        begun.touch()
        time.sleep(100)

    in_it = long.options(scheduling_strategy=InGroup(group, 0), max_retries=max_retries)
    running = in_it.remote()
    wait_until(begun.exists, "a task that runs", WAIT_S)
    waiting = in_it.remote()
    remove_placement_group(group)
    for task in (running, waiting, in_it.remote()):
        with pytest.raises(TaskPlacementGroupRemoved):
            get(task)


def test_what_a_task_put_outlives_its_group_that_is_removed_at_once() -> None:
    """Nothing runs in the group any more, so its removal kills nobody who owns objects."""

    @ray.remote(num_cpus=1)
    def put() -> Any:
        return [ray.put("there")]

    for _ in range(5):
        made = placement_group([{"CPU": 1}])
        assert made.wait(WAIT_S)
        (ref,) = get(put.options(scheduling_strategy=InGroup(made, 0)).remote())
        remove_placement_group(made)
        wait_until(lambda: ray.available_resources().get("CPU") == NUM_CPUS, "the end of the group", WAIT_S)
        assert get(ref) == "there"


def test_actors_of_a_removed_group_die(group: PlacementGroup) -> None:
    in_it = Asker.options(scheduling_strategy=InGroup(group, 0), num_cpus=1, max_restarts=-1)
    lived = in_it.remote()
    get(lived.where.remote())
    waits = in_it.remote()
    call = waits.where.remote()
    remove_placement_group(group)
    with pytest.raises(ActorPlacementGroupRemoved):
        get(call)

    def is_dead() -> bool:
        try:
            get(lived.where.remote())
        except ActorDiedError as error:
            return "placement group" in str(error)
        return False

    wait_until(is_dead, "the end of the actor that lived", WAIT_S)


def test_a_group_of_a_driver_ends_with_it_and_a_detached_one_does_not() -> None:
    @ray.remote(num_cpus=0)
    class Maker:
        def make(self, **options: Any) -> PlacementGroup:
            made: PlacementGroup = placement_group([{"CPU": 1}], **options)
            assert made.wait(WAIT_S)
            return made

    maker = Maker.options(lifetime="detached", name="maker").remote()  # type: ignore[attr-defined]
    own, detached = get([maker.make.remote(), maker.make.remote(lifetime="detached")])
    ray.kill(maker)
    wait_until(lambda: placement_group_table(own)["state"] == "REMOVED", "the actor's group gone", WAIT_S)
    assert placement_group_table(detached)["state"] == "CREATED"


def test_a_group_is_created_beside_tasks_that_never_end() -> None:
    @ray.remote
    def short() -> None:
        time.sleep(0.01)

    is_over = threading.Event()

    def flood() -> None:
        running = [short.remote() for _ in range(4 * NUM_CPUS)]
        while not is_over.is_set():
            _, running = ray.wait(running, num_returns=1)
            running.append(short.remote())
        get(running)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        wait_until(lambda: ray.available_resources().get("CPU", 0) == 0, "all CPUs in use", WAIT_S)
        assert placement_group([{"CPU": 2}, {"CPU": 2}], strategy="STRICT_PACK").wait(WAIT_S)
    finally:
        for table in placement_group_table().values():
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(table["placement_group_id"])))
        is_over.set()
        thread.join()
