"""The caller's side of a streaming task: another process runs the generator, and this one owns its items.

    executor ──part──► Stream ──take──► ObjectRef
    executor ◄──AcknowledgeItems── Stream    how many were received (when the executor asks for it, or a new
                                             attempt began), and how many were taken (with backpressure)

received ≥ taken. The stream holds the items in between by one local reference each, which the ObjectRef takes
over.

    OPEN    ──the task was answered, or failed──► ENDED ──the generator object is gone──► forgotten
    OPEN    ──the generator object is gone──► DROPPED ──the task was answered, or failed──► forgotten

When a stream is DROPPED, items that were not taken are freed, and items that still come are thrown away.

Item n of a task is its object with index n + 1, in every attempt. A task that runs again sends its items
again. Those that were received before stay what they are, unless they are lost. A copy in a store is one more
place where the item lies; the references inside it, which may be others, are counted beside those of the
first. An exception of the user's function is the last item.

A generator that has ended may run again for items that are lost (`reopen`). Then its items have a Stream of
their own, which only gives those items back. If an item is lost in the middle of a stream, the present run is
of no use for it: where the generator rests for want of room, it is told to run to its end (`rush`).

Index 1 is the task's return. Its value is None where the generator came to its end, and the error where the
task failed. For "dynamic" it is a DynamicObjectRefGenerator of all items. Index 0 stands for the generator
object: it is a reference without a value, and when it ends, the stream is dropped.

Whoever waits for an item that is not there waits in the memory store, for an object that nobody references
yet (`_awaited`). If the stream ends before the item comes, an empty value takes its place, which only says
so.

As in Ray, any number of items may be received and not taken, unless the user asks for backpressure.
Everything here runs under the core worker's lock.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ray_mono.common.ids import TaskID, object_id_bytes
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef, ReferenceHome, SessionEnded
from ray_mono.core_worker.object_ref_generator import DynamicObjectRefGenerator, ObjectRefGenerator
from ray_mono.core_worker.objects.getter import Getter
from ray_mono.core_worker.objects.lineage import Lineage
from ray_mono.core_worker.objects.long_waits import LongWaits
from ray_mono.core_worker.objects.unhandled_errors import UnhandledErrors
from ray_mono.core_worker.options import DYNAMIC_RETURNS
from ray_mono.core_worker.peers import Peer
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import core_worker_pb2

_NONE = pickle.dumps(None, 5)
_TASK_ID_BYTES = TaskID.SIZE
_ALL = (1 << 31) - 1
"""More items than any generator makes."""
_HANDLE = bytes(4)


def handle_id(task_id: bytes) -> bytes:
    """Of the object that stands for the generator object of this task."""
    return task_id + _HANDLE


@dataclass(frozen=True)
class StreamParts:
    """The parts of the process that its streams use."""

    env: Environment
    references: ReferenceCounter
    memory_store: MemoryStore
    plasma: PlasmaStoreProvider
    borrowing: Borrowing
    lineage: Lineage[Any]
    unhandled: UnhandledErrors
    home: ReferenceHome
    getter: Getter
    long_waits: LongWaits
    task_id: Callable[[], bytes]
    """Of the task that this thread runs."""


class Stream:
    """One generator's items. The methods for ObjectRefGenerator take the lock; the others need it held."""

    __slots__ = (
        "_awaited",
        "_parts",
        "_peer",
        "_sent_received",
        "_waiting",
        "backpressure",
        "is_dropped",
        "is_ended",
        "is_rushed",
        "made_by",
        "num_passed",
        "num_received",
        "num_taken",
        "task_id",
    )

    def __init__(self, parts: StreamParts, task_id: bytes, backpressure: int) -> None:
        self._parts = parts
        self.task_id = task_id
        # The task that called the generator.
        self.made_by = parts.task_id()
        self.backpressure = backpressure
        self.num_received = 0
        # Of the present attempt.
        self.num_passed = 0
        self.num_taken = 0
        self.is_ended = False
        self.is_dropped = False
        self.is_rushed = False
        # The worker that runs the generator, once something came from there.
        self._peer: Peer | None = None
        # How many items of the present attempt were received.
        self._sent_received = 0
        self._awaited: dict[bytes, None] = {}
        # The tasks that wait for the next item beside their thread, by what wakes them.
        self._waiting: dict[Callable[[], None], bytes] = {}

    def item_id(self, number: int) -> bytes:
        return object_id_bytes(self.task_id, number + 1)

    # ---- what came

    def follows(self, part: Any) -> bool:
        """Whether nothing is missing before this part."""
        return bool(part.first_item <= self._sent_received + 1)

    def add_part(self, peer: Peer, part: Any) -> None:
        number = first = part.first_item
        self._peer = peer
        if first == 1:
            self.is_rushed = False  # another attempt
        for item in part.items:
            self._add(number, item)
            number += 1
        self._sent_received = self.num_passed = number - 1
        # The executor of a new attempt does not know what was taken, or dropped, in earlier ones.
        if part.wants_acknowledgement or first <= self.num_taken or self.is_dropped:
            self._acknowledge()

    def _add(self, number: int, item: Any) -> None:
        parts = self._parts
        object_id = self.item_id(number)
        if number <= self.num_received or self.is_dropped:
            self._add_again(object_id, item)
            return
        self.num_received = number
        parts.references.add_owned(object_id)
        self._awaited.pop(object_id, None)
        self._put(object_id, item)

    def _put(self, object_id: bytes, item: Any) -> None:
        parts = self._parts
        if item.nested:
            parts.references.add_nested(object_id, parts.borrowing.adopt_returned(item.nested))
        if item.in_plasma:
            parts.lineage.stored(object_id)
            parts.memory_store.put_in_store(object_id, [item.node_id], item.size_bytes)
        else:
            parts.memory_store.put_value(object_id, item)

    def _add_again(self, object_id: bytes, item: Any) -> None:
        """An item came that was received before, or that nobody wants."""
        parts = self._parts
        is_wanted = object_id in parts.references
        if is_wanted and parts.memory_store.get(object_id) is None:
            self._put(object_id, item)  # it was lost
            return
        if not item.in_plasma:
            return
        if not is_wanted or not parts.memory_store.add_location(object_id, item.node_id):
            parts.plasma.free(object_id, [item.node_id])
        elif item.nested:
            parts.references.add_nested(object_id, parts.borrowing.adopt_returned(item.nested))

    def add_error(self, metadata: bytes, data: bytes, nested: Iterable[Any] = ()) -> None:
        """Adds an error as the last item."""
        self._add(
            self.num_received + 1, core_worker_pb2.StreamedItem(metadata=metadata, data=data, nested=nested)
        )

    def end(self) -> None:
        """No item will come any more."""
        self.is_ended = True
        self.wake()

    def wake(self) -> None:
        for object_id in list(self._awaited):
            self._parts.memory_store.put_inline(object_id, serialization.PLAIN, b"")

    def drop(self) -> None:
        """Nobody will take any more."""
        self.is_dropped = True
        for number in range(self.num_taken + 1, self.num_received + 1):
            self._parts.references.remove_local(self.item_id(number))
        awaited, self._awaited = self._awaited, {}
        for object_id in awaited:
            self._parts.memory_store.remove(object_id)
        if not self.is_ended:
            self._acknowledge()

    def rush(self) -> None:
        """The present attempt is to end, since another one is waited for. One that rests may wait for us."""
        if self.backpressure and not self.is_ended:
            self.is_rushed = True
            self._acknowledge()

    def begin_again(self) -> None:
        """Another attempt will send its items from the first on."""
        self.num_passed = 0

    def expect(self, number: int) -> bytes:
        """Has the memory store tell those who wait for the item when it comes, or when the stream ends.
        Returns the item's id."""
        object_id = self.item_id(number)
        store = self._parts.memory_store
        if number > self.num_received and store.get(object_id) is None:
            self._awaited[object_id] = None
            if self.is_ended:
                store.put_inline(object_id, serialization.PLAIN, b"")
            else:
                store.expect(object_id)
        return object_id

    def _acknowledge(self) -> None:
        if self._peer is not None:
            self._peer.stub.AcknowledgeItems.notify(
                core_worker_pb2.AcknowledgeItemsRequest(
                    task_id=self.task_id,
                    received=self._sent_received,
                    taken=self.num_taken,
                    is_dropped=self.is_dropped or self.is_rushed,
                )
            )

    # ---- for ObjectRefGenerator

    @property
    def is_ready(self) -> bool:
        return self.num_taken < self.num_received

    @property
    def is_finished(self) -> bool:
        return self.is_ended and self.num_taken >= self.num_received

    def next_id(self) -> bytes:
        """The id that the next item has or will have. It becomes ready also if there is no next item."""
        with self._parts.env.lock:
            return self.expect(self.num_taken + 1)

    def take(self) -> ObjectRef[Any]:
        """The next item, which must be ready."""
        env = self._parts.env
        with env.lock:
            self.num_taken += 1
            if self.backpressure:
                self._acknowledge()
                # The generator may rest until it hears of this, and the user may be busy with the item for
                # long.
                env.reactor.flush()
            return ObjectRef(self.item_id(self.num_taken), self._parts.home)

    def await_next(self, timeout_s: float | None) -> None:
        """Waits until the next item is ready, or there is none. Raises GetTimeoutError, RaySystemError."""
        self._parts.getter.await_ready([self.next_id()], timeout_s)

    def when_next(self, callback: Callable[[], None]) -> bool:
        """True if await_next would return at once. Otherwise callback() runs once, under the lock, when it
        would. Raises SessionEnded."""
        with self._parts.env.lock:
            if self._parts.env.reactor.is_closed:
                raise SessionEnded
            object_id = self.expect(self.num_taken + 1)
            is_ready = self._parts.memory_store.when_ready(object_id, callback)
            if not is_ready:
                self._parts.long_waits.begins(callback, (object_id,))
                self._waiting[callback] = self._parts.task_id()
            return is_ready

    def forget_waiter(self, callback: Callable[[], None]) -> None:
        with self._parts.env.lock:
            self._waiting.pop(callback, None)
            self._parts.memory_store.forget_waiter(self.item_id(self.num_taken + 1), callback)
            self._parts.long_waits.ends(callback, self.is_ready or self.is_ended)

    def is_awaited_by(self, task_id: bytes) -> bool:
        """Whether the task waits in when_next. Lock held."""
        return task_id in self._waiting.values()

    def take_all(self) -> list[ObjectRef[Any]]:
        """Takes every item that was received and not taken. Lock held."""
        first, self.num_taken = self.num_taken + 1, self.num_received
        return [
            ObjectRef(self.item_id(number), self._parts.home)
            for number in range(first, self.num_received + 1)
        ]


