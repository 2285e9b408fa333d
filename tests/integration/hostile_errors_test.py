"""Calls whose exceptions fail in their own code (tests/hostile_errors.py) are answered, on every way that an
exception can take, and the worker serves the next call."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import ray_mono as ray
from ray_mono import exceptions
from tests.hostile_errors import FailsToLoad, FailsToPickle, throw
from tests.integration.bounded import GET_TIMEOUT_S, get

pytestmark = pytest.mark.usefixtures("shared_cluster")

NAMES = (
    *(
        "GetattributeRaises",
        "GetattributeExits",
        "GetattrRecurses",
        "StrAndReprExit",
        "ReduceExits",
        "LoadExits",
    ),
    *("OwnclassSystemExit", "OwncauseKeyboardInterrupt", "OwntracebackValueError", "hash", "after"),
)
STREAMING: Any = {"num_returns": "streaming"}


@ray.remote(max_retries=0)
def task(name: str) -> Any:
    throw(name)


@ray.remote(max_retries=0)
def give(name: str) -> Any:
    return FailsToPickle(name)


@ray.remote(max_retries=0)
def take(value: Any) -> None: ...


@ray.remote(max_retries=0)
def stream(name: str) -> Iterator[int]:
    yield 1
    throw(name)


class Methods:
    def method(self, name: str) -> Any:
        throw(name)

    def give(self, name: str) -> Any:
        return FailsToPickle(name)

    def take(self, value: Any) -> None: ...

    def stream(self, name: str) -> Iterator[int]:
        yield 1
        throw(name)

    def pid(self) -> int:
        return os.getpid()


class AsyncMethods(Methods):
    async def method(self, name: str) -> Any:
        throw(name)

    async def stream(self, name: str) -> AsyncIterator[int]:  # type: ignore[override]
        yield 1
        throw(name)


@ray.remote(num_cpus=0)
class Unborn:
    def __init__(self, name: str) -> None:
        throw(name)

    def method(self) -> None: ...


@ray.remote(num_cpus=0)
class CallsBack:
    """Errors also come to those who are no drivers."""

    def pid(self, call: list[Any]) -> int:
        with pytest.raises(exceptions.RayError):
            ray.get(call[0])
        return os.getpid()


def check(call: Any) -> None:
    """It fails by what its own code raised, and not by the end of its worker."""
    with pytest.raises(exceptions.RayError) as caught:
        if isinstance(call, ray.ObjectRefGenerator):
            assert get(call._next_sync(GET_TIMEOUT_S)) == 1
            call = call._next_sync(GET_TIMEOUT_S)
        get(call)
    assert "in throw" in str(caught.value) and repr(caught.value)
    assert isinstance(caught.value, exceptions.RayTaskError | exceptions.ActorDiedError)


def calls_of(actor: Any, name: str) -> list[Any]:
    return [
        actor.method.remote(name),
        actor.give.remote(name),
        actor.take.remote(FailsToLoad(name)),
        actor.take.remote(ray.put(FailsToLoad(name))),
        actor.stream.options(**STREAMING).remote(name),
    ]


@pytest.fixture(scope="module")
def actors(shared_cluster: Any) -> dict[str, Any]:
    kind, later = ray.remote(num_cpus=0)(Methods), ray.remote(num_cpus=0)(AsyncMethods)
    return {
        "plain": kind.remote(),
        "threaded": kind.options(max_concurrency=3).remote(),
        "async": later.remote(),
    }


@pytest.mark.parametrize("kind", ["plain", "threaded", "async"])
def test_calls_of_an_actor_are_answered_and_it_lives_on(actors: dict[str, Any], kind: str) -> None:
    actor = actors[kind]
    pid = get(actor.pid.remote())
    calls = [call for name in NAMES for call in calls_of(actor, name)]
    for call in calls:
        check(call)
    assert get(actor.pid.remote()) == pid


def test_tasks_are_answered_by_workers_that_live_on() -> None:
    for name in NAMES:
        for call in (
            task.remote(name),
            give.remote(name),
            take.remote(FailsToLoad(name)),
            stream.options(**STREAMING).remote(name),
            task.options(retry_exceptions=[KeyError], max_retries=1).remote(name),
        ):
            check(call)


def test_an_actor_whose_constructor_raises_one_says_so() -> None:
    for call in [Unborn.remote(name).method.remote() for name in NAMES[:4]]:
        check(call)


def test_a_worker_that_asks_for_such_a_result_gets_it() -> None:
    asks = CallsBack.remote()
    pid = get(asks.pid.remote([task.remote(NAMES[0])]))
    assert [get(asks.pid.remote([task.remote(name)])) for name in NAMES] == [pid] * len(NAMES)
