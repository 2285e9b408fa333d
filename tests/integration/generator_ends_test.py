"""Generators' ends of every kind, `num_returns` of every kind, and what cannot be done with them."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono.exceptions import ActorDiedError, TaskCancelledError, WorkerCrashedError
from tests.integration.bounded import get
from tests.integration.conftest import NUM_CPUS
from tests.integration.streaming_programs import (
    LARGE,
    AsyncStreamer,
    GateFunction,
    Streamer,
    endless,
    numbers,
    outcome,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def test_an_exception_is_the_last_item() -> None:
    generator = numbers.remote(3, fails_at=1)
    assert [outcome(reference) for reference in generator] == [0, "ValueError"]
    assert generator.is_finished()
    assert get(generator.completed()) is None


def test_an_item_that_does_not_pickle_is_the_last() -> None:
    @ray.remote
    def locks() -> Iterator[Any]:
        yield 1
        yield threading.Lock()
        yield 3

    assert [outcome(reference) for reference in locks.remote()] == [1, "TypeError"]


def test_an_argument_that_failed_is_the_only_item() -> None:
    @ray.remote
    def fail() -> int:
        raise ValueError("no number")

    assert [outcome(reference) for reference in numbers.remote(fail.remote())] == ["ValueError"]


def test_items_before_the_death_of_a_worker_can_be_read() -> None:
    @ray.remote(max_retries=0)
    def dies() -> Iterator[int]:
        yield 1
        yield 2
        die_once_sent()

    def die_once_sent() -> None:
        from ray_mono.core_worker.process import current

        core: Any = current.require()
        with core.env.lock:
            core.env.reactor.flush()
        os._exit(1)

    generator = dies.remote()
    assert [outcome(reference) for reference in generator] == [1, 2, WorkerCrashedError.__name__]
    with pytest.raises(WorkerCrashedError):
        get(generator.completed())


def test_a_retried_generator_goes_on_behind_the_items_that_arrived(
    tmp_path: Path, touch_and_wait: GateFunction
) -> None:
    marker, gate = tmp_path / "died", tmp_path / "gate"

    @ray.remote(max_retries=1)
    def dies_once() -> Iterator[Any]:
        is_first = not marker.exists()
        for number in range(6):
            if is_first and number == 3:
                touch_and_wait(str(marker), str(gate))
                os._exit(1)
            yield number, is_first, np.full(LARGE, number)

    generator = dies_once.remote()
    early = [next(generator), next(generator)]
    assert get(early[1])[:2] == (1, True)
    wait_until(lambda: generator.next_ready() and marker.exists(), "three items arrived")
    gate.touch()
    references = [*early, *generator]
    values = get(references)
    assert [number for number, _, _ in values] == list(range(6))
    assert [is_first for _, is_first, _ in values] == [True] * 3 + [False] * 3
    assert len({reference.hex() for reference in references}) == 6


def test_retry_exceptions_run_the_generator_again(tmp_path: Path) -> None:
    marker = tmp_path / "failed"

    @ray.remote(retry_exceptions=[ValueError])
    def fails_once() -> Iterator[int]:
        is_first = not marker.exists()
        marker.touch()
        for number in range(3):
            if is_first and number == 2:
                raise ValueError("once")
            yield number

    assert [outcome(reference) for reference in fails_once.remote()] == [0, 1, 2]


def test_the_death_of_an_actor_is_the_last_item() -> None:
    actor = ray.remote(Streamer).remote()
    outcomes = [outcome(reference) for reference in actor.die_after.remote(0)]
    assert outcomes == [ActorDiedError.__name__]
    assert [outcome(reference) for reference in actor.numbers.remote(2)] == [ActorDiedError.__name__]


def test_an_actor_closes_the_generator_of_a_caller_that_died() -> None:
    class Owner:
        def start(self, actor: Any, backpressure: int) -> int:
            method = actor.numbers.options(_generator_backpressure_num_objects=backpressure)
            self.generator = method.remote(1 << 40)
            return get(next(self.generator))

    actor = ray.remote(Streamer).remote()
    for backpressure in (-1, 3):
        owner = ray.remote(Owner).remote()
        assert get(owner.start.remote(actor, backpressure)) == 0
        ray.kill(owner)
        # Its one thread is free again.
        assert [get(reference) for reference in actor.numbers.remote(2)] == [0, 1]


def test_a_cancelled_generator_ends_with_the_cancellation(
    tmp_path: Path, touch_and_wait: GateFunction
) -> None:
    actors = [ray.remote(Streamer).remote(), ray.remote(Streamer).options(max_concurrency=2).remote()]
    generators = [
        endless.remote(),
        endless.options(_generator_backpressure_num_objects=1).remote(),
        *[actor.endless.remote() for actor in actors],
        *[actor.endless.options(_generator_backpressure_num_objects=1).remote() for actor in actors],
        ray.remote(AsyncStreamer).remote().endless.remote(),
    ]
    for generator in generators:
        assert get(next(generator)) == 0
        ray.cancel(generator)
        with pytest.raises(TaskCancelledError):
            get(generator.completed())
        *items, last = map(outcome, generator)
        assert items == list(range(1, len(items) + 1))
        assert last == TaskCancelledError.__name__


def test_a_generator_cancelled_before_it_began_has_only_that_item(
    tmp_path: Path, touch_and_wait: GateFunction
) -> None:
    gate = str(tmp_path / "gate")
    busy = [ray.remote(touch_and_wait).remote(None, gate) for _ in range(NUM_CPUS)]
    generator = numbers.remote(3)
    ray.cancel(generator)
    assert [outcome(reference) for reference in generator] == [TaskCancelledError.__name__]
    Path(gate).touch()
    get(busy)


# ---------------------------------------------------------------- num_returns, and misuse


def test_dynamic_generators_have_one_reference_to_all_their_references() -> None:
    reference = numbers.options(num_returns="dynamic").remote(3)
    generator = get(reference)
    assert isinstance(generator, ray.DynamicObjectRefGenerator) and len(generator) == 3
    assert [get(item) for item in generator] == [0, 1, 2]
    assert len(generator) == 0
    assert [get(item) for item in get(reference)] == [0, 1, 2]
    actor = ray.remote(Streamer).remote()
    assert [get(item) for item in get(actor.numbers.options(num_returns="dynamic").remote(2))] == [0, 1]


def test_dynamic_generators_can_be_passed_on() -> None:
    @ray.remote
    def total(items: Any) -> int:
        return sum(ray.get(list(items)))

    @ray.remote
    def make() -> Any:
        return numbers.options(num_returns="dynamic").remote(4)

    reference = numbers.options(num_returns="dynamic").remote(4)
    assert get([total.remote(reference), total.remote(get(reference))]) == [6, 6]
    assert get(total.remote(get(make.remote()))) == 6


def test_a_dynamic_generators_exception_is_its_last_item() -> None:
    items = get(numbers.options(num_returns="dynamic").remote(3, fails_at=1))
    assert [outcome(item) for item in items] == [0, "ValueError"]


def test_a_dynamic_generators_dead_worker_is_its_value() -> None:
    @ray.remote(max_retries=0, num_returns="dynamic")
    def dies() -> Iterator[np.ndarray]:
        yield np.zeros(LARGE)
        os._exit(1)

    with pytest.raises(WorkerCrashedError):
        get(dies.remote())


def test_a_fixed_number_of_returns_takes_the_first_items() -> None:
    assert get(numbers.options(num_returns=2).remote(3)) == [0, 1]
    assert get(numbers.options(num_returns=1).remote(3)) == 0


@pytest.mark.parametrize("size", [1, 50_000])
def test_a_fixed_number_of_returns_keeps_those_before_the_error(size: int, tmp_path: Path) -> None:
    def arrays(fails: bool) -> Iterator[Any]:
        (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
        yield np.zeros(size), ray.put(np.ones(size))
        if fails:
            raise KeyError("midway")

    class Maker:
        def arrays(self, fails: bool) -> Iterator[Any]:
            yield from arrays(fails)

    actor = ray.remote(num_cpus=0)(Maker).remote()
    for make in (ray.remote(arrays), actor.arrays):
        for fails, error in ((True, KeyError), (False, ValueError)):
            first, *others = make.options(num_returns=3).remote(fails)
            array, inner = get(first)
            assert len(array) == size == get(inner).sum()
            for reference in others:
                with pytest.raises(error):
                    get(reference)
    # What is run again yields everything again.
    num_runs = len(list(tmp_path.iterdir()))
    retried = ray.remote(num_returns=2, max_retries=2, retry_exceptions=True)(arrays)
    assert [outcome(each) for each in retried.remote(True)] == ["KeyError"] * 2
    assert len(list(tmp_path.iterdir())) == num_runs + 3
    retried_call = actor.arrays.options(num_returns=2, max_task_retries=1, retry_exceptions=[KeyError])
    assert [outcome(each) for each in retried_call.remote(True)] == ["KeyError"] * 2
    assert len(list(tmp_path.iterdir())) == num_runs + 5


def test_a_streaming_generator_cannot_be_pickled() -> None:
    @ray.remote
    def take(value: Any) -> None: ...

    generator = numbers.remote(1)
    assert ray.get(generator) is generator  # type: ignore[call-overload]
    for use in (pickle.dumps, ray.put, take.remote):
        with pytest.raises(TypeError, match="ObjectRefGenerator"):
            use(generator)
    for use in (generator.send, generator.throw):
        with pytest.raises(NotImplementedError):
            use(ValueError())


def test_only_generators_stream() -> None:
    def plain() -> int:
        return 1

    for given in ("streaming", "dynamic"):
        with pytest.raises(ValueError, match="plain"):
            ray.remote(num_returns=given)(plain)
        with pytest.raises(ValueError, match="plain"):
            ray.remote(plain).options(num_returns=given)
        with pytest.raises(ValueError, match="plain"):
            ray.method(num_returns=given)(plain)
    for wrong, error in ((0, ValueError), (-2, ValueError), ("two", TypeError)):
        with pytest.raises(error, match="_generator_backpressure_num_objects"):
            numbers.options(_generator_backpressure_num_objects=wrong)
