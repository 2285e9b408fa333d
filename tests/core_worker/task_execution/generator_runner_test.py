"""Generators that run: what goes into them, how they end, and what is made of their first items."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from ray_mono.core_worker.object_ref_generator import StreamingGeneratorStats
from ray_mono.protobuf import core_worker_pb2
from tests.core_worker.scene import Connection
from tests.core_worker.worker_scene import Worker


def test_a_generator_is_told_how_long_each_item_took_to_store(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    told: list[Any] = []

    def generate() -> Iterator[int]:
        told.append((yield 1))
        told.append((yield 2))

    call = worker.ask(worker.function(generate, num_returns=-1))
    worker.run()
    assert call.items == [1, 2] and [type(each) for each in told] == [StreamingGeneratorStats] * 2


def test_what_a_generator_yields_from_is_told_too_where_it_takes_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    told: list[Any] = []

    def inner() -> Iterator[int]:
        told.append((yield 1))
        yield from [2, 3]

    def generate() -> Iterator[int]:
        yield from inner()
        yield from iter([4, 5])

    call = worker.ask(worker.function(generate, num_returns=-1))
    worker.run()
    assert call.items == [1, 2, 3, 4, 5] and type(told[0]) is StreamingGeneratorStats


def test_what_a_generator_raises_comes_behind_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    def generate() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("here")

    call = worker.ask(worker.function(generate, num_returns=-1))
    worker.run()
    assert call.items == [1, 2] and isinstance(call.value.cause, LookupError)
    assert call.said[-1] is call.answer and call.answer.is_application_error


def test_an_async_generator_needs_an_async_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    async def generate() -> AsyncIterator[int]:
        yield 1

    call = worker.ask(worker.function(generate, num_returns=-1))
    worker.run()
    assert "async generator, which only an actor with async methods can run" in str(call.value)


@pytest.mark.parametrize(("num_returns", "told"), [(0, []), (1, 0), (2, [0, 1]), (3, [0, 1, 2])])
def test_a_fixed_number_of_returns_are_the_first_items(
    monkeypatch: pytest.MonkeyPatch, num_returns: int, told: Any
) -> None:
    worker = Worker(monkeypatch)
    closed: list[int] = []

    def generate() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(1)

    call = worker.ask(worker.function(generate, num_returns=num_returns))
    worker.run()
    assert call.value == told and len(closed) == min(num_returns, 1) and not call.parts


@pytest.mark.parametrize("retries", [False, True])
@pytest.mark.parametrize("raises", [False, True])
def test_what_a_generator_gave_before_it_failed_stays_unless_it_runs_again(
    monkeypatch: pytest.MonkeyPatch, retries: bool, raises: bool
) -> None:
    worker = Worker(monkeypatch)

    def generate() -> Iterator[int]:
        yield 1
        if raises:
            raise LookupError("here")

    call = worker.ask(worker.function(generate, num_returns=3, retry_exceptions=retries))
    worker.run()
    first, *others = call.value
    if retries:
        others = [first, *others]
    else:
        assert first == 1
    cause, text = (LookupError, "here") if raises else (ValueError, "num_returns=3 but yielded only 1 values")
    assert all(isinstance(each.cause, cause) and text in str(each) for each in others)
    assert len(others) == (3 if retries else 2) and call.answer.is_application_error == retries


def test_a_generator_that_gives_nothing_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    def generate() -> Iterator[int]:
        yield from ()

    call = worker.ask(worker.function(generate, num_returns=1))
    worker.run()
    assert call.answer.is_application_error and "yielded only 0 values" in str(call.value)


def test_acknowledgements_of_a_generator_that_is_over_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)

    def generate() -> Iterator[int]:
        yield 1

    call = worker.ask(worker.function(generate, num_returns=-1))
    worker.run()
    worker.execution.generators.AcknowledgeItems(
        core_worker_pb2.AcknowledgeItemsRequest(task_id=call.task_id, is_dropped=True)
    )
    assert not worker.connection.state["senders"], "nor does its connection know it"
    worker.connection.close()


def test_the_end_of_another_connection_closes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    other = Connection()

    def generate() -> Iterator[int]:
        yield 1
        other.close()
        yield 2

    spec = worker.function(generate, num_returns=-1)
    others = worker.ask(worker.function(lambda: iter(()), num_returns=-1), connection=other)
    call = worker.ask(spec)
    worker.run()
    assert call.items == [1, 2] and others.replies


def test_two_generators_of_one_connection_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    made: list[int] = []

    def generate() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            if number == 1:
                worker.connection.close()
            yield number

    spec = worker.function(generate, num_returns=-1)
    worker.ask(spec)
    worker.run()
    worker.ask(spec)
    worker.run()
    assert made == [0, 1, 0]
    assert len(worker.connection.closers) == 1, "it is listened to once"


def test_an_actors_generator_that_is_cancelled_ends_between_two_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    ends: list[str] = []

    class Actor:
        def generate(self) -> Iterator[int]:
            try:
                yield 1
                worker.cancel(worker.context.task_id())
                yield 2
                ends.append("went on")
            finally:
                ends.append("over")

    worker.actor(Actor)
    call = worker.ask(worker.method("generate", num_returns=-1))
    worker.run()
    assert ends == ["over"] and type(call.value).__name__ == "TaskCancelledError"


def test_a_generator_that_the_user_keeps_is_closed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    kept: list[Iterator[int]] = []
    ends: list[bool] = []

    def generate() -> Iterator[int]:
        try:
            worker.connection.close()
            yield 1
        finally:
            ends.append(bool(call.replies))

    def make() -> Iterator[int]:
        kept.append(generate())
        return kept[0]

    call = worker.ask(worker.function(make, num_returns=-1))
    worker.run()
    assert ends == [False] and call.replies


def test_an_actors_call_that_is_cancelled_before_it_makes_a_generator_yields_one_item_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    made: list[int] = []

    class Actor:
        def make(self) -> Iterator[int]:
            worker.cancel(worker.context.task_id())

            def generate() -> Iterator[int]:
                for number in range(3):
                    made.append(number)
                    yield number

            return generate()

    worker.actor(Actor)
    call = worker.ask(worker.method("make", num_returns=-1))
    worker.run()
    assert made == [0] and type(call.value).__name__ == "TaskCancelledError"
