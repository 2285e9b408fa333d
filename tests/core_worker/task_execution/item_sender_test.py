"""A generator's items on their way: how they share frames, when the generator rests, and that references go ahead of their items."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ray_mono.common.ids import object_id_bytes
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.core_worker.task_execution import item_sender
from ray_mono.core_worker.task_execution.item_sender import (
    IN_FLIGHT_BYTES_MAX,
    IN_FLIGHT_ITEMS_MAX,
    PART_ITEMS_MAX,
    ItemSender,
)
from ray_mono.protobuf import common_pb2, core_worker_pb2

TASK_ID = b"t" * 24


class FakeCore:
    """What a sender asks of the core worker; `turn` is the end of the reactor's turn."""

    node_id = b"n" * 28

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reactor = self.ownership = self.references = self.store = self
        self.dirty: list[ItemSender] = []
        self.stored: list[bytes] = []
        self.freed: list[tuple[bytes, list[bytes]]] = []
        self.acknowledge_owner: list[Callable[[], None]] = []
        self.released: list[bytes] = []
        self.calls: list[FakeCall] = []

    def mark_dirty(self, sender: ItemSender) -> None:
        self.dirty.append(sender)

    def put(self, object_id: bytes, value: Any, owner_worker_id: bytes) -> None:
        self.stored.append(object_id)

    def free_in_stores(self, object_id: bytes, node_ids: list[bytes]) -> None:
        self.freed.append((object_id, node_ids))

    def flush(self) -> None:
        while self.dirty:
            self.dirty.pop().flush()
        for call in self.calls:
            call.parts += call.buffered
            call.buffered.clear()

    def reference_message(self, object_id: bytes) -> common_pb2.ObjectReference:
        return common_pb2.ObjectReference(object_id=object_id)

    def hand_over(self, nested: Any, item_id: bytes, receiver: Any, then: Callable[[], None]) -> list[bytes]:
        self.acknowledge_owner.append(then)
        return list(nested)

    def remove_submitted(self, object_ids: list[bytes]) -> None:
        self.released += object_ids


class FakeCall:
    """The call of a generator, and its connection."""

    def __init__(self, backpressure: int = 0) -> None:
        self.spec = common_pb2.TaskSpec(generator_backpressure_num_objects=backpressure)
        self.own = core_worker_pb2.PushTaskRequest(task_id=TASK_ID)
        self.to = self.connection = self
        self.is_closed = False
        self.buffered: list[Any] = []
        self.parts: list[Any] = []

    def part(self, message: Any) -> None:
        """Nobody is rung for it: it goes with the next flush of the reactor."""
        self.buffered.append(message)

    def numbers(self) -> list[int]:
        """Of the items that were sent, as their parts count them."""
        return [part.first_item + index for part in self.parts for index in range(len(part.items))]


