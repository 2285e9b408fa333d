"""What it takes to make lost objects again: the tasks that made them, kept after their end.

A finished task is kept while one of its returns or items lies in a store and is referenced, or while another
kept task has one as an argument. Small values lie with their owner, and are not lost without it: most tasks
return such, and nothing is kept of them.

A kept task keeps of each of its arguments what it needs:

    an object that can be made again    its task is kept (`arguments`); the value goes as if nobody kept it
    any other: a small value, a put,    the value stays referenced (`held`)
    one that is borrowed
    what stands for an actor            nothing: an actor ends with its handles

Kept tasks have a bound, max_lineage_bytes: their messages, and the small values that are held for them. When
there are more, the oldest are evicted until half of that is left, as in Ray. For an evicted task, and for one
that has no retries left, the reason stays as long as its objects, for whoever asks.

A machine without I/O, called under the core worker's lock. It does not know what a task is, or who runs it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from ray_mono.common.exceptions import (
    ObjectReconstructionFailedError,
    ObjectReconstructionFailedLineageEvictedError,
    ObjectReconstructionFailedMaxAttemptsExceededError,
    RayError,
    StreamingGeneratorReplayInconsistentError,
)
from ray_mono.common.ids import TaskID, stands_for_actor
from ray_mono.common.our_bug import check
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.values import serialization

_TASK_ID_BYTES = TaskID.SIZE


class WhyNot(enum.Enum):
    """Why an object cannot be made again: Ray's name, and a sentence."""

    PUT = ("OBJECT_UNRECONSTRUCTABLE_PUT", "it was made by put(), and no task returns it")
    RETRIES_DISABLED = (
        "OBJECT_UNRECONSTRUCTABLE_RETRIES_DISABLED",
        "its task may not run again: it has max_retries=0, or, as a call of an actor, max_task_retries=0",
    )
    MAX_ATTEMPTS = (
        "OBJECT_UNRECONSTRUCTABLE_MAX_ATTEMPTS_EXCEEDED",
        "its task has used all its retries (max_retries, max_task_retries)",
    )
    LINEAGE_EVICTED = (
        "OBJECT_UNRECONSTRUCTABLE_LINEAGE_EVICTED",
        "its task had been thrown away, since finished tasks took more than max_lineage_bytes",
    )
    CANCELLED = ("OBJECT_UNRECONSTRUCTABLE_TASK_CANCELLED", "its task was cancelled")
    NOT_MADE_AGAIN = (None, "its task ran again, and did not make it")
    FEWER_ITEMS = (None, "its generator ran again, and yielded fewer values than before")

    def error(self, object_id: bytes) -> RayError:
        """For whoever wants the object."""
        reason, sentence = self.value
        if self is WhyNot.FEWER_ITEMS:
            task_id, index = object_id[:_TASK_ID_BYTES], object_id[_TASK_ID_BYTES:]
            number = int.from_bytes(index, "little") - 1
            return StreamingGeneratorReplayInconsistentError(
                f"value {number} of the generator task {task_id.hex()} was lost, and {sentence}. Where its"
                " values differ from run to run, lost ones cannot be made again"
            )
        kind = _KINDS.get(self, ObjectReconstructionFailedError)
        return kind(object_id.hex(), reason, sentence)

    def serialized(self, object_id: bytes) -> tuple[bytes, bytes]:
        """That error: metadata and data."""
        error = serialization.serialize_error(self.error(object_id))
        return error.metadata, error.to_bytes()


class Failure(NamedTuple):
    """The error with which a task has failed that had retries left: its actor is dead, say."""

    metadata: bytes
    data: bytes

    def serialized(self, object_id: bytes) -> tuple[bytes, bytes]:
        return self.metadata, self.data


Reason = WhyNot | Failure
"""Why an object is not made again."""

_KINDS = {
    WhyNot.MAX_ATTEMPTS: ObjectReconstructionFailedMaxAttemptsExceededError,
    WhyNot.LINEAGE_EVICTED: ObjectReconstructionFailedLineageEvictedError,
}


class KeptTask(Protocol):
    """A task, as far as this part knows it."""

    task_id: bytes
    arg_ids: Sequence[bytes]
    retries_left: int
    number: int

    @property
    def attempt(self) -> int: ...

    @property
    def size_bytes(self) -> int:
        """What keeping it costs."""
        ...


def why_no_retry(task: KeptTask) -> WhyNot:
    """Of a task that has no retries left."""
    return WhyNot.MAX_ATTEMPTS if task.attempt else WhyNot.RETRIES_DISABLED


