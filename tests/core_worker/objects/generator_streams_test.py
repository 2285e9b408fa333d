"""The caller's side of a stream: items that come once, twice or too late, and what the executor is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray_mono.common.ids import object_id_bytes
from ray_mono.core_worker.objects.generator_streams import GeneratorStreams, Stream
from ray_mono.core_worker.task_execution.call import Reply
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.core_worker.fake_core import FakeCore

TASK_ID = b"t" * 24
ELSEWHERE = b"e" * 28


class Executor:
    """Who runs the generator; keeps what it was told: (received, taken, dropped)."""

    def __init__(self) -> None:
        self.stub = SimpleNamespace(AcknowledgeItems=self)
        self.told: list[tuple[int, int, bool]] = []

    def notify(self, request: Any) -> None:
        self.told.append((request.received, request.taken, request.is_dropped))


def item_id(number: int) -> bytes:
    return object_id_bytes(TASK_ID, number + 1)


def part(first: int, *items: Any, wants: bool = False) -> Any:
    """bytes are inline items; None is one in the store of ELSEWHERE."""
    made = [
        core_worker_pb2.StreamedItem(metadata=serialization.PLAIN, data=item)
        if item is not None
        else core_worker_pb2.StreamedItem(in_plasma=True, node_id=ELSEWHERE, size_bytes=10**6)
        for item in items
    ]
    return Reply(first_item=first, items=made, wants_acknowledgement=wants)


def make(backpressure: int = 0) -> tuple[FakeCore, Executor, Stream]:
    core = FakeCore()
    return core, Executor(), Stream(core, TASK_ID, backpressure)  # type: ignore[arg-type]


def values(core: FakeCore, count: int) -> list[Any]:
    entries = [core.memory_store.get(item_id(number)) for number in range(1, count + 1)]
    return [entry and (entry.data if entry.data is not None else entry.locations) for entry in entries]


def test_items_that_another_attempt_sends_again_stay_what_they_are() -> None:
    core, executor, stream = make()
    stream.add_part(executor, part(1, b"one", b"two"))  # type: ignore[arg-type]
    stream.add_part(executor, part(1, b"ONE", b"TWO", b"three"))  # type: ignore[arg-type]
    assert stream.num_received == 3
    assert values(core, 3) == [b"one", b"two", b"three"]
    taken = [stream.take() for _ in range(3)]
    assert not stream.is_ready and len(core.references) == 3
    del taken
    assert len(core.references) == 0


def test_an_attempt_that_begins_anew_hears_what_was_taken_before_it_rests() -> None:
    core, executor, stream = make(backpressure=1)
    stream.add_part(executor, part(1, b"one"))  # type: ignore[arg-type]
    first = stream.take()
    assert executor.told.pop() == (1, 1, False)
    # It makes one item, which is one that nobody takes again: without a word it would rest for ever.
    again = Executor()
    stream.add_part(again, part(1, b"one"))  # type: ignore[arg-type]
    assert again.told == [(1, 1, False)]
    # What was not taken is not acknowledged as taken.
    stream.add_part(again, part(2, b"two"))  # type: ignore[arg-type]
    assert again.told == [(1, 1, False)]
    del first


def test_a_copy_of_an_item_in_a_store_is_one_more_place_or_is_freed() -> None:
    core, executor, stream = make()
    stream.add_part(executor, part(1, None, b"two", None))  # type: ignore[arg-type]
    entry = core.memory_store.get(item_id(1))
    assert entry is not None and entry.locations == [ELSEWHERE]
    other = part(1, None, None, None)
    for item in other.items:
        item.node_id = b"o" * 28
    taken = [stream.take() for _ in range(3)]
    del taken[2]
    core.freed.clear()
    stream.add_part(executor, other)  # type: ignore[arg-type]
    assert entry.locations == [ELSEWHERE, b"o" * 28]
    # The second is inline here, the third is gone.
    assert core.freed == [(item_id(2), [b"o" * 28]), (item_id(3), [b"o" * 28])]


def test_what_comes_for_a_dropped_stream_is_thrown_away_and_said() -> None:
    core, executor, stream = make()
    stream.add_part(executor, part(1, b"one", None))  # type: ignore[arg-type]
    stream.drop()
    assert executor.told == [(2, 0, True)]
    assert len(core.references) == 0 and core.freed == [(item_id(2), [ELSEWHERE])]
    stream.add_part(executor, part(3, None, b"four"))  # type: ignore[arg-type]
    assert core.freed[1:] == [(item_id(3), [ELSEWHERE])]
    assert len(core.references) == 0 and len(core.memory_store) == 0
    assert executor.told[1:] == [(4, 0, True)]


def test_the_executor_hears_what_was_received_where_it_wants_to() -> None:
    core, executor, stream = make()
    stream.add_part(executor, part(1, b"one"))  # type: ignore[arg-type]
    assert not executor.told
    stream.add_part(executor, part(2, b"two", b"three", wants=True))  # type: ignore[arg-type]
    assert executor.told == [(3, 0, False)]


def test_who_waits_for_an_item_hears_of_it_or_of_the_end() -> None:
    core, executor, stream = make()
    heard: list[str] = []
    assert not stream.when_next(lambda: heard.append("item"))
    stream.add_part(executor, part(1, b"one"))  # type: ignore[arg-type]
    assert heard == ["item"]
    ref = stream.take()
    assert not stream.when_next(lambda: heard.append("end"))
    stream.end()
    assert heard == ["item", "end"] and stream.is_finished
    del ref


def test_who_waits_for_an_item_after_the_end_does_not_wait() -> None:
    _, _, stream = make()
    stream.end()
    assert stream.when_next(lambda: None)


def test_an_error_is_the_last_item() -> None:
    core, executor, stream = make()
    stream.add_part(executor, part(1, b"one"))  # type: ignore[arg-type]
    stream.add_error(serialization.ERROR, b"why", [common_pb2.ObjectReference(object_id=b"i" * 28)])
    stream.end()
    refs = [stream.take(), stream.take()]
    assert values(core, 2) == [b"one", b"why"] and stream.is_finished
    assert len(core.references) == 3  # with the one in the error
    del refs


def test_items_of_a_task_that_nobody_knows_any_more_leave_the_store() -> None:
    core, executor, _ = make()
    GeneratorStreams(core).received(executor, TASK_ID, part(4, b"inline", None, None))  # type: ignore[arg-type]
    assert core.freed == [(item_id(5), [ELSEWHERE]), (item_id(6), [ELSEWHERE])]