@pytest.fixture
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes: only full parts, and ends of turns, are sent."""
    monkeypatch.setattr(item_sender, "FLUSH_S", float("inf"))


def acknowledged(received: int = 0, taken: int = 0, is_dropped: bool = False) -> Any:
    return core_worker_pb2.AcknowledgeItemsRequest(received=received, taken=taken, is_dropped=is_dropped)


def make(backpressure: int = 0) -> tuple[FakeCore, FakeCall, ItemSender]:
    core, call = FakeCore(), FakeCall(backpressure)
    core.calls.append(call)
    return core, call, ItemSender(core, call)  # type: ignore[arg-type]


def test_items_of_one_turn_share_a_part(still_clock: None) -> None:
    core, call, sender = make()
    for number in range(10):
        sender.put(number)
    assert not call.parts
    core.flush()
    assert len(call.parts) == 1 and call.numbers() == list(range(1, 11))


def test_an_item_goes_out_at_once_after_a_pause() -> None:
    core, call, sender = make()
    sender.put(1)
    assert call.numbers() == [1]


def test_a_full_part_is_sent(still_clock: None) -> None:
    core, call, sender = make()
    for number in range(PART_ITEMS_MAX):
        sender.put(number)
    assert len(call.parts) == 1


def test_the_generator_rests_while_too_many_items_are_on_their_way(still_clock: None) -> None:
    core, call, sender = make()
    for number in range(IN_FLIGHT_ITEMS_MAX):
        assert not sender.is_full
        sender.put(number)
    assert sender.is_full
    rested: list[bool] = []
    assert not sender.start_wait(lambda: rested.append(True))
    # The owner was asked in time, and nothing waits here unsent.
    assert call.parts[-1].wants_acknowledgement and not call.parts[0].wants_acknowledgement
    assert call.numbers() == list(range(1, IN_FLIGHT_ITEMS_MAX + 1))
    sender.acknowledge(acknowledged(received=IN_FLIGHT_ITEMS_MAX // 2))
    assert rested and not sender.is_full


def test_the_generator_rests_while_too_many_bytes_are_on_their_way() -> None:
    core, call, sender = make()
    count = 0
    while not sender.is_full:
        sender.put(b"x" * 100_000)
        count += 1
    assert (count - 1) * 100_000 < IN_FLIGHT_BYTES_MAX <= count * 100_100
    # The owner is asked in time, or it would rest for ever.
    sender.start_wait(lambda: None)
    assert call.parts[-1].wants_acknowledgement and not call.parts[0].wants_acknowledgement
    sender.acknowledge(acknowledged(received=count))
    assert not sender.is_full


def test_backpressure_counts_what_was_not_taken() -> None:
    core, call, sender = make(backpressure=2)
    sender.put(1)
    assert not sender.is_full
    sender.put(2)
    sender.acknowledge(acknowledged(received=2))
    assert sender.is_full
    sender.acknowledge(acknowledged(received=2, taken=1))
    assert not sender.is_full


def test_a_generator_that_rests_goes_on_when_nobody_takes_or_owns_its_items_any_more() -> None:
    for end in (lambda sender: sender.acknowledge(acknowledged(is_dropped=True)), ItemSender.stop):
        core, call, sender = make(backpressure=1)
        sender.put(1)
        rested: list[bool] = []
        assert not sender.start_wait(lambda seen=rested: seen.append(True))  # type: ignore[misc]
        end(sender)
        assert rested and not sender.is_full


def test_an_item_waits_for_its_references_and_what_follows_waits_behind_it(
    still_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, call, sender = make()

    class Ref:
        _id = b"r" * 28

    plain = item_sender.serialization.serialize

    def serialize(value: Any) -> Any:
        serialized = plain(value)
        if value == "with a reference":
            serialized.nested.append(Ref())  # type: ignore[arg-type]
        return serialized

    monkeypatch.setattr(item_sender.serialization, "serialize", serialize)
    settled: list[bool] = []
    for value in ("first", "with a reference", "last"):
        sender.put(value)
    sender.when_settled(lambda: settled.append(True))
    core.flush()
    assert call.numbers() == [1] and not settled and not core.released
    core.acknowledge_owner.pop()()
    assert settled
    core.flush()
    assert call.numbers() == [1, 2, 3]
    assert [len(item.nested) for part in call.parts for item in part.items] == [0, 1, 0]
    # Held here until it is on its way, since the receiver owns it.
    assert core.released == [Ref._id]


LARGE = b"x" * (INLINE_BYTES_MAX + 1)


def item_ids(*numbers: int) -> list[bytes]:
    return [object_id_bytes(TASK_ID, number + 1) for number in numbers]


def test_large_items_that_nobody_wants_any_more_leave_the_store(still_clock: None) -> None:
    core, call, sender = make()
    for value in (1, LARGE, 2, LARGE):
        sender.put(value)
    # Collected and not sent when the generator object goes.
    sender.acknowledge(acknowledged(is_dropped=True))
    core.flush()
    assert core.stored == item_ids(2, 4)
    assert core.freed == [(object_id, [core.node_id]) for object_id in item_ids(2, 4)]
    assert not call.parts
    # What comes later is not even stored.
    sender.put(LARGE)
    core.flush()
    assert core.stored == item_ids(2, 4) and not call.parts


def test_a_large_item_that_was_sent_is_its_owners(still_clock: None) -> None:
    core, call, sender = make()
    sender.put(LARGE)
    core.flush()
    assert [(item.in_plasma, item.node_id) for item in call.parts[0].items] == [(True, core.node_id)]
    sender.acknowledge(acknowledged(is_dropped=True))
    sender.close()
    assert not core.freed


def test_what_an_interrupt_left_in_the_store_goes_with_the_generator(
    still_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, call, sender = make()

    def store(*args: Any) -> None:
        FakeCore.put(core, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(core, "put", store)
    with pytest.raises(KeyboardInterrupt):
        sender.put(LARGE)
    sender.close()
    assert core.freed == [(item_ids(1)[0], [core.node_id])]
