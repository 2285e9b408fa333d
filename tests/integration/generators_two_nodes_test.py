"""Streams from one node to another: a generator runs there, its items are owned and read here, or by a third
process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from tests.integration.bounded import GET_TIMEOUT_S, get

pytestmark = pytest.mark.usefixtures("leaves_nothing_on_both")

HERE, THERE = {"here": 0.1}, {"there": 0.1}
NUM_ITEMS = 5


@ray.remote(num_cpus=0, resources=THERE)
def count(num_items: int, size: int) -> Iterator[Any]:
    for number in range(num_items):
        yield np.full(size, number)


@ray.remote(num_cpus=0)
def first_elements(arrays: Any) -> list[int]:
    return [int(ray.get(array, timeout=GET_TIMEOUT_S)[0]) for array in arrays]


@pytest.mark.parametrize("size", [1, 50_000])
@pytest.mark.parametrize("ahead", [-1, 1])
def test_items_of_another_node_arrive_in_order(size: int, ahead: int) -> None:
    items = count.options(_generator_backpressure_num_objects=ahead).remote(NUM_ITEMS, size)
    arrays = [get(item) for item in items]
    assert [int(array[0]) for array in arrays] == list(range(NUM_ITEMS))
    assert not any(array.flags.writeable for array in arrays)


def test_items_are_awaited_from_another_node() -> None:
    async def read() -> list[int]:
        return [int((await item)[0]) async for item in count.remote(NUM_ITEMS, 50_000)]

    assert asyncio.run(asyncio.wait_for(read(), GET_TIMEOUT_S)) == list(range(NUM_ITEMS))


@pytest.mark.parametrize("node", [HERE, THERE])
def test_items_of_another_node_are_passed_on_and_outlive_their_generator(node: dict[str, float]) -> None:
    items = list(count.remote(NUM_ITEMS, 50_000))
    assert get(first_elements.options(resources=node).remote(items)) == list(range(NUM_ITEMS))


def test_a_task_reads_the_stream_of_a_task_on_another_node() -> None:
    @ray.remote(num_cpus=0, resources=HERE)
    def read() -> list[int]:
        items = count.remote(NUM_ITEMS, 50_000)
        return [int(ray.get(item, timeout=GET_TIMEOUT_S)[0]) for item in items]

    assert get(read.remote()) == list(range(NUM_ITEMS))


def test_dynamic_items_of_another_node_are_read_by_a_third_process() -> None:
    generator = count.options(num_returns="dynamic").remote(NUM_ITEMS, 50_000)
    assert get(first_elements.options(resources=HERE).remote(generator)) == list(range(NUM_ITEMS))


def test_wait_without_fetching_sees_items_of_another_node() -> None:
    items = count.remote(NUM_ITEMS, 50_000)
    seen = 0
    while True:
        assert ray.wait([items], timeout=GET_TIMEOUT_S, fetch_local=False)[0] == [items]
        if next(items, None) is None:
            break
        seen += 1
    assert seen == NUM_ITEMS


def test_an_exception_after_items_of_another_node_is_the_last_item() -> None:
    @ray.remote(num_cpus=0, resources=THERE, max_retries=0)
    def fail() -> Iterator[Any]:
        yield np.zeros(50_000)
        raise KeyError("midway")

    items = fail.remote()
    assert get(next(items)).shape == (50_000,)
    with pytest.raises(KeyError, match="midway"):
        get(next(items))
    with pytest.raises(StopIteration):
        next(items)


def test_a_deleted_stream_of_another_node_leaves_nothing_in_its_store() -> None:
    items = count.remote(NUM_ITEMS, 50_000)
    next(items)
    del items