Task = TypeVar("Task", bound=KeptTask)


class Record(Generic[Task]):
    """A task that has objects in stores."""

    __slots__ = (
        "arguments",
        "held",
        "num_yielded",
        "size_bytes",
        "stored",
        "task",
        "task_id",
        "users",
        "why_not",
    )

    def __init__(self, task_id: bytes) -> None:
        self.task_id = task_id
        self.task: Task | None = None
        """It has finished, and can run again, or does so."""
        self.why_not: Reason | None = None
        """It will not run again."""
        self.num_yielded: int | None = None
        """Of a generator that ran again: how many values. It would not make those behind them."""
        self.stored: set[bytes] = set()
        """Its objects that lie, or lay, in stores, and are referenced."""
        self.users: dict[bytes, int] = {}
        """Of its objects, those that kept tasks have as arguments, and do not hold: the ids of the object and
        of the task, and how often."""
        self.arguments: list[bytes] = []
        """Those of its task that are not held."""
        self.held: list[bytes] = []
        """Those of its task that are: each is counted as `submitted`."""
        self.size_bytes = 0
        """Counted for the bound. 0 while the task runs."""


class Lineage(Generic[Task]):
    """The kept tasks of one process, by task id."""

    def __init__(
        self,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        bytes_max: int,
    ) -> None:
        self._references = references
        self._memory_store = memory_store
        self._bytes_max = bytes_max
        self._records: dict[bytes, Record[Task]] = {}
        self.kept_bytes = 0
        # Records that may have ended. What one keeps may end others, and a chain of them may be longer than
        # the stack is deep.
        self._ending: deque[Record[Task]] = deque()
        self._is_ending = False

    def describe(self) -> dict[str, int]:
        """For DumpState."""
        return {"tasks_kept": len(self._records), "bytes_kept": self.kept_bytes}

    def get(self, task_id: bytes) -> Record[Task] | None:
        return self._records.get(task_id)

    def of(self, object_id: bytes) -> Record[Task] | None:
        """Of the task that made this object."""
        return self._records.get(object_id[:_TASK_ID_BYTES])

    def made_of(
        self, object_id: bytes, is_lost: Callable[[bytes], bool], seen: set[bytes]
    ) -> Iterator[bytes]:
        """This object's task runs again, and keeps nothing of what is out of scope. What is lost as well, and
        would need that, however indirectly: it can be made from the same run.

        is_lost(object): of one in stores. seen: tasks of which this was asked before, in the same round."""
        records = [self.of(object_id)]
        while records:
            record = records.pop()
            if record is None or record.task_id in seen:
                continue
            seen.add(record.task_id)
            for use in list(record.users):
                user = self._records.get(use[-_TASK_ID_BYTES:])
                if user is None or use[:-_TASK_ID_BYTES] in record.stored:
                    continue
                lost = list(filter(is_lost, list(user.stored)))
                yield from lost
                if lost or not user.stored:
                    records.append(user)

    # ---- objects in stores

    def stored(self, object_id: bytes) -> None:
        """An object of ours, of a task, lies in a store now."""
        task_id = object_id[:_TASK_ID_BYTES]
        record = self._records.get(task_id)
        if record is None:
            record = self._records[task_id] = Record(task_id)
        record.stored.add(object_id)

    def not_stored(self, object_id: bytes) -> None:
        """An object of ours is out of scope, or does not lie in stores any more."""
        record = self._records.get(object_id[:_TASK_ID_BYTES])
        if record is not None and object_id in record.stored:
            record.stored.discard(object_id)
            self._end_later(record)

    # ---- tasks

    def finished(self, task: Task, is_cancelled: bool = False) -> bool:
        """The task was answered. Returns whether it is kept: then what it holds is settled. is_cancelled: too
        late to keep it from that."""
        record = self._records.get(task.task_id)
        if record is None:
            return False
        if not task.retries_left:
            self.failed(task.task_id, WhyNot.CANCELLED if is_cancelled else why_no_retry(task))
            return False
        if not (record.stored or record.users):
            self._forget_task(record)
            self._end_later(record)
            return False
        record.task = task
        before, record.arguments = record.arguments, []
        self._keep_arguments(record, task.arg_ids)
        self._let_go_of(record, before)
        record.size_bytes = task.size_bytes + self._held_bytes(record.held)
        self.kept_bytes += record.size_bytes
        if self.kept_bytes > self._bytes_max:
            self._evict()
        return True

    def yielded(self, task_id: bytes, num_values: int) -> None:
        """The generator has run again, to its end."""
        record = self._records.get(task_id)
        if record is not None:
            record.num_yielded = num_values

    def failed(self, task_id: bytes, why_not: Reason) -> None:
        """The task will not run again."""
        record = self._records.get(task_id)
        if record is not None:
            record.why_not = why_not
            self._forget_task(record)
            self._end_later(record)

    def runs_again(self, record: Record[Task], arg_ids: Sequence[bytes]) -> None:
        """Its task does: `finished` or `failed` is called in the end. Until then the task holds these, which
        are all of its arguments that are needed."""
        self.kept_bytes -= record.size_bytes
        record.size_bytes = 0
        for object_id in arg_ids:
            self._references.revive(object_id)
        self._references.add_submitted(arg_ids)
        held, record.held = record.held, []
        self._references.remove_submitted(held)

    def _keep_arguments(self, record: Record[Task], arg_ids: Sequence[bytes]) -> None:
        for object_id in arg_ids:
            maker = self._records.get(object_id[:_TASK_ID_BYTES])
            if maker is not None and maker.why_not is None and object_id in maker.stored:
                record.arguments.append(object_id)
                user = object_id + record.task_id
                maker.users[user] = maker.users.get(user, 0) + 1
            elif not stands_for_actor(object_id):
                record.held.append(object_id)
        if len(record.held) < len(arg_ids):
            held = set(record.held)
            self._references.remove_submitted([each for each in arg_ids if each not in held])

    def _held_bytes(self, object_ids: Sequence[bytes]) -> int:
        """What lies in memory for them."""
        entries = map(self._memory_store.get, object_ids)
        return sum(len(entry.data) for entry in entries if entry is not None and entry.data is not None)

    def _evict(self) -> None:
        kept = [record for record in self._records.values() if record.size_bytes]
        kept.sort(key=lambda record: record.task.number if record.task is not None else 0)
        for record in kept:
            if self.kept_bytes <= self._bytes_max // 2:
                break
            if record.size_bytes:  # it may have ended with one before it
                record.why_not = WhyNot.LINEAGE_EVICTED
                self._forget_task(record)

    # ---- ends

    def _end_later(self, record: Record[Task]) -> None:
        self._ending.append(record)
        if self._is_ending:
            return
        self._is_ending = True
        try:
            while self._ending:
                self._end(self._ending.popleft())
        finally:
            self._is_ending = False

    def _end(self, record: Record[Task]) -> None:
        """Forgets it, unless it is needed. While its task is under way, whoever answers for that decides."""
        if record.stored or record.users or self._records.get(record.task_id) is not record:
            return
        if record.task is not None and not record.size_bytes:
            return
        del self._records[record.task_id]
        self._forget_task(record)

    def _forget_task(self, record: Record[Task]) -> None:
        self.kept_bytes -= record.size_bytes
        record.task, record.size_bytes = None, 0
        arguments, record.arguments = record.arguments, []
        self._let_go_of(record, arguments)
        held, record.held = record.held, []
        if held:
            self._references.remove_submitted(held)

    def _let_go_of(self, record: Record[Task], arguments: Sequence[bytes]) -> None:
        for object_id in arguments:
            maker = self._records.get(object_id[:_TASK_ID_BYTES])
            if maker is not None:
                user = object_id + record.task_id
                maker.users[user] -= 1
                if not maker.users[user]:
                    del maker.users[user]
                self._end_later(maker)

    def check_invariants(self) -> None:
        """Recounts. Raises InternalError."""
        users: dict[bytes, dict[bytes, int]] = {}
        for record in self._records.values():
            for object_id in record.arguments:
                of_maker = users.setdefault(object_id[:_TASK_ID_BYTES], {})
                user = object_id + record.task_id
                of_maker[user] = of_maker.get(user, 0) + 1
        kept_bytes = sum(record.size_bytes for record in self._records.values())
        check(kept_bytes == self.kept_bytes, f"{kept_bytes} bytes are kept, {self.kept_bytes} counted")
        check(kept_bytes <= self._bytes_max, f"{kept_bytes} bytes are kept, {self._bytes_max} allowed")
        for task_id, record in self._records.items():
            story = f"what is kept of task {task_id.hex()}"
            found = users.get(task_id, {})
            check(record.users == found, f"{story} has {len(record.users)} users, {len(found)} found")
            runs = record.task is not None and not record.size_bytes
            check(runs or bool(record.stored) or bool(found), f"{story} is needed by nobody")
            check(record.task is None or record.why_not is None, f"{story} is kept, and said to be gone")
