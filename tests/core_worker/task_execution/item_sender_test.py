"""A generator's items on their way: how they share frames, when it rests, and that references go ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.core_worker.options import STREAMING_RETURNS
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2
from tests.core_worker.scene import NODE_ID
from tests.core_worker.task_execution.streaming import REFERENCE, Streaming, still
from tests.core_worker.worker_scene import CALLER, LARGE, OTHER_OWNER, Arriving

# ---- parts


def test_the_first_item_goes_out_at_once_and_what_follows_shares_a_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Streaming(monkeypatch)
    sent: list[int] = []

    def generate() -> Iterator[int]:
        for number in range(10):
            yield number
            sent.append(len(worker.call.parts))
        worker.turn()
        sent.append(len(worker.call.parts))

    call = worker.stream(generate)
    worker.run()
    assert sent == [1] * 10 + [2] and call.items == list(range(10))
    assert worker.numbers == list(range(1, 11)) and call.said[-1] is call.answer


def test_an_item_goes_out_at_once_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch)
    sent: list[int] = []

    def generate() -> Iterator[int]:
        for pauses in (0, 0, 1.01, 0, 0.99):
            worker.reactor.now_s += pauses * worker.config.part_flush_s
            before = worker.reactor.num_flushes
            yield 1
            sent.append(len(worker.numbers) * (1 if worker.reactor.num_flushes > before else -1))

    worker.stream(generate)
    worker.run()
    assert sent == [1, -1, 3, -3, -3]  # negative: only collected


@pytest.mark.parametrize(
    ("limits", "count"), [({"part_items_max": 4}, 4), ({"part_bytes_max": 4000}, 4)], ids=["items", "bytes"]
)
def test_a_full_part_is_sent(monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], count: int) -> None:
    worker = Streaming(monkeypatch, **limits)
    sent: list[int] = []

    def generate() -> Iterator[bytes]:
        yield b""
        for _ in range(count):
            yield b"x" * 990
            sent.append(len(worker.call.parts))

    worker.stream(generate)
    worker.run()
    assert sent == [1] * (count - 1) + [2]


def test_an_item_that_does_not_pickle_is_named_and_ends_the_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Streaming(monkeypatch)

    def generate() -> Iterator[Any]:
        yield 1
        yield __import__("threading").Lock()

    call = worker.stream(generate)
    worker.run()
    assert call.items == [1] and isinstance(call.value.cause, TypeError)
    assert "what f() yielded" in str(call.value)


# ---- limits


def resting(worker: Streaming, *steps: Callable[[], None]) -> list[int]:
    """Runs it, with these steps while it rests, one after the other. Returns how many items were made before
    each."""
    made: list[int] = []

    def step(then: Callable[[], None]) -> Callable[[], None]:
        def happens() -> None:
            made.append(len(worker.numbers))
            then()

        return happens

    worker.run(*map(step, steps))
    return made


def test_the_generator_rests_while_too_many_items_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch, items_in_flight_max=8)
    call = worker.stream(still(range(19)))
    made = resting(
        worker,
        lambda: worker.acknowledge(received=4),
        lambda: worker.acknowledge(received=12),
    )
    assert made == [8, 12] and call.items == list(range(19)) and call.replies
    assert len(worker.wire.all("NotifyBlocked")) == len(worker.wire.all("NotifyUnblocked")) == 2


def test_the_owner_is_asked_to_acknowledge_when_half_of_the_limit_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Streaming(monkeypatch, items_in_flight_max=8)

    def generate() -> Iterator[int]:
        for number in range(8):
            yield number
            worker.turn()

    worker.stream(generate)
    resting(worker, lambda: worker.acknowledge(received=8))
    assert [part.wants_acknowledgement for part in worker.call.parts] == [False] * 3 + [True] * 5


def test_the_generator_rests_while_too_many_bytes_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch, items_in_flight_bytes_max=4000)
    worker.stream(still([b"x" * 1000] * 6))
    made = resting(
        worker,
        # What is not a whole part is not acknowledged.
        lambda: worker.acknowledge(received=0),
        lambda: worker.acknowledge(received=4),
    )
    assert made[0] == 4 and len(worker.numbers) == 6
    assert not worker.call.parts[0].wants_acknowledgement and worker.call.parts[1].wants_acknowledgement


def test_bytes_count_until_their_parts_are_received(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch, items_in_flight_bytes_max=2000)

    def generate() -> Iterator[bytes]:
        for _ in range(5):
            yield b"x" * 990
            worker.turn()

    worker.stream(generate)
    made = resting(
        worker,
        lambda: worker.acknowledge(received=1),
        lambda: worker.acknowledge(received=2),
        lambda: worker.acknowledge(received=5),
    )
    assert made == [2, 3, 4] and len(worker.numbers) == 5


def test_backpressure_counts_what_was_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch)
    call = worker.stream(still(range(5)), backpressure=2)
    made = resting(
        worker,
        lambda: worker.acknowledge(received=2),
        lambda: worker.acknowledge(received=2, taken=1),
        lambda: worker.acknowledge(taken=3),
        lambda: worker.acknowledge(taken=4),
    )
    assert made == [2, 2, 3, 5] and call.replies


def test_what_an_older_acknowledgement_says_takes_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch)
    worker.stream(still(range(4)), backpressure=2)
    made = resting(
        worker,
        lambda: worker.acknowledge(received=2, taken=2),
        lambda: worker.acknowledge(received=1, taken=1),
        lambda: worker.acknowledge(taken=3),
    )
    assert made == [2, 4, 4] and worker.call.replies


@pytest.mark.parametrize("end", ["dropped", "connection"])
def test_a_generator_that_rests_goes_on_when_nobody_takes_or_owns_its_items_any_more(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    worker = Streaming(monkeypatch)
    ends: list[str] = []

    def generate() -> Iterator[int]:
        try:
            yield from range(3)
            ends.append("its end")
        finally:
            ends.append("over")

    worker.stream(generate, backpressure=1)
    resting(
        worker,
        lambda: worker.acknowledge(is_dropped=True) if end == "dropped" else worker.connection.close(),
    )
    # One whose user's generator object goes runs to its end, as in Ray; one whose owner is gone is closed.
    assert ends == (["its end", "over"] if end == "dropped" else ["over"])
    assert worker.numbers == [1] and not worker.call.answer.is_application_error


def test_an_actors_generator_that_rests_is_closed_when_its_call_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Streaming(monkeypatch)
    ends: list[str] = []

    class Actor:
        def items(self) -> Iterator[int]:
            try:
                yield from range(2)
            finally:
                ends.append("over")

    worker.actor(Actor)
    method = worker.method("items", num_returns=-1, generator_backpressure_num_objects=1)
    worker.call = worker.ask(method)
    worker.run(lambda: ends.append(f"found: {worker.cancel(worker.call.task_id)}"))
    assert ends == ["found: True", "over"] and worker.numbers == [1]
    assert isinstance(worker.call.value, TaskCancelledError)


def test_a_generator_of_an_owner_who_is_gone_already_stops_at_its_first_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Streaming(monkeypatch)
    made: list[int] = []

    def generate() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            yield number

    worker.stream(generate)
    worker.connection.close()
    worker.run()
    assert made == [0] and not worker.call.parts


def test_a_generator_that_rests_ends_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch)
    worker.stream(still(range(3)), backpressure=1)
    worker.meanwhile(worker.reactor.close)
    assert not worker.run(worker.reactor.close)


# ---- references


def test_an_item_waits_for_its_references_and_what_follows_waits_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Streaming(monkeypatch)

    def generate(reference: Any) -> Iterator[Any]:
        yield "first"
        yield [reference]
        yield "last"

    call = worker.stream(generate, Arriving(REFERENCE, OTHER_OWNER))
    worker.run()
    asked = worker.wire.last("AddBorrower", "unix:other")
    assert (asked.request.borrower, asked.request.contained_in) == (CALLER, worker.item_id(2))
    assert worker.numbers == [1] and not call.replies and not worker.execution.replies.are_settled
    assert worker.core.reference_counts() == 1
    with worker.env.lock:
        asked.answer(common_pb2.Empty())
    assert worker.numbers == [1, 2, 3] and call.said[-1] is call.answer
    assert [[each.object_id for each in item.nested] for part in call.parts for item in part.items] == [
        [],
        [REFERENCE],
        [],
    ]
    assert worker.core.reference_counts() == 0 and worker.execution.replies.are_settled


def test_what_an_actor_yields_to_itself_is_kept_until_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The item has a reference of the actor's own, which nobody else holds."""
    worker = Streaming(monkeypatch)
    (made,) = worker.core.submit_task(worker.template("g", num_returns=STREAMING_RETURNS), [])
    worker.grant()
    push = worker.wire.last("PushTask")

    def generate() -> Iterator[Any]:
        yield [worker.core.put("mine")]

    spec = worker.function(generate, num_returns=-1, caller=worker.address)
    worker.call = worker.ask(spec, name=push.request.task_id)
    worker.run()
    with worker.env.lock:
        for part in worker.call.parts:
            push.part(part)
    with worker.as_this_process():
        (mine,) = worker.core.get([next(made)], None)[0]
    assert worker.core.get([mine], None) == ["mine"]


