"""The items of a running generator, on their way to their owner. They are collected, sent in parts of the
answer, and counted until they are acknowledged.

A part is sent when part_flush_s have passed since the last one, when it is full, when the generator has to
wait, or when a turn of the reactor ends. So the first item after a while goes out at once, and the items of a
fast generator share a frame. Meanwhile they are on the start board as well: if the process dies, its raylet
tells their owner (kept_answers.py). A large one does not wait for others.

Limits: at most items_in_flight_max items, or items_in_flight_bytes_max of inline values, are on their way,
that is, collected or sent, and not acknowledged as received. Items that the owner has received do not count,
unless the user asks for backpressure. Then the generator rests while so many of its items are not taken.

For an item with references inside, ARCHITECTURE's rule 2 holds: before it is sent, its owner is registered
with the owners of these references. Items behind it wait meanwhile (`_held`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray_mono.common.ids import object_id_bytes
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.generator_streams import handle_id
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.task_execution.call import Call, Reply
from ray_mono.core_worker.task_execution.kept_answers import KeptAnswers
from ray_mono.core_worker.task_wire import streamed_item
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2


@dataclass(frozen=True)
class SenderParts:
    """The parts of a process that its senders use."""

    env: Environment
    references: ReferenceCounter
    borrowing: Borrowing
    plasma: PlasmaStoreProvider
    kept: KeptAnswers


class _Held:
    """An item that cannot be sent yet: its references, or those of an item before it, are not registered."""

    __slots__ = ("is_ready", "kept", "message", "stored_id", "value")

    def __init__(self, message: Any, value: serialization.Serialized, stored_id: bytes) -> None:
        """stored_id: its object in the store; empty if it is inline."""
        self.message = message
        self.stored_id = stored_id
        # Holds the references until their receiver is registered.
        self.value = value
        self.kept: list[bytes] = []
        self.is_ready = False

    def registered(self) -> None:
        """The owners of the references inside know the receiver."""
        self.is_ready = True
        self.value.nested.clear()


class ItemSender:
    """The items of one generator, on their way to their owner. The generator's thread calls `put`, without
    the lock. The other methods need the lock held."""

    def __init__(self, parts: SenderParts, call: Call) -> None:
        self._parts = parts
        self._env = parts.env
        self._call = call
        self.task_id: bytes = call.task_id
        self._backpressure: int = call.spec.message.generator_backpressure_num_objects
        self.num_made = 0
        self._num_received = 0
        self.num_taken = 0
        """Of the items, by the user. Acknowledged only under backpressure."""
        # (number of the last item, bytes) of each part that was sent and not acknowledged.
        self._unacknowledged: deque[tuple[int, int]] = deque()
        self._in_flight_bytes = 0
        # Items, each as the bytes of a part with this item, and the size of their values.
        self._part: list[bytes] = []
        self._part_bytes = 0
        # Those of the part that are in the store. They are sealed when they are sent.
        self._stored: list[bytes] = []
        self._num_sent = 0
        self._kept: list[bytes] = []
        self._held: deque[_Held] = deque()
        self._on_settled: Callable[[], None] | None = None
        self._is_dirty = False
        self._sent_at_s = 0.0
        # Called once when there may be room again.
        self._on_room: Callable[[], None] | None = None
        # The user's generator object is gone.
        self.is_dropped = False
        # The generator is to be closed: its owner's process is gone, or it was cancelled.
        self.is_stopped = call.answer_to.connection.is_closed

    # ---- making

    def put(self, value: Any) -> None:
        """The generator yielded `value`. Raises what pickling it raises, and ObjectStoreFullError."""
        if self.is_dropped:
            return
        env = self._env
        try:
            serialized = serialization.serialize(value)
        except TypeError as error:
            raise serialization.unpicklable(f"what {self._call.spec.name}() yielded", value, error) from error
        number = self.num_made + 1
        size_bytes = serialized.size_bytes
        if size_bytes > INLINE_BYTES_MAX:
            self._parts.plasma.write(self._item_id(number), serialized, self._call.spec.caller.worker_id)
        is_sent = False
        with env.lock:
            self.num_made = number
            if self._held or serialized.nested or size_bytes > INLINE_BYTES_MAX:
                self._put_other(number, serialized)
            else:
                self._part.append(streamed_item(serialized.metadata, serialized.to_bytes()))
                self._part_bytes += size_bytes
            now_s = env.clock.time_s()
            if (
                now_s - self._sent_at_s >= env.config.part_flush_s
                or len(self._part) >= env.config.part_items_max
                or self._part_bytes >= env.config.part_bytes_max
                or size_bytes > INLINE_BYTES_MAX
                or not self._keep()
            ):
                self._sent_at_s = now_s
                self.flush()
                env.reactor.flush()
                if self._parts.kept.has_some:
                    self._parts.kept.flushed()
                is_sent = True
            elif not self._is_dirty:
                self._is_dirty = True
                env.reactor.mark_dirty(self)
        if is_sent:
            self._parts.kept.leave(self._call.answer_to.connection)

    def _keep(self) -> bool:
        """Keeps the item that was collected last. False: it has to leave now. One that is held, and so those
        behind it, can do neither."""
        return bool(self._held) or not self._part or self._parts.kept.keep_item(self, self._part[-1])

    @property
    def has_unsent(self) -> bool:
        return bool(self._part) or self._call.answer_to.connection.has_unsent

    def _item_id(self, number: int) -> bytes:
        return object_id_bytes(self.task_id, number + 1)

    def _put_other(self, number: int, value: serialization.Serialized) -> None:
        """For an item that is large, has references inside, or comes behind one that is held."""
        borrowing = self._parts.borrowing
        nested = dict.fromkeys(ref._id for ref in value.nested)
        message = core_worker_pb2.StreamedItem(
            metadata=value.metadata, size_bytes=value.size_bytes, nested=map(borrowing.message_of, nested)
        )
        if value.size_bytes > INLINE_BYTES_MAX:
            message.in_plasma, message.node_id = True, self._env.node_id
        else:
            message.data = value.to_bytes()
        held = _Held(message, value, self._item_id(number) if message.in_plasma else b"")
        self._held.append(held)

        def registered() -> None:
            held.registered()
            self._collect_held()

        if nested:
            caller = self._call.spec.caller
            kept = borrowing.hand_over(nested, self._item_id(number), caller, registered)
            # Where no owner had to be asked, the item is collected already.
            (self._kept if held.is_ready else held.kept).extend(kept)
        else:
            registered()

    def _collect_held(self) -> None:
        while self._held and self._held[0].is_ready:
            held = self._held.popleft()
            self._part.append(Reply(items=[held.message]).SerializeToString())
            self._part_bytes += len(held.message.data)
            self._kept.extend(held.kept)
            if held.stored_id:
                self._stored.append(held.stored_id)
        if self._part and not self._is_dirty:
            self._is_dirty = True
            self._env.reactor.mark_dirty(self)
        if not self._held and self._on_settled is not None:
            settled, self._on_settled = self._on_settled, None
            settled()

    # ---- sending

    def flush(self) -> None:
        """Sends the items that were collected. The reactor calls it, too."""
        self._is_dirty = False
        part = self._part
        if not part:
            return
        count = len(part)
        self._part = []
        if self._stored:
            stored, self._stored = self._stored, []
            is_told = not self.is_dropped and not self._call.answer_to.connection.is_closed
            self._parts.plasma.seal(stored, is_told)
        if not self.is_dropped:
            config = self._env.config
            head = Reply(
                first_item=self._num_sent + 1,
                wants_acknowledgement=self._is_near(
                    config.items_in_flight_max // 2, config.items_in_flight_bytes_max // 2
                ),
            )
            self._unacknowledged.append((self._num_sent + count, self._part_bytes))
            self._in_flight_bytes += self._part_bytes
            self._call.answer_to.part_bytes(head.SerializeToString() + b"".join(part))
        self._num_sent += count
        self._part_bytes = 0
        if self._kept:
            kept, self._kept = self._kept, []
            self._parts.references.remove_submitted(kept)

    def when_settled(self, then: Callable[[], None]) -> None:
        """Calls then() once every item is sent or collected. That is at once, or when the owners of
        references have answered."""
        if self._held:
            self._on_settled = then
        else:
            then()

    # ---- limits

    def _is_near(self, items_max: int, bytes_max: int) -> bool:
        return (
            self.num_made - self._num_received >= items_max
            or self._in_flight_bytes + self._part_bytes >= bytes_max
        )

    @property
    def is_full(self) -> bool:
        """Whether the generator has to rest. It may be asked without the lock, since start_wait looks again
        under the lock."""
        if self.is_dropped or self.is_stopped:
            return False
        if self.is_ahead:
            return True
        config = self._env.config
        return self._is_near(config.items_in_flight_max, config.items_in_flight_bytes_max)

    @property
    def is_ahead(self) -> bool:
        """Its user asked for backpressure, and has not taken enough."""
        return 0 < self._backpressure <= self.num_made - self.num_taken

    @property
    def taken_by(self) -> common_pb2.WaitSubject:
        """Who knows what becomes of its items."""
        spec = self._call.spec
        return common_pb2.WaitSubject(
            kind=common_pb2.WaitSubject.OBJECT,
            id=handle_id(self.task_id),
            name=f"{spec.name}()",
            at=spec.caller,
        )

    def acknowledge(self, request: Any) -> None:
        """The owner has received items, or its user has taken some, or will take no more."""
        self._num_received = max(self._num_received, request.received)
        self.num_taken = max(self.num_taken, request.taken)
        while self._unacknowledged and self._unacknowledged[0][0] <= self._num_received:
            self._in_flight_bytes -= self._unacknowledged.popleft()[1]
        if request.is_dropped:
            self.is_dropped = True
        self._make_room()

    def stop(self) -> None:
        self.is_stopped = True
        self._make_room()

    def close(self) -> None:
        """The generator is over. An interrupt may have struck when an item was written, and not counted."""
        self._parts.plasma.give_up([self._item_id(self.num_made + 1)])

    def _make_room(self) -> None:
        if self._on_room is not None and not self.is_full:
            on_room, self._on_room = self._on_room, None
            on_room()

    def start_wait(self, on_room: Callable[[], None]) -> bool:
        """True if there is room. Otherwise on_room() runs once, when there is."""
        self.flush()
        self._env.reactor.flush()
        if not self.is_full:
            return True
        self._on_room = on_room
        return False
