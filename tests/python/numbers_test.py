"""Every number and flag that the API takes: what cannot be is refused at once by its name, and numbers of
numpy are numbers."""

from __future__ import annotations

import decimal
import fractions
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono.util.multiprocessing import Pool
from ray_mono.util.queue import Queue

# More than a float holds.
HUGE = 10**400
NO_NUMBERS = ["1", decimal.Decimal(1), 1j, [1]]
AMOUNTS = [-1, math.nan, math.inf, HUGE, 1e30, True, *NO_NUMBERS]
COUNTS = [-2, 1.5, math.nan, 2**31, HUGE, True, *NO_NUMBERS]
TIMES = [-2, math.nan, True, *NO_NUMBERS]


@pytest.fixture(scope="module", autouse=True)
def local_cluster() -> Iterator[None]:
    ray.init(local_mode=True, num_cpus=2)
    yield
    ray.shutdown()


@ray.remote
def function() -> Any:
    return [1, 2]


@ray.remote
class Actor:
    def method(self) -> Any:
        return [1, 2]


def of_function(name: str) -> Callable[[Any], Any]:
    return lambda value: function.options(**{name: value}).remote()


def of_actor(name: str) -> Callable[[Any], Any]:
    return lambda value: Actor.options(**{name: value}).remote()


def of_method(name: str) -> Callable[[Any], Any]:
    return lambda value: Actor.remote().method.options(**{name: value}).remote()


# What takes the number, by the name that its error says; what it refuses.
REFUSED: list[tuple[str, Callable[[Any], Any], list[Any]]] = [
    *((name, of_function(name), AMOUNTS) for name in ("num_cpus", "num_gpus", "memory")),
    *((name, of_actor(name), AMOUNTS) for name in ("num_cpus", "num_gpus", "memory")),
    *((name, of_function(name), COUNTS) for name in ("num_returns", "max_retries", "max_calls")),
    ("num_returns", of_function("num_returns"), [10**9]),
    *((name, of_actor(name), COUNTS) for name in ("max_restarts", "max_task_retries", "max_pending_calls")),
    ("max_concurrency", of_actor("max_concurrency"), [0, *COUNTS]),
    *((name, of_method(name), COUNTS) for name in ("num_returns", "max_task_retries")),
    ("_generator_backpressure_num_objects", of_function("_generator_backpressure_num_objects"), [0, *COUNTS]),
    ("resources", lambda value: of_function("resources")({"a": value}), AMOUNTS),
    ("concurrency_groups", lambda value: of_actor("concurrency_groups")({"a": value}), [0, *COUNTS]),
    ("timeout", lambda value: ray.get(ray.put(1), timeout=value), TIMES),
    ("timeout", lambda value: ray.wait([ray.put(1)], timeout=value), [-1, *TIMES]),
    ("num_returns", lambda value: ray.wait([ray.put(1)], num_returns=value), [0, 2, *COUNTS]),
    ("maxsize", lambda value: Queue(value), [1.5, True, *NO_NUMBERS]),
    ("num_items", lambda value: Queue().get_nowait_batch(value), [-1, 1.5, True, *NO_NUMBERS]),
    ("timeout", lambda value: Queue().get(timeout=value), TIMES),
    ("timeout", lambda value: Pool(1).map_async(abs, [1]).get(timeout=value), TIMES[1:]),
    ("timeout", lambda value: Pool(1).imap(abs, [1]).next(timeout=value), TIMES[1:]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "call", "values"), REFUSED, ids=[f"{name} {i}" for i, (name, *_) in enumerate(REFUSED)]
)
def test_a_number_that_cannot_be_is_refused_by_name(
    name: str, call: Callable[[Any], Any], values: list[Any]
) -> None:
    for value in values:
        with pytest.raises((TypeError, ValueError)) as refused:
            call(value)
        said = str(refused.value)
        assert name in said and repr(value) in said and (" must " in said or " is no " in said), said


TWO, HALF = np.int64(2), np.float32(0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ray.get(function.options(num_returns=TWO).remote()) == [1, 2],
        lambda: function.options(num_cpus=HALF, memory=np.int64(10**6), max_retries=TWO).remote(),
        lambda: function.options(resources={"CPU_like": HALF}, max_calls=TWO),
        lambda: ray.remote(num_cpus=np.int64(1), max_calls=np.int64(5))(lambda: 1),
        lambda: Actor.options(max_concurrency=TWO, max_restarts=TWO, num_cpus=HALF).remote(),
        lambda: len(Actor.remote().method.options(num_returns=TWO).remote()) == 2,
        lambda: len(ray.wait([ray.put(1), ray.put(2)], num_returns=TWO, timeout=HALF)[0]) == 2,
        lambda: ray.get(ray.put(1), timeout=np.float64(5)) == 1,
        lambda: ray.get(ray.put(1), timeout=np.int64(5)) == 1,
        lambda: Queue(maxsize=TWO).get_nowait_batch(np.int64(0)) == [],
        lambda: Pool(TWO).map(abs, [1, -1], chunksize=np.int64(1)) == [1, 1],
    ],
)
def test_numbers_of_numpy_are_numbers(call: Callable[[], Any]) -> None:
    assert call()


@pytest.mark.parametrize("forever", [HUGE, fractions.Fraction(HUGE), 1e300, math.inf])
def test_a_time_longer_than_anybody_lives_is_no_bound(forever: Any) -> None:
    assert ray.get(ray.put(1), timeout=forever) == 1
    assert len(ray.wait([ray.put(1)], timeout=forever)[0]) == 1
    assert Pool(1).map_async(abs, [-1]).get(timeout=forever) == [1]
    assert Pool(1).imap(abs, [-1]).next(timeout=forever) == 1


FLAGS: dict[str, Callable[[Any], object]] = {
    "fetch_local": lambda value: ray.wait([ray.put(1)], fetch_local=value),
    "no_restart": lambda value: ray.kill(Actor.remote(), no_restart=value),
    "force": lambda value: ray.cancel(function.remote(), force=value),
    "recursive": lambda value: ray.cancel(function.remote(), recursive=value),
    "all_namespaces": lambda value: ray.util.list_named_actors(all_namespaces=value),
    "local_mode": lambda value: ray.init(local_mode=value),
    "ignore_reinit_error": lambda value: ray.init(ignore_reinit_error=value),
    "configure_logging": lambda value: ray.init(configure_logging=value, ignore_reinit_error=True),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_true_or_false(name: str) -> None:
    for value in ("no", "", 0, 1, None, [True]):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got "):
            FLAGS[name](value)


def test_a_flag_of_numpy_is_a_flag() -> None:
    assert ray.wait([ray.put(1)], fetch_local=np.bool_(False))[1] == []


@pytest.mark.parametrize("forever", [math.inf, 1e30, HUGE, 1e9, np.float64(np.inf)])
def test_a_timeout_beyond_all_times_is_none(forever: Any) -> None:
    assert ray.get(ray.put(1), timeout=forever) == 1
    assert ray.wait([ray.put(1)], timeout=forever)[1] == []


@pytest.mark.parametrize("name", ["num_cpus", "num_gpus", "object_store_memory", "_memory", "resources"])
def test_a_node_refuses_amounts_that_cannot_be(name: str) -> None:
    ray.shutdown()
    for value in AMOUNTS:
        with pytest.raises(
            (TypeError, ValueError), match=f"{name}.* must be a (whole )?number of at least 0"
        ):
            ray.init(local_mode=True, **{name: {"a": value} if name == "resources" else value})
