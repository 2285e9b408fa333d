"""local_mode's generators: the same items, ends and errors as on a cluster, made inside `.remote()` and
`next`."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from ray_mono.exceptions import ActorDiedError, RayTaskError


@pytest.fixture(autouse=True)
def local_cluster() -> Iterator[None]:
    ray.init(local_mode=True)
    yield
    gc.collect()
    assert internal_state.num_references() == 0
    ray.shutdown()


def outcome(reference: Any) -> Any:
    """The value, or the name of the error's original type."""
    try:
        return ray.get(reference)
    except Exception as error:
        return type(error.cause if isinstance(error, RayTaskError) else error).__name__


@ray.remote
def numbers(count: int, fails_at: int = -1) -> Iterator[int]:
    for number in range(count):
        if number == fails_at:
            raise ValueError("that far and no further")
        yield number


class Streamer:
    def numbers(self, count: int) -> Iterator[int]:
        yield from range(count)

    async def slowly(self, count: int) -> AsyncIterator[str]:
        for _ in range(count):
            await asyncio.sleep(0)
            yield ray.get_runtime_context().get_task_name()

    def leaves(self) -> Iterator[int]:
        yield 1
        ray.actor.exit_actor()


def test_items_come_in_order_and_end() -> None:
    generator = numbers.remote(3)
    assert isinstance(generator, ray.ObjectRefGenerator) and generator.next_ready()
    assert [ray.get(reference) for reference in generator] == [0, 1, 2]
    assert generator.is_finished() and ray.get(generator.completed()) is None


def test_async_for_takes_the_items() -> None:
    async def take() -> list[int]:
        return [await reference async for reference in numbers.remote(3)]

    assert asyncio.run(take()) == [0, 1, 2]


def test_an_exception_is_the_last_item() -> None:
    assert [outcome(reference) for reference in numbers.remote(3, fails_at=1)] == [0, "ValueError"]


def test_retry_exceptions_run_the_generator_again() -> None:
    attempts = itertools.count()

    def fails_once() -> Iterator[int]:
        attempt = next(attempts)
        for number in range(3):
            if attempt == 0 and number == 2:
                raise ValueError("once")
            yield number + 10 * attempt

    remote = ray.remote(max_retries=1, retry_exceptions=True)(fails_once)
    assert [outcome(reference) for reference in remote.remote()] == [0, 1, 12]


def test_backpressure_keeps_an_endless_generator_a_few_items_ahead() -> None:
    made = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            yield number

    generator = ray.remote(_generator_backpressure_num_objects=2)(endless).remote()
    assert len(made) == 2
    assert [ray.get(next(generator)) for _ in range(3)] == [0, 1, 2]
    assert len(made) == 5


def test_the_end_of_a_generator_that_rests_can_be_waited_for() -> None:
    generator = numbers.options(_generator_backpressure_num_objects=1).remote(3)
    assert ray.get(generator.completed()) is None
    assert [ray.get(reference) for reference in generator] == [0, 1, 2]


def test_methods_stream_in_both_kinds_of_actors() -> None:
    actor = ray.remote(Streamer).remote()
    assert [ray.get(reference) for reference in actor.numbers.remote(2)] == [0, 1]
    assert [ray.get(reference) for reference in actor.slowly.remote(2)] == ["Streamer.slowly"] * 2


def test_an_actor_that_leaves_ends_its_generator() -> None:
    actor = ray.remote(Streamer).remote()
    assert [outcome(reference) for reference in actor.leaves.remote()] == [1, ActorDiedError.__name__]
    assert [outcome(reference) for reference in actor.numbers.remote(2)] == [ActorDiedError.__name__]


def test_dynamic_generators_have_one_reference() -> None:
    reference = numbers.options(num_returns="dynamic").remote(3, fails_at=2)
    assert [outcome(item) for item in ray.get(reference)] == [0, 1, "ValueError"]


def test_a_fixed_number_of_returns_takes_the_first_items() -> None:
    assert ray.get(numbers.options(num_returns=2).remote(3)) == [0, 1]
    assert [outcome(each) for each in numbers.options(num_returns=3).remote(1)] == [
        0,
        "ValueError",
        "ValueError",
    ]
    retried = numbers.options(num_returns=2, retry_exceptions=True)
    assert [outcome(each) for each in retried.remote(1)] == ["ValueError"] * 2


def test_wait_takes_generators() -> None:
    generator = numbers.remote(1)
    assert ray.wait([generator], timeout=0) == ([generator], [])