class GeneratorStreams:
    """The streams of one process, by task. Lock held."""

    def __init__(self, parts: StreamParts) -> None:
        self._parts = parts
        self._streams: dict[bytes, Stream] = {}
        # The streams whose items are handed out together at the end.
        self._dynamic: dict[bytes, Stream] = {}
        # Of generators that run again, after their end.
        self._again: dict[bytes, Stream] = {}

    def open(self, task_id: bytes, spec: Any, end_id: bytes) -> list[Any]:
        """What `.remote()` returns for a generator. end_id: the task's one return, counted already."""
        parts = self._parts
        end: ObjectRef[Any] = ObjectRef(end_id, parts.home)
        if spec.num_returns == DYNAMIC_RETURNS:
            self._streams[task_id] = self._dynamic[task_id] = Stream(parts, task_id, 0)
            return [end]
        stream = Stream(parts, task_id, spec.generator_backpressure_num_objects)
        self._streams[task_id] = stream
        handle = handle_id(task_id)
        parts.references.add_owned(handle)
        return [ObjectRefGenerator(stream, end, ObjectRef(handle, parts.home))]

    def received(self, peer: Peer, task_id: bytes, part: Any) -> None:
        """A part of a task's answer has come. (CallTemplate.on_part)"""
        stream = self._again.get(task_id) or self._streams.get(task_id)
        if stream is not None and stream.follows(part):
            stream.add_part(peer, part)
            return
        # It is late, from an attempt that counts as lost, or those before it have never left their process.
        for number, item in enumerate(part.items, part.first_item):
            if item.in_plasma:
                self._parts.plasma.free(object_id_bytes(task_id, number + 1), [item.node_id])

    def reopen(self, task_id: bytes) -> None:
        """The generator has ended, and runs again for items that are lost."""
        stream = self._again[task_id] = Stream(self._parts, task_id, 0)
        # Everything was received and taken: what comes is given back, or thrown away.
        stream.num_received = stream.num_taken = _ALL
        stream.is_ended = True

    def rush(self, task_id: bytes) -> None:
        """An item of a generator that runs is lost, and another attempt follows this one."""
        stream = self._streams.get(task_id)
        if stream is not None:
            stream.rush()

    def begins_again(self, task_id: bytes) -> None:
        """The task has another attempt."""
        stream = self._again.get(task_id) or self._streams.get(task_id)
        if stream is not None:
            stream.begin_again()

    def has_passed(self, object_id: bytes) -> bool:
        """Whether the present attempt has sent this item already."""
        task_id, index = object_id[:_TASK_ID_BYTES], int.from_bytes(object_id[_TASK_ID_BYTES:], "little")
        stream = self._again.get(task_id) or self._streams.get(task_id)
        return stream is not None and 1 < index <= stream.num_passed + 1

    def is_rushed(self, task_id: bytes) -> bool:
        """Whether the present attempt throws its items away."""
        stream = self._streams.get(task_id)
        return stream is not None and stream.is_rushed

    def complete(self, task_id: bytes, end_id: bytes, reply: Any, is_cancelled: bool) -> None:
        """The generator has ended. If that was by an error of the user's, the error becomes the last item."""
        again = self._again.pop(task_id, None)
        if again is not None:
            if not reply.is_application_error:
                self._parts.lineage.yielded(task_id, again.num_passed)
            return
        stream = self._streams.get(task_id)
        if stream is None:
            return
        parts = self._parts
        error = reply.returns[0].value if reply.is_application_error else None
        if error is not None:
            stream.add_error(error.metadata, error.data, error.nested)
            if stream.is_dropped:
                parts.unhandled.note(end_id, error.data)
        if end_id in parts.references:
            if error is not None and is_cancelled:
                parts.memory_store.put_inline(end_id, error.metadata, error.data)
            elif task_id in self._dynamic:
                self._hand_out(stream, end_id)
            else:
                parts.memory_store.put_inline(end_id, serialization.PLAIN, _NONE)
        self._end(stream)

    def _hand_out(self, stream: Stream, end_id: bytes) -> None:
        """Makes a DynamicObjectRefGenerator of every item the value of the task."""
        parts = self._parts
        refs = stream.take_all()
        value = serialization.serialize(DynamicObjectRefGenerator(refs))
        parts.references.add_nested(end_id, [ref._id for ref in refs])
        parts.memory_store.put_inline(end_id, value.metadata, value.to_bytes())

    def fail(self, task_id: bytes, metadata: bytes, data: bytes) -> None:
        """The task failed: this error becomes the last item."""
        if self._again.pop(task_id, None) is not None:
            return
        stream = self._streams.get(task_id)
        if stream is not None:
            stream.add_error(metadata, data)
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        stream.end()
        if self._dynamic.pop(stream.task_id, None) is not None:
            stream.drop()
        if stream.is_dropped:
            del self._streams[stream.task_id]

    def get(self, task_id: bytes) -> Stream | None:
        """The one of this generator, as long as somebody takes its items or it runs."""
        return self._streams.get(task_id)

    def awaited_by(self, task_id: bytes) -> list[bytes]:
        """The next items for which this task waits in `async for`."""
        return [
            stream.item_id(stream.num_taken + 1)
            for stream in self._streams.values()
            if stream.is_awaited_by(task_id)
        ]

    def handle_ended(self, object_id: bytes) -> None:
        """A reference without a value has ended. It may have stood for a generator object."""
        stream = self._streams.get(object_id[:_TASK_ID_BYTES])
        if stream is not None and object_id[_TASK_ID_BYTES:] == _HANDLE:
            stream.drop()
            if stream.is_ended:
                del self._streams[stream.task_id]

    def expect(self, object_id: bytes) -> None:
        """Somebody will wait for an object of ours, which may be an item on its way."""
        stream = self._streams.get(object_id[:_TASK_ID_BYTES])
        index = int.from_bytes(object_id[_TASK_ID_BYTES:], "little")
        if stream is not None and index > 1 and not stream.is_dropped:
            stream.expect(index - 1)

    def close(self) -> None:
        """This process leaves. Wakes everybody who waits for an item."""
        for stream in self._streams.values():
            stream.wake()
