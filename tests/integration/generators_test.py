"""Generators as tasks and actor methods: their items while they run, how far they run ahead, and what is left
of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from ray_mono.core_worker.config import CoreWorkerConfig
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.integration.streaming_programs import (
    LARGE,
    AsyncStreamer,
    GateFunction,
    Streamer,
    gated,
    made,
    numbers,
    open_gates,
    outcome,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def test_a_generator_function_streams_by_default() -> None:
    generator = numbers.remote(3)
    assert isinstance(generator, ray.ObjectRefGenerator)
    assert [get(reference) for reference in generator] == [0, 1, 2]
    with pytest.raises(StopIteration):
        next(generator)


def test_items_arrive_while_the_generator_runs(tmp_path: Path, touch_and_wait: GateFunction) -> None:
    generator = gated.remote(str(tmp_path), touch_and_wait, 2)
    assert not generator.next_ready()
    assert generator._next_sync(timeout_s=0).is_nil()
    open_gates(tmp_path, 0)
    assert get(next(generator)) == 0
    assert not generator.next_ready() and not generator.is_finished()
    open_gates(tmp_path, 1)
    assert get(generator._next_sync(timeout_s=GET_TIMEOUT_S)) == 1
    get(generator.completed())
    assert generator.is_finished() and not generator.next_ready()


def test_thousands_of_items_keep_their_order() -> None:
    count = 3 * CoreWorkerConfig().items_in_flight_max
    assert [get(reference) for reference in numbers.remote(count)] == list(range(count))


def test_a_generator_that_nobody_reads_runs_to_its_end() -> None:
    count = 2 * CoreWorkerConfig().items_in_flight_max
    generator = numbers.remote(count)
    assert get(generator.completed()) is None
    assert not generator.is_finished() and generator.next_ready()
    assert sum(get(list(generator))) == sum(range(count))


def test_large_items_lie_in_the_store_and_are_freed_one_by_one() -> None:
    @ray.remote
    def arrays() -> Iterator[np.ndarray]:
        for number in range(4):
            yield np.full(LARGE, number)

    generator = arrays.remote()
    get(generator.completed())
    assert internal_state.store_stats().num_objects == 4
    for number in range(4):
        reference = next(generator)
        assert get(reference)[-1] == number
        del reference
        wait_until(
            lambda left=3 - number: internal_state.store_stats().num_objects == left, "an item is freed"
        )


def test_small_and_large_items_and_references_keep_their_order() -> None:
    @ray.remote
    def mixed(shared: list[Any]) -> Iterator[Any]:
        for number in range(20):
            yield number
            yield np.full(LARGE, number)
            yield [ray.put(np.full(LARGE, number)), ray.put(number)]
            yield shared

    shared = [ray.put("the caller's")]
    for number, reference in enumerate(mixed.remote(shared)):
        value = get(reference)
        if number % 4 == 0:
            assert value == number // 4
        elif number % 4 == 1:
            assert value[0] == number // 4
        elif number % 4 == 2:
            assert [get(value[0])[0], get(value[1])] == [number // 4] * 2
        else:
            assert get(value[0]) == "the caller's"


def test_references_of_a_third_process_travel_in_items() -> None:
    class Owner:
        def make(self) -> list[Any]:
            return [ray.put(np.arange(LARGE))]

    @ray.remote
    def passes_on(box: list[Any]) -> Iterator[list[Any]]:
        yield [get_box(box)]
        yield ["and then"]

    def get_box(box: list[Any]) -> Any:
        return ray.get(box[0])[0]

    owner = ray.remote(Owner).remote()
    generator = passes_on.remote([owner.make.remote()])
    inner = get(next(generator))[0]
    assert get(next(generator)) == ["and then"]
    assert get(generator.completed()) is None
    assert get(inner)[-1] == LARGE - 1


def test_an_items_reference_can_be_passed_on_and_outlives_the_generator() -> None:
    @ray.remote
    def add_one(number: int) -> int:
        return number + 1

    generator = numbers.remote(3)
    reference = next(generator)
    del generator
    assert get(add_one.remote(reference)) == 1
    assert get(reference) == 0


def test_a_task_inside_a_task_streams_to_it() -> None:
    @ray.remote
    def total() -> int:
        return sum(ray.get(reference) for reference in numbers.remote(100))

    assert get([total.remote() for _ in range(4)]) == [sum(range(100))] * 4


def test_an_actors_generator_method_streams() -> None:
    actor = ray.remote(Streamer).remote()
    assert [get(reference) for reference in actor.numbers.remote(3)] == [0, 1, 2]
    threaded = ray.remote(Streamer).options(max_concurrency=2).remote()
    both = [threaded.numbers.remote(3), threaded.numbers.remote(4)]
    assert [[get(reference) for reference in each] for each in both] == [[0, 1, 2], [0, 1, 2, 3]]


def test_async_generators_of_an_actor_run_beside_its_other_calls() -> None:
    actor = ray.remote(AsyncStreamer).remote()
    waiting = actor.until_opened.remote()
    assert get(next(waiting)) == "closed"
    assert [get(reference) for reference in actor.numbers.remote(3)] == [0, 1, 2]
    get(actor.open.remote())
    assert get(next(waiting)) == "open"
    assert [outcome(reference) for reference in actor.numbers.remote(3, fails_at=1)] == [0, "KeyError"]


def test_async_for_takes_the_items(tmp_path: Path, touch_and_wait: GateFunction) -> None:
    async def take() -> list[int]:
        generator = gated.remote(str(tmp_path), touch_and_wait, 3)
        assert (await generator._next_async(timeout_s=0.01)).is_nil()
        open_gates(tmp_path, 0, 1, 2)
        return [await reference async for reference in generator]

    assert asyncio.run(take()) == [0, 1, 2]


def test_items_that_are_here_cost_a_subscriber_no_turn_of_its_loop() -> None:
    """So it does not fall behind where the loop is busy."""

    async def take() -> list[int]:
        generator = numbers.remote(200)
        await asyncio.wait_for(generator.completed(), GET_TIMEOUT_S)
        turns: list[int] = []
        asyncio.get_running_loop().call_soon(turns.append, 1)
        values = [await reference async for reference in generator]
        assert not turns
        return values

    assert asyncio.run(take()) == list(range(200))


def test_calls_beside_a_stream_of_the_same_actor_are_answered() -> None:
    class Bus:
        def __init__(self) -> None:
            self.queues: list[asyncio.Queue[Any]] = []

        async def publish(self, item: Any) -> None:
            for queue in self.queues:
                queue.put_nowait(item)

        async def subscribe(self) -> Any:
            queue: asyncio.Queue[Any] = asyncio.Queue()
            self.queues.append(queue)
            yield -1
            while (item := await queue.get()) is not None:
                yield item

    async def publish_and_listen() -> list[int]:
        bus = ray.remote(Bus).options(num_cpus=0).remote()
        stream = bus.subscribe.remote()
        seen = [await (await anext(stream))]

        async def listen() -> None:
            async for reference in stream:
                seen.append(await reference)

        listener = asyncio.create_task(listen())
        for number in [*range(300), None]:
            await asyncio.wait_for(bus.publish.remote(number), GET_TIMEOUT_S)
        await asyncio.wait_for(listener, GET_TIMEOUT_S)
        return seen

    assert asyncio.run(publish_and_listen()) == list(range(-1, 300))


def test_a_generator_is_told_how_long_its_items_took_to_become_objects() -> None:
    def told() -> Any:
        before = yield "first"
        yield before
        yield from (2, 3)
        yield (yield np.zeros(LARGE)).object_creation_dur_s > 0

    class Teller:
        async def told(self) -> Any:
            yield (yield "first")

    for stream in (ray.remote(told).remote(), ray.remote(Teller).remote().told.remote()):
        first, before, *rest = [ray.get(reference) for reference in stream]
        assert first == "first" and before.object_creation_dur_s > 0
        assert rest == [] or (rest[:2], rest[3:]) == ([2, 3], [True])
        assert stream._stream_exhausted()


# ---------------------------------------------------------------- limits, and what is left


def test_backpressure_bounds_how_far_a_generator_runs_ahead(
    tmp_path: Path, touch_and_wait: GateFunction
) -> None:
    generator = gated.options(_generator_backpressure_num_objects=2).remote(str(tmp_path), touch_and_wait, 6)
    open_gates(tmp_path, *range(6))
    for taken in range(6):
        due = min(6, taken + 2)
        wait_until(lambda due=due: made(tmp_path) == due, f"{due} are made when {taken} are taken")
        assert get(next(generator)) == taken


def test_a_generator_that_rests_frees_its_cpus(tmp_path: Path) -> None:
    hungry = numbers.options(_generator_backpressure_num_objects=1, num_cpus=2).remote(3)
    results = [
        get(numbers.options(num_returns=1, num_cpus=2).remote(get(reference) + 1)) for reference in hungry
    ]
    assert results == [0, 0, 0]


def test_a_method_may_ask_for_backpressure(tmp_path: Path) -> None:
    actor = ray.remote(Streamer).remote()
    generator = actor.in_twos.remote(str(tmp_path))
    wait_until(lambda: made(tmp_path) == 2, "two items are made")
    assert [get(reference) for reference in generator] == list(range(6))


def test_backpressure_lets_other_calls_of_an_async_actor_run() -> None:
    actor = ray.remote(AsyncStreamer).remote()
    generator = actor.numbers.options(_generator_backpressure_num_objects=1).remote(3)
    get(actor.open.remote())
    assert [get(reference) for reference in generator] == [0, 1, 2]


def test_backpressure_holds_through_a_retry(tmp_path: Path) -> None:
    marker = tmp_path / "failed"

    @ray.remote(retry_exceptions=True, _generator_backpressure_num_objects=1)
    def fails_once() -> Iterator[int]:
        for number in range(8):
            if number == 5 and not marker.exists():
                marker.touch()
                raise ValueError("once")
            yield number

    assert [get(reference) for reference in fails_once.remote()] == list(range(8))


def test_a_deleted_generator_frees_its_items_and_runs_to_its_end(
    tmp_path: Path, touch_and_wait: GateFunction
) -> None:
    @ray.remote(num_cpus=0, _generator_backpressure_num_objects=2)
    def arrays() -> Iterator[np.ndarray]:
        for number in range(5):
            (tmp_path / f"made-{number}").touch()
            yield np.full(LARGE, number)
        touch_and_wait(None, str(tmp_path / "gate-end"))

    generator = arrays.remote()
    first = next(generator)
    wait_until(lambda: made(tmp_path) == 3, "the generator rests")
    end = generator.completed()
    del generator
    wait_until(lambda: made(tmp_path) == 5, "the generator runs on")
    wait_until(lambda: internal_state.store_stats().num_objects == 1, "what was not taken is freed")
    assert get(first)[0] == 0
    (tmp_path / "gate-end").touch()
    assert get(end) is None


def test_a_generator_deleted_before_it_began_leaves_nothing() -> None:
    for _ in range(20):
        numbers.remote(50)


def test_wait_takes_generators_for_their_next_items(tmp_path: Path, touch_and_wait: GateFunction) -> None:
    generator = gated.remote(str(tmp_path), touch_and_wait, 1)
    there = ray.put(1)
    assert ray.wait([generator, there], num_returns=2, timeout=0) == ([there], [generator])
    open_gates(tmp_path, 0)
    assert ray.wait([generator], timeout=GET_TIMEOUT_S) == ([generator], [])
    next(generator)
    get(generator.completed())
    # Nothing will come: that is known, too.
    assert ray.wait([generator], timeout=GET_TIMEOUT_S) == ([generator], [])
    with pytest.raises(StopIteration):
        next(generator)
    with pytest.raises(ValueError, match="repeats"):
        ray.wait([generator, generator])
    with pytest.raises(TypeError, match="takes a list"):
        ray.wait(generator)  # type: ignore[arg-type]
