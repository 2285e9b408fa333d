"""Programs that wait for calls, generators and placement groups, and what `explain` says of them: the fourth
table."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.util import placement_group
from ray_mono.util.placement_group import PlacementGroup
from tests.integration.bounded import get
from tests.integration.explained import KEPT, MOVES, OPEN, STUCK, Outlook, expect_program_explained, one_node


@pytest.fixture(autouse=True)
def session(shared_base: Path, by_value: None) -> Iterator[None]:
    with one_node(num_cpus=4, resources={"A": 1, "B": 1, "C": 1, "D": 1}):
        yield


@ray.remote(num_cpus=0)
def never(*args: Any) -> int:
    signal.pause()
    return 1


@ray.remote(num_cpus=0)
def ask(refs: list[Any]) -> Any:
    return ray.get(refs)


@ray.remote(num_cpus=0)
def ask_for_one(refs: list[Any]) -> Any:
    return ray.wait(refs)


@ray.remote(num_cpus=0)
def ask_for_two(refs: list[Any]) -> Any:
    return ray.wait(refs, num_returns=2)


@ray.remote(num_cpus=0)
def ask_for_a_while(refs: list[Any]) -> Any:
    return ray.get(refs, timeout=600)


@ray.remote(num_cpus=0)
def ask_in_threads(refs: list[Any]) -> Any:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(ray.get, refs))


@ray.remote(num_cpus=0)
def items(number: int) -> Iterator[int]:
    yield from range(number)


@ray.remote(num_cpus=0)
class Thing:
    def work(self) -> None:
        signal.pause()

    def rest(self) -> None:
        pass

    def ask_for_what_it_holds(self) -> None:
        ray.get(never.options(resources={"A": 1}).remote())

    def make(self) -> list[Any]:
        """A reference that it owns."""
        return [never.remote()]


@ray.remote(num_cpus=0, concurrency_groups={"near": 1, "far": 1})
class Grouped:
    @ray.method(concurrency_group="near")
    def near(self) -> None:
        threading.Event().wait()

    @ray.method(concurrency_group="far")
    def far(self) -> None:
        threading.Event().wait()


@ray.remote(num_cpus=0)
class Async:
    async def rest(self) -> None:
        await asyncio.Event().wait()

    async def call_itself(self, this: Any) -> None:
        await this.rest.remote()


def of_gpus() -> Any:
    return never.options(num_gpus=1).remote()


@ray.remote(num_cpus=0)
class WaitsForArgument:
    def __init__(self, argument: Any) -> None:
        pass

    def rest(self) -> None:
        pass


@ray.remote(num_cpus=0)
def call_by_name(name: str) -> None:
    ray.get(ray.get_actor(name).rest.remote())


def by_name_before_its_argument_is_there() -> Any:
    KEPT.append(WaitsForArgument.options(name="late").remote(of_gpus()))
    return call_by_name.remote("late")


def named_by_another_before_its_argument_is_there() -> Any:
    maker = MakesNamed.remote()
    KEPT.append(maker)
    get(maker.make.remote())
    return ray.get_actor("late")


@ray.remote(num_cpus=0)
class MakesNamed:
    def make(self) -> None:
        self.made = WaitsForArgument.options(name="late").remote(of_gpus())


def calls_itself(**options: Any) -> Any:
    actor = Async.options(**options).remote()
    KEPT.append(actor)
    return actor.call_itself.remote(actor)


def behind_another() -> Any:
    thing = Thing.remote()
    KEPT.extend([thing, thing.work.remote()])
    return thing.rest.remote()


def group_busy() -> Any:
    thing = Grouped.remote()
    KEPT.extend([thing, thing.near.remote(), thing.far.remote()])
    return thing.far.remote()


@ray.remote(num_cpus=0)
class Asked:
    def ask(self, refs: list[Any]) -> Any:
        return ray.get(refs)

    def ask_too(self, refs: list[Any]) -> Any:
        return ray.get(refs)

    def never(self) -> None:
        signal.pause()


def threads_wait() -> Any:
    thing = Asked.options(max_concurrency=2).remote()
    refs = [of_gpus()]
    KEPT.extend([thing, thing.ask.remote(refs), thing.ask_too.remote(refs)])
    return thing.never.remote()


def nobody_takes() -> Any:
    generator = items.options(_generator_backpressure_num_objects=1).remote(9)
    KEPT.append(generator)
    get(next(generator))
    return generator.completed()


def of_an_ended_owner() -> Any:
    thing = Thing.remote()
    (ref,) = get(thing.make.remote())
    ray.kill(thing)
    return ref


def a_group_beside_another() -> PlacementGroup:
    first = placement_group([{"A": 1}])
    KEPT.append(first)
    assert first.wait(30)
    return placement_group([{"A": 1}])


@ray.remote(num_cpus=0)
def make_group() -> PlacementGroup:
    group = placement_group([{"A": 1}])
    assert group.wait(30)
    return group


def a_group_beside_one_whose_task_is_over() -> PlacementGroup:
    KEPT.append(get(make_group.remote()))
    return placement_group([{"A": 1}])


@ray.remote(num_cpus=0)
class Gate:
    def __init__(self, num_awaited: int) -> None:
        self._num_missing = num_awaited
        self._all_came = asyncio.Event()

    async def come(self) -> None:
        self._num_missing -= 1
        if not self._num_missing:
            self._all_came.set()
        await self._all_came.wait()


@ray.remote(num_cpus=0)
def hold_one_group_and_want_another(first: str, second: str, gate: Any = None) -> None:
    assert placement_group([{first: 1}]).wait(30)
    if gate is not None:
        ray.get(gate.come.remote())
    ray.get(placement_group([{second: 1}]).ready())


def groups_that_wait_for_each_other() -> Any:
    gate = Gate.remote(2)
    KEPT.extend([gate, hold_one_group_and_want_another.remote("C", "D", gate)])
    return hold_one_group_and_want_another.remote("D", "C", gate)


def of_its_own_resource() -> Any:
    thing = Thing.options(resources={"A": 1}).remote()
    KEPT.append(thing)
    return thing.ask_for_what_it_holds.remote()


def of_what_an_actor_and_a_task_hold() -> Any:
    thing = Thing.options(resources={"A": 1}).remote()
    KEPT.append(thing)
    get(thing.rest.remote())
    begun_and_never(resources={"B": 1})
    return never.options(resources={"A": 1, "B": 1}).remote()


def begun_and_never(**options: Any) -> None:
    gate = Gate.remote(2)
    KEPT.append(come_and_never.options(**options).remote(gate))
    get(gate.come.remote())


@ray.remote(num_cpus=0)
def come_and_never(gate: Any) -> None:
    ray.get(gate.come.remote())
    signal.pause()


@ray.remote(num_cpus=0, resources={"A": 0.5})
def ask_for_all_of_a() -> None:
    ray.get(never.options(resources={"A": 1}).remote())


def of_what_its_parent_and_another_hold() -> Any:
    begun_and_never(resources={"A": 0.5})
    return ask_for_all_of_a.remote()


def at_the_end_of_a_chain() -> Any:
    ref = of_gpus()
    for _ in range(300):
        ref = never.remote(ref)
    return ref


TOLD: dict[str, tuple[Callable[[], Any], str, Outlook, tuple[str, ...]]] = {
    "an actor that calls itself and has no thread for that": (
        lambda: calls_itself(max_concurrency=1),
        "DEADLOCK",
        STUCK,
        ("Async.rest() of actor ", "is behind Async.call_itself() of actor", " for each other"),
    ),
    "an actor that calls itself, which runs": (
        calls_itself,
        "RUNNING",
        MOVES,
        (
            "Async.call_itself() of actor ",
            "waits in its code for 1 object",
            "Async.rest() of actor ",
            " runs",
        ),
    ),
    "a call of an actor that is known by its name, whose argument is not there": (
        by_name_before_its_argument_is_there,
        "INFEASIBLE",
        STUCK,
        (".rest() of actor ", "WaitsForArgument.__init__() waits for 1 argument", "GPU: 1"),
    ),
    "an actor of another process, whose argument is not there": (
        named_by_another_before_its_argument_is_there,
        "INFEASIBLE",
        STUCK,
        (
            "actor WaitsForArgument (",
            "waits for arguments of its constructor, as its owner knows",
            "WaitsForArgument.__init__() waits for 1 argument",
        ),
    ),
    "a call whose concurrency group is busy": (
        group_busy,
        "RUNNING",
        MOVES,
        ("Grouped.far() of actor", "(concurrency group far) is behind Grouped.far()"),
    ),
    "a call of an actor whose threads all wait": (
        threads_wait,
        "INFEASIBLE",
        STUCK,
        ("is behind Asked.ask() of actor ", " and Asked.ask_too() of actor ", "(2 calls that run at"),
    ),
    "a wait for one of two, of which one runs": (
        lambda: ask_for_one.remote([of_gpus(), never.remote()]),
        "RUNNING",
        MOVES,
        ("waits in its code for 1 of 2 objects", "never() runs on"),
    ),
    "a wait for two of three, of which one runs": (
        lambda: ask_for_two.remote([of_gpus(), never.remote(), of_gpus()]),
        "INFEASIBLE",
        STUCK,
        ("waits in its code for 2 of 3 objects", "{GPU: 1}"),
    ),
    "a wait for two of three, of which one is there and one runs": (
        lambda: ask_for_two.remote([of_gpus(), never.remote(), ray.put(1)]),
        "RUNNING",
        MOVES,
        ("waits in its code for 1 of 2 objects", "never() runs on"),
    ),
    "a wait for one of so many that some are not looked at": (
        lambda: ask_for_one.remote([*(of_gpus() for _ in range(20)), never.remote()]),
        "INFEASIBLE",
        OPEN,
        ("waits in its code for 1 of 21 objects, of which 16 were looked at", "{GPU: 1}"),
    ),
    "a get of so many that some are not looked at": (
        lambda: ask.remote([*(of_gpus() for _ in range(20)), never.remote()]),
        "INFEASIBLE",
        STUCK,
        ("waits in its code for 21 objects, of which 16 were looked at", "{GPU: 1}"),
    ),
    "a get that ends when a time is over": (
        lambda: ask_for_a_while.remote([of_gpus()]),
        "INFEASIBLE",
        MOVES,
        ("waits in its code for 1 object, or until a time is over", "{GPU: 1}"),
    ),
    "a call that waits for what its actor holds": (
        of_its_own_resource,
        "DEADLOCK",
        STUCK,
        ("actor Thing holds what it has on worker", "Thing.ask_for_what_it_holds() of actor"),
    ),
    "a task that needs what an actor has, and what a task has that runs": (
        of_what_an_actor_and_a_task_hold,
        "RESOURCES",
        OPEN,
        (
            "never() needs",
            "actor Thing holds what it has",
            "end 2 of those that hold it, of which that actor is one",
        ),
    ),
    "a task that needs what its parent holds a half of, and one that runs the other": (
        of_what_its_parent_and_another_hold,
        "DEADLOCK",
        STUCK,
        ("ask_for_all_of_a() on worker", "a deadlock, in which"),
    ),
    "the end of a long chain": (
        at_the_end_of_a_chain,
        "INFEASIBLE",
        STUCK,
        ("and so on, over", "{GPU: 1}"),
    ),
    "a task whose threads wait": (
        lambda: ask_in_threads.remote([of_gpus()]),
        "INFEASIBLE",
        OPEN,
        ("ask_in_threads() on", "may wait in its code for its threads, and these for 1 object", "{GPU: 1}"),
    ),
    "a generator whose items nobody takes": (
        nobody_takes,
        "BACKPRESSURE",
        OPEN,
        ("waits in its code for its caller, who has taken 1 of the 2 items", "take items of it"),
    ),
    "a value whose owner has ended": (
        of_an_ended_owner,
        "OWNER_DIED",
        STUCK,
        (", which owned object ", "has ended, and the value with it", "make it again"),
    ),
    "an actor with a label that no node has": (
        lambda: Thing.options(label_selector={"zone": "mars"}).remote(),
        "INFEASIBLE",
        STUCK,
        ("zone = mars", "(there no node has zone)", "start a node with zone = mars"),
    ),
    "a placement group with a label that no node has": (
        lambda: placement_group([{"CPU": 1}], bundle_label_selector=[{"zone": "mars"}]),
        "INFEASIBLE",
        STUCK,
        (
            "{CPU: 1} on a node with zone = mars",
            "has {A: 1, B: 1, C: 1, CPU: 4, D: 1}; there no node has zone)",
        ),
    ),
    "a placement group that is spread over more nodes than there are": (
        lambda: placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD"),
        "INFEASIBLE",
        STUCK,
        ("STRICT_SPREAD", "start more nodes with {CPU: 1}, give it fewer bundles or another strategy"),
    ),
    "a placement group that is spread, and would not fit together": (
        lambda: placement_group([{"A": 1}, {"A": 1}], strategy="STRICT_SPREAD"),
        "INFEASIBLE",
        STUCK,
        ("start more nodes with {A: 1}, give it fewer bundles, or remove it",),
    ),
    "a placement group beside another": (
        a_group_beside_another,
        "RESOURCES",
        OPEN,
        (
            "which is in use",
            " holds {A: 1} there until it is removed",
            "is held until the driver (pid ",
            "remove a placement group",
        ),
    ),
    "a placement group beside another whose task is over": (
        a_group_beside_one_whose_task_is_over,
        "RESOURCES",
        OPEN,
        (" holds {A: 1} there until it is removed", "is held until somebody removes it"),
    ),
    "a task that holds the group which its other group waits for": (
        lambda: hold_one_group_and_want_another.remote("B", "B"),
        "DEADLOCK",
        STUCK,
        ("hold_one_group_and_want_another(), which made it, removes it: a deadlock, in which",),
    ),
    "two tasks that each hold the group which the other's waits for": (
        groups_that_wait_for_each_other,
        "DEADLOCK",
        STUCK,
        ("hold_one_group_and_want_another(), which made it, removes it", " for each other"),
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_waits_for_others_is_explained(name: str) -> None:
    expect_program_explained(*TOLD[name])