def test_items_that_are_ready_before_those_ahead_of_them_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch)

    def generate(first: Any, second: Any) -> Iterator[Any]:
        yield [first]
        yield [second]

    call = worker.stream(generate, Arriving(REFERENCE, OTHER_OWNER), Arriving(b"s" * 28, OTHER_OWNER))
    worker.run()
    first, second = worker.wire.all("AddBorrower")
    with worker.env.lock:
        second.answer(common_pb2.Empty())
        worker.turn()
        assert not call.parts
        first.answer(common_pb2.Empty())
    worker.turn()
    assert worker.numbers == [1, 2] and call.replies


def test_a_reference_that_the_receiver_owns_is_held_until_its_item_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Streaming(monkeypatch)
    counts: list[int] = []

    def generate(*references: Any) -> Iterator[Any]:
        yield "first"
        item = list(references)
        del references
        yield item
        del item
        counts.append(worker.core.reference_counts())
        worker.turn()
        counts.append(worker.core.reference_counts())

    call = worker.stream(generate, Arriving(REFERENCE, CALLER))
    worker.run()
    assert counts[0] == 1 and worker.core.reference_counts() == 0 and call.replies
    assert worker.numbers == [1, 2] and not worker.wire.all("AddBorrower")


# ---- large items


def test_a_large_item_is_in_the_store_and_its_owners(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    worker = Streaming(monkeypatch, store_file=tmp_path / "store")
    call = worker.stream(still([LARGE]))
    worker.run()
    worker.acknowledge(is_dropped=True)
    (item,) = call.parts[0].items
    assert (item.in_plasma, item.node_id, item.data) == (True, NODE_ID, b"")
    created = worker.wire.last("Create").request
    assert (created.object_id, created.owner_worker_id) == (worker.item_id(1), CALLER.worker_id)
    assert worker.sealed() == [created.object_id] and not worker.given_up()
    assert item.size_bytes == created.size_bytes


def test_large_items_that_nobody_wants_any_more_leave_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Streaming(monkeypatch, store_file=tmp_path / "store")

    def generate(reference: Any) -> Iterator[Any]:
        yield 1
        yield [LARGE, reference]
        yield 2
        yield LARGE
        # They wait for the owner of the reference when the generator object goes.
        worker.acknowledge(is_dropped=True)
        with worker.env.lock:
            worker.wire.last("AddBorrower", "unix:other").answer(common_pb2.Empty())
        yield LARGE

    call = worker.stream(generate, Arriving(REFERENCE, OTHER_OWNER))
    worker.run()
    stored = [each.request.object_id for each in worker.wire.all("Create")]
    assert stored == worker.given_up() == [worker.item_id(2), worker.item_id(4)], "the last was not stored"
    assert worker.numbers == [1] and call.replies and not worker.sealed()


def test_a_large_item_is_sealed_when_it_is_sent_and_goes_with_a_worker_that_ends_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Streaming(monkeypatch, store_file=tmp_path / "store")

    def generate(reference: Any) -> Iterator[Any]:
        yield LARGE
        yield [reference, LARGE]
        yield LARGE

    worker.stream(generate, Arriving(REFERENCE, OTHER_OWNER))
    worker.run()
    assert worker.numbers == [1] and worker.sealed() == [worker.item_id(1)]
    with worker.env.lock:
        worker.wire.last("AddBorrower", "unix:other").answer(common_pb2.Empty())
    worker.turn()
    assert worker.numbers == [1, 2, 3] and worker.sealed() == [worker.item_id(number) for number in (1, 2, 3)]


def test_large_items_that_a_caller_who_is_gone_will_not_hear_of_leave_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Streaming(monkeypatch, store_file=tmp_path / "store")

    def generate(reference: Any) -> Iterator[Any]:
        yield 1
        yield [LARGE, reference]
        worker.connection.close()
        with worker.env.lock:
            worker.wire.last("AddBorrower", "unix:other").answer(common_pb2.Empty())

    worker.stream(generate, Arriving(REFERENCE, OTHER_OWNER))
    worker.run()
    assert worker.given_up() == [worker.item_id(2)] and not worker.sealed()


def test_an_item_that_an_interrupt_kept_out_of_the_store_leaves_nothing_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Streaming(monkeypatch, store_file=tmp_path / "store")

    def strike(request: Any) -> None:
        raise KeyboardInterrupt

    worker.wire.replies["Create"] = strike
    worker.stream(still([LARGE]))
    worker.run()
    assert worker.given_up() == [worker.item_id(1)]
    assert serialization.ERROR == worker.call.answer.returns[0].value.metadata


def test_an_item_that_was_written_when_an_interrupt_struck_leaves_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    worker = Streaming(monkeypatch, store_file=tmp_path / "store")
    write = PlasmaStoreProvider.write

    def write_and_strike(*args: Any) -> None:
        write(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(PlasmaStoreProvider, "write", write_and_strike)
    worker.stream(still([LARGE]))
    worker.run()
    assert worker.given_up() == [worker.item_id(1)] and not worker.sealed()
    assert serialization.ERROR == worker.call.answer.returns[0].value.metadata


def test_a_store_that_is_full_ends_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Streaming(monkeypatch)
    worker.room = 0
    call = worker.stream(still([1, LARGE]))
    worker.run()
    assert call.items == [1] and "full" in str(call.value) and call.answer.is_application_error
