"""`ray.util.iter`, under ray_mono.compat: its actors, in local mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import ray_mono as ray
from ray_mono._private.compat.ray_modules.iter import (
    ParallelIteratorWorker,
    from_actors,
    from_items,
    from_iterators,
    from_range,
)
from ray_mono._private.compat.ray_modules.iter_local import NOT_READY, LocalIterator


@pytest.fixture(scope="module", autouse=True)
def local() -> Iterator[None]:
    ray.init(local_mode=True)
    yield
    ray.shutdown()


def reads(items: Any) -> LocalIterator:
    """Of this process."""
    return LocalIterator(lambda timeout: iter(items))


def slowly(items: Any) -> LocalIterator:
    """Each is there at the third look, for who does not wait."""

    def look(timeout: float | None) -> Iterator[Any]:
        for item in items:
            if timeout is not None:
                yield from (NOT_READY, NOT_READY)
            yield item

    return LocalIterator(look)


def test_shards_have_their_parts_and_give_an_item_in_turn() -> None:
    numbers = from_range(10, num_shards=3)
    assert [list(shard) for shard in numbers.shards()] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert list(numbers.gather_sync()) == [0, 3, 6, 1, 4, 7, 2, 5, 8, 9]
    assert list(numbers.batch_across_shards())[2:] == [[2, 5, 8], [9]]
    letters = from_items(["a", "b", "c"])
    assert [list(shard) for shard in letters.shards()] == [["a", "c"], ["b"]]
    assert sorted(letters.gather_async(batch_ms=1, num_async=2)) == ["a", "b", "c"]
    assert repr(letters.batch(2)) == "ParallelIterator[from_items[str, 3, shards=2].batch(2)]"


def test_what_is_done_to_items_is_done_by_the_shards_in_order() -> None:
    numbers = from_range(6, num_shards=2)
    assert list(numbers.for_each(lambda x: x * 2).filter(lambda x: x % 4 == 0).gather_sync()) == [0, 8, 4]
    assert list(numbers.batch(2).gather_sync()) == [[0, 1], [3, 4], [2], [5]]
    assert list(numbers.batch(2).flatten().gather_sync()) == list(numbers.gather_sync())
    assert list(from_range(2, 1).combine(lambda x: [x, -x]).gather_sync()) == [0, 0, 1, -1]
    assert list(numbers.transform(lambda items: (x for x in items if x % 2)).gather_sync()) == [1, 3, 5]
    assert sorted(numbers.local_shuffle(2, seed=1).gather_sync()) == list(range(6))
    assert sorted(numbers.for_each(abs, max_concurrency=2).gather_sync()) == list(range(6))
    assert sorted(numbers.for_each(abs, max_concurrency=0).take(9)) == list(range(6))


def test_shards_are_joined_chosen_and_divided_anew() -> None:
    numbers = from_range(6, num_shards=3)
    both = numbers.for_each(lambda x: -x).union(from_items(["a"], num_shards=1))
    assert list(both.gather_sync()) == [0, -2, -4, "a", -1, -3, -5] and both.num_shards() == 4
    assert list(numbers.select_shards([0, 2]).gather_sync()) == [0, 4, 1, 5]
    parts = [sorted(shard) for shard in numbers.repartition(2).shards()]
    assert parts == [[0, 2, 4], [1, 3, 5]]
    for wrong in ([], [3]):
        with pytest.raises(ValueError, match="shards_to_keep must name some of 0 to 2"):
            numbers.select_shards(wrong)
    with pytest.raises(ValueError, match="select_shards.. cannot follow union"):
        both.select_shards([0])
    with pytest.raises(ValueError, match="shard_index must be from 0 to 2, got 3"):
        numbers.get_shard(3)
    with pytest.raises(TypeError, match="gather_sync"):
        iter(numbers)


def test_items_can_be_repeated_unless_they_are_gone() -> None:
    assert from_items([1, 2], num_shards=1, repeat=True).take(5) == [1, 2, 1, 2, 1]
    assert from_iterators([lambda: iter([1, 2])], repeat=True).take(3) == [1, 2, 1]
    assert from_items([], repeat=True).take(3) == []
    worker = ParallelIteratorWorker(iter([1, 2]), repeat=True)
    worker.par_iter_init([])
    with pytest.raises(ValueError, match="can be read once"):
        worker.par_iter_next()


def test_actors_of_a_class_of_ones_own_are_shards() -> None:
    class Own(ParallelIteratorWorker):
        def __init__(self, size: int) -> None:
            super().__init__(range(size), False)
            self.size = size

        def get_size(self) -> int:
            return self.size

    actors = [ray.remote(Own).remote(size) for size in (3, 1)]
    assert list(from_actors(actors).gather_sync()) == [0, 0, 1, 2]
    assert ray.get(actors[0].get_size.remote()) == 3
    assert {actor for actor, _ in from_actors(actors).gather_async().zip_with_source_actor()} == set(actors)
    with pytest.raises(ValueError, match="gather_async"):
        next(from_actors(actors).gather_sync().zip_with_source_actor())


def test_an_error_of_a_shard_arrives() -> None:
    with pytest.raises(ZeroDivisionError):
        list(from_range(3).for_each(lambda x: 1 / x).gather_async())


def test_a_union_waits_for_none_of_its_parts_unless_it_is_told_to() -> None:
    assert list(slowly("ab").union(reads("xyz"))) == ["x", "y", "a", "z", "b"]
    assert list(slowly("ab").union(reads("xyz"), deterministic=True)) == ["a", "x", "b", "y", "z"]
    assert list(reads("abcd").union(reads("xy"), round_robin_weights=[2, 1])) == [
        "a",
        "b",
        "x",
        "c",
        "d",
        "y",
    ]
    assert list(reads("ab").union(slowly("x"), reads("pqr"), round_robin_weights=[1, "*", "*"])) == [
        "a",
        *"pqr",
        "b",
        "x",
    ]
    steps = slowly("abc").for_each(ord).filter(lambda x: x != 98).batch(1).flatten().shuffle(1).for_each(chr)
    assert list(steps.union(reads(""))) == ["a", "c"]
    with pytest.raises(ValueError, match="one weight for each of 2"):
        reads("").union(reads(""), round_robin_weights=[1])
    with pytest.raises(ValueError, match="union takes LocalIterators"):
        reads("").union([])  # type: ignore[arg-type]


def test_copies_each_have_every_item_and_none_runs_ahead_in_a_union() -> None:
    one, two = reads([1, 2, 3]).duplicate(2)
    assert list(one) == list(two) == [1, 2, 3]
    one, two = reads([1, 2, 3]).duplicate(2)
    assert list(one.union(two.for_each(lambda x: -x))) == [1, -1, 2, -2, 3, -3]


def test_a_copy_that_waits_is_given_items_alone_though_another_does_not_wait() -> None:
    hasty, patient = slowly([1, 2, 3]).duplicate(2)
    union = hasty.union(reads([]))
    assert next(union) == 1
    assert list(patient) == [1, 2, 3]
    assert list(union) == [2, 3]


def test_a_function_that_has_nothing_yet_is_asked_again() -> None:
    answers = iter([NOT_READY, 5])
    assert [item for item in reads([1]).for_each(lambda x: next(answers)) if item is not NOT_READY] == [5]


class Counts(ParallelIteratorWorker):
    """A library's own: nothing at first, then a number; then it ends as the class that it inherits from."""

    asked = 0

    def par_iter_next_batch(self, batch_ms: int) -> list[int]:
        self.asked += 1
        if self.asked > 2:
            raise StopIteration
        return [self.asked] if self.asked == 2 else []


def test_a_worker_ends_by_stop_iteration_and_an_empty_batch_is_no_end() -> None:
    def counts() -> Any:
        return from_actors([ray.remote(Counts).remote((), False)])

    assert list(counts().gather_async()) == [2]
    assert list(counts().get_shard(0)) == [2]
    worker = ray.remote(ParallelIteratorWorker).remote([1], False)
    ray.get(worker.par_iter_init.remote(()))
    assert ray.get(worker.par_iter_next_batch.remote(0)) == [1]
    for asked in (worker.par_iter_next_batch.remote(1), worker.par_iter_slice_batch.remote(1, 0, 0)):
        with pytest.raises(StopIteration):
            ray.get(asked)
