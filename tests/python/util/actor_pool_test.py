"""ActorPool on a real cluster: orders, timeouts, actors that come and go. Calls that must not end yet wait
for a gate."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import ActorDiedError
from ray_mono.util import ActorPool

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@ray.remote(num_cpus=0)
class Doubler:
    def double(self, value: int) -> int:
        return 2 * value

    def fail(self, value: int) -> int:
        raise KeyError(value)

    def exit(self, value: int) -> None:
        ray.exit_actor()

    def after(self, gate: Any, value: int) -> int:
        ray.get(gate.wait.remote())
        return value


@ray.remote(num_cpus=0)
class Gate:
    def __init__(self) -> None:
        self.is_open = asyncio.Event()

    async def wait(self) -> None:
        await self.is_open.wait()

    async def open(self) -> None:
        self.is_open.set()


def double(actor: Any, value: int) -> Any:
    return actor.double.remote(value)


def pool(size: int = 2) -> ActorPool:
    return ActorPool([Doubler.remote() for _ in range(size)])


def test_map_keeps_the_order_and_takes_any_iterable() -> None:
    assert list(pool().map(double, range(10))) == [2 * value for value in range(10)]
    assert list(pool().map(double, (value for value in "ab"))) == ["aa", "bb"]
    assert list(pool().map(double, [])) == []


def test_map_unordered_gives_all_results() -> None:
    assert sorted(pool().map_unordered(double, range(10))) == [2 * value for value in range(10)]


def test_map_starts_before_its_results_are_read() -> None:
    actors = pool()
    actors.map(double, [1])
    assert actors.has_next()


def test_map_finishes_and_forgets_what_was_submitted_before() -> None:
    actors = pool()
    for value in range(5):
        actors.submit(double, value)
    assert list(actors.map(double, [7, 8])) == [14, 16]
    actors.submit(double, 1)
    assert sorted(actors.map_unordered(double, [7, 8])) == [14, 16]


def test_unordered_results_overtake_a_slow_one() -> None:
    gate, actors = Gate.remote(), pool()
    actors.submit(lambda actor, value: actor.after.remote(gate, value), 1)
    for value in (2, 3):
        actors.submit(double, value)
    assert [actors.get_next_unordered(), actors.get_next_unordered()] == [4, 6]
    ray.get(gate.open.remote())
    assert actors.get_next_unordered() == 1


def test_a_timeout_leaves_the_result_where_it_is() -> None:
    gate, actors = Gate.remote(), pool(1)
    actors.submit(lambda actor, value: actor.after.remote(gate, value), 1)
    for get_next in (actors.get_next, actors.get_next_unordered):
        with pytest.raises(TimeoutError, match="0.01 s"):
            get_next(timeout=0.01)
        with pytest.raises(TimeoutError):
            get_next(timeout=0)
    assert actors.has_next() and not actors.has_free()
    ray.get(gate.open.remote())
    assert actors.get_next(timeout=60) == 1


@pytest.mark.parametrize("method", ["get_next", "get_next_unordered"])
def test_an_ignored_result_gives_its_actor_back(method: str) -> None:
    gate, actors = Gate.remote(), pool(1)
    actors.submit(lambda actor, value: actor.after.remote(gate, value), 1)
    with pytest.raises(TimeoutError, match="ignored"):
        getattr(actors, method)(timeout=0.01, ignore_if_timedout=True)
    assert not actors.has_next() and actors.has_free()
    actors.submit(double, 5)
    ray.get(gate.open.remote())
    assert actors.get_next() == 10


def test_an_empty_pool_of_results_says_so() -> None:
    for get_next in (pool().get_next, pool().get_next_unordered):
        with pytest.raises(StopIteration):
            get_next()


def test_ordered_after_unordered_is_refused_where_the_next_is_not_known() -> None:
    gate, actors = Gate.remote(), pool()
    actors.submit(double, 1)
    actors.submit(lambda actor, value: actor.after.remote(gate, value), 2)
    assert actors.get_next_unordered() == 2
    ray.get(gate.open.remote())
    assert actors.get_next() == 2  # what came first had been submitted first
    actors.submit(lambda actor, value: actor.after.remote(gate, value), 3)
    closed = Gate.remote()
    actors.submit(lambda actor, value: actor.after.remote(closed, value), 4)
    assert actors.get_next_unordered() == 3
    actors.submit(double, 5)
    assert actors.get_next_unordered() == 10
    ray.get(closed.open.remote())
    with pytest.raises(ValueError, match="get_next_unordered"):
        actors.get_next()


def test_an_error_reaches_the_reader_and_the_actor_goes_on() -> None:
    actors = pool(1)
    actors.submit(lambda actor, value: actor.fail.remote(value), "k")
    actors.submit(double, 1)
    with pytest.raises(KeyError, match="k"):
        actors.get_next()
    assert actors.get_next() == 2


def test_a_dead_actor_fails_its_calls_and_the_others_go_on() -> None:
    actors = pool(2)
    actors.submit(lambda actor, value: actor.exit.remote(value), 0)
    actors.submit(double, 1)
    with pytest.raises(ActorDiedError):
        actors.get_next()
    assert actors.get_next() == 2


def test_actors_are_taken_out_and_put_in() -> None:
    actor = Doubler.remote()
    actors = ActorPool([actor])
    assert actors.pop_idle() == actor
    assert actors.pop_idle() is None and not actors.has_free()
    actors.submit(double, 1)
    assert not actors.has_next()
    actors.push(actor)
    assert actors.get_next() == 2
    with pytest.raises(ValueError, match="already"):
        actors.push(actor)
    actors.submit(double, 1)
    with pytest.raises(ValueError, match="already"):
        actors.push(actor)
    assert actors.get_next() == 2


def test_no_idle_actor_is_given_away_while_work_waits() -> None:
    gate, actors = Gate.remote(), pool(1)
    actors.submit(lambda actor, value: actor.after.remote(gate, value), 1)
    actors.submit(double, 2)
    assert actors.pop_idle() is None
    ray.get(gate.open.remote())
    assert [actors.get_next(), actors.get_next()] == [1, 4]


def test_a_function_that_returns_no_reference_is_named() -> None:
    actors = pool(1)
    with pytest.raises(TypeError, match="reference of a call.*got 1"):
        actors.submit(lambda actor, value: value, 1)  # type: ignore[arg-type]
    assert actors.has_free()


def test_several_returns_are_one_result() -> None:
    @ray.remote(num_cpus=0)
    class Pairs:
        @ray.method(num_returns=2)
        def pair(self, value: int) -> tuple[int, int]:
            return value, value + 1

    actors = ActorPool([Pairs.remote()])
    assert list(actors.map(lambda actor, value: actor.pair.remote(value), [1, 5])) == [[1, 2], [5, 6]]
