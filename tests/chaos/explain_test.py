"""What `explain` says of programs that wait for a head which is away: a part of the table of stuck programs.
When they were explained the head comes back, as the sentences say, and they go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.util import placement_group
from ray_mono.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.chaos.victims import Victims
from tests.integration.bounded import get
from tests.integration.explained import OPEN, expect_explained

AWAY = "the head cannot be asked: it did not answer within 2 s. To unblock it: look at the head, or start it"


@ray.remote(num_cpus=0)
class Thing:
    def one(self) -> int:
        return 1

    def find(self) -> int:
        return get(ray.get_actor("finder").one.remote())


@ray.remote(num_cpus=0)
def make(named: str) -> int:
    return get(Thing.options(name=named).remote().one.remote())


@ray.remote(num_cpus=0)
def wait_for(group: Any) -> bool:
    return bool(group.wait(60))


Program = Callable[[], Iterator[Any]]
"""It begins before the head goes, and ends when that is back."""


def a_new_actor() -> Iterator[Any]:
    yield
    thing = Thing.remote()
    yield thing
    assert get(thing.one.remote()) == 1


def a_call_of_a_new_actor() -> Iterator[Any]:
    yield
    thing = Thing.remote()
    call = thing.one.remote()
    yield call
    assert get(call) == 1


def a_look_for_a_name() -> Iterator[Any]:
    finder = Thing.options(name="finder", max_concurrency=2).remote()
    get(finder.one.remote())
    yield
    call = finder.find.remote()
    yield call
    assert get(call) == 1


def a_task_that_names_an_actor() -> Iterator[Any]:
    get(make.remote("known"))
    yield
    call = make.remote("new")
    yield call
    assert get(call) == 1


def a_new_group() -> Iterator[Any]:
    yield
    group = placement_group([{"CPU": 1}])
    yield group
    assert group.wait(60)


def ready_of_a_new_group() -> Iterator[Any]:
    yield
    group = placement_group([{"CPU": 1}])
    ready = group.ready()
    yield ready
    get(ready)


def a_task_that_waits_for_a_group() -> Iterator[Any]:
    get(make.remote("known"))
    yield
    call = wait_for.remote(placement_group([{"CPU": 1}]))
    yield call
    assert get(call)


def a_task_in_a_new_group() -> Iterator[Any]:
    one = ray.remote(lambda: 1)
    get(one.remote())
    yield
    group = placement_group([{"CPU": 1}])
    call = one.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
    yield call
    assert get(call) == 1


WITHOUT_HEAD: dict[str, tuple[Program, tuple[str, ...]]] = {
    "a new actor": (a_new_actor, ("the head, which knows about actor ", "did not answer within 2 s")),
    "a call of a new actor": (
        a_call_of_a_new_actor,
        (".one() of actor ", "waits for the head to register the actor", AWAY),
    ),
    "a look for an actor's name": (
        a_look_for_a_name,
        (
            "Thing.find() of actor",
            "waits in its code for the head, which it asked for the actor 'finder'",
            AWAY,
        ),
    ),
    "a task that names an actor": (
        a_task_that_names_an_actor,
        ("make() on worker", "which it asked for an actor with the name 'new'", AWAY),
    ),
    "a new placement group": (a_new_group, ("the head, which knows about placement group ", "within 2 s")),
    "ready() of a new placement group": (
        ready_of_a_new_group,
        ("waits for placement group ", "the head, which knows about placement group "),
    ),
    "a task that waits for a new placement group": (
        a_task_that_waits_for_a_group,
        ("wait_for() on worker ", "waits in its code for placement group ", "the head, which knows"),
    ),
    "a task in a new placement group": (
        a_task_in_a_new_group,
        ("needs {CPU: 1} in placement group ", "which is not placed yet", "the head, which knows about"),
    ),
}


@pytest.mark.parametrize("name", WITHOUT_HEAD)
def test_what_waits_for_the_head_is_explained(start: Callable[..., Victims], name: str) -> None:
    victims = start(log_to_driver=False)
    program, words = WITHOUT_HEAD[name]
    steps = program()
    next(steps)
    with victims.without_head():
        expect_explained(next(steps), "HEAD_AWAY", OPEN, words)
    assert next(steps, None) is None


def test_a_head_that_stands_still_is_told_of_as_one_that_is_gone(start: Callable[..., Victims]) -> None:
    victims = start(log_to_driver=False)
    steps = a_call_of_a_new_actor()
    next(steps)
    with victims.stopped_head():
        expect_explained(next(steps), "HEAD_AWAY", OPEN, (AWAY,))
        overview = ray.explain()
    assert overview.silent == ("the head",) and {"HEAD_AWAY"} == set(overview.by_code)
    assert next(steps, None) is None
