"""Identifiers, with Ray's sizes and nesting: job 4 bytes, actor 16, task 24, object 28, node and worker 28.

    actor  = 12 bytes of its own + job
    task   =  8 bytes of its own + actor   (a normal task carries the nil actor of its job)
    object = task that made it + 4 bytes index, little-endian

A task id is derived from its job, the attempt of its parent task and the parent's counter, never drawn.
Running a task again makes the same returns; what it makes besides (puts, children, actors) is owned by
whoever runs it, and so has ids of the attempt. Returns have the indices 1, 2, …; `put`s start at
PUT_INDEX_BASE; they never overlap. Inside the services ids are these classes; on the hot path of the core
worker they are the raw bytes.
"""

from __future__ import annotations

import hashlib
import random
from typing import ClassVar, TypeVar

PUT_INDEX_BASE = 1 << 31
SEED_MASK = (1 << 64) - 1
_NO_ACTOR = b"\xff" * 12
_CREATION = b"\xff" * 8
"""Begins the ids of drivers' tasks and of actors' creations."""
SPREAD = 0x9E3779B97F4A7C15  # 2**64 / golden ratio

_Self = TypeVar("_Self", bound="BaseID")


class BaseID:
    """An immutable identifier of SIZE bytes. Equal only to an id of its own kind."""

    SIZE: ClassVar[int] = 0
    __slots__ = ("_bytes",)

    def __init__(self, id_bytes: bytes) -> None:
        if not isinstance(id_bytes, bytes) or len(id_bytes) != self.SIZE:
            raise ValueError(f"{type(self).__name__} takes {self.SIZE} bytes, got {id_bytes!r}")
        self._bytes = id_bytes

    @classmethod
    def nil(cls: type[_Self]) -> _Self:
        return cls(b"\xff" * cls.SIZE)

    @classmethod
    def from_random(cls: type[_Self], rng: random.Random) -> _Self:
        return cls(rng.getrandbits(8 * cls.SIZE).to_bytes(cls.SIZE, "little"))

    @classmethod
    def from_hex(cls: type[_Self], hex_id: str) -> _Self:
        return cls(bytes.fromhex(hex_id))

    @classmethod
    def from_binary(cls: type[_Self], id_bytes: bytes) -> _Self:
        return cls(id_bytes)

    @classmethod
    def size(cls) -> int:
        """In bytes."""
        return cls.SIZE

    def binary(self) -> bytes:
        return self._bytes

    def hex(self) -> str:
        return self._bytes.hex()

    def is_nil(self) -> bool:
        return self._bytes == b"\xff" * self.SIZE

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._bytes == other._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __lt__(self: _Self, other: _Self) -> bool:
        return self._bytes < other._bytes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._bytes.hex()})"

    def __reduce__(self) -> tuple[type[BaseID], tuple[bytes]]:
        return type(self), (self._bytes,)


class UniqueID(BaseID):
    """Of something that has no kind of its own."""

    SIZE = 28
    __slots__ = ()


class ActorClassID(UniqueID):
    __slots__ = ()


class NodeID(UniqueID):
    __slots__ = ()


class WorkerID(UniqueID):
    __slots__ = ()


class ClusterID(BaseID):
    SIZE = 28
    __slots__ = ()


class FunctionID(UniqueID):
    __slots__ = ()


class PlacementGroupID(BaseID):
    SIZE = 18
    __slots__ = ()

    @classmethod
    def for_job(cls, job_id: bytes, rng: random.Random) -> PlacementGroupID:
        """A new one, which ends with the id of the job that makes the group."""
        size = cls.SIZE - JobID.SIZE
        return cls(rng.getrandbits(8 * size).to_bytes(size, "little") + job_id)


class JobID(BaseID):
    SIZE = 4
    __slots__ = ()

    @classmethod
    def from_int(cls, value: int) -> JobID:
        """Job number `value`, 1 for the cluster's first driver; little-endian as in Ray, which prints
        01000000."""
        return cls(value.to_bytes(cls.SIZE, "little"))

    def int(self) -> int:
        return int.from_bytes(self._bytes, "little")


class ActorID(BaseID):
    SIZE = 16
    __slots__ = ()

    @classmethod
    def of(cls, job_id: bytes, parent_task_id: bytes, counter: int) -> ActorID:
        digest = hashlib.blake2b(
            b"actor" + parent_task_id + counter.to_bytes(8, "little"), digest_size=12
        ).digest()
        return cls(digest + job_id)

    @property
    def job_id(self) -> JobID:
        return JobID(self._bytes[-JobID.SIZE :])


class TaskID(BaseID):
    SIZE = 24
    __slots__ = ()

    @classmethod
    def for_driver(cls, job_id: bytes) -> TaskID:
        return cls(b"\xff" * 8 + nil_actor_of(job_id))

    @classmethod
    def for_actor_creation(cls, actor_id: bytes) -> TaskID:
        return cls(_CREATION + actor_id)

    def actor_id(self) -> ActorID:
        return ActorID(self._bytes[8:])

    def job_id(self) -> JobID:
        return JobID(self._bytes[-JobID.SIZE :])


class ObjectID(BaseID):
    SIZE = 28
    __slots__ = ()

    @property
    def task_id(self) -> TaskID:
        return TaskID(self._bytes[: TaskID.SIZE])

    @property
    def index(self) -> int:
        return int.from_bytes(self._bytes[TaskID.SIZE :], "little")


def nil_actor_of(job_id: bytes) -> bytes:
    """The actor id that normal tasks of a job carry."""
    return _NO_ACTOR + job_id


def is_normal_task(task_id: bytes) -> bool:
    """Whether it is a task's own id, and not that of an actor's call or creation."""
    return task_id[8:20] == _NO_ACTOR


def stands_for_actor(object_id: bytes) -> bool:
    """Whether it is the object of an actor's creation."""
    return object_id.startswith(_CREATION) and not is_normal_task(object_id)


def task_seed(task_id: bytes) -> int:
    """What the ids of a task's children are derived from: 64 bits of its hash."""
    return int.from_bytes(hashlib.blake2b(task_id, digest_size=8).digest(), "little")


def of_attempt(task_id: bytes, attempt: int) -> bytes:
    """What the ids of a task's puts, children and actors are derived from: each attempt is a process of its
    own, which owns them."""
    if not attempt:
        return task_id
    own = hashlib.blake2b(task_id + attempt.to_bytes(4, "little"), digest_size=8).digest()
    return own + task_id[8:]


def child_task_id(seed: int, counter: int, actor_id: bytes) -> bytes:
    """The id of the `counter`-th task that a task submitted. `actor_id` is the actor called, or
    nil_actor_of(job).

    The counter is spread over the 64 bits by an odd multiplier, so that a task's children never collide with
    each other, and with those of another task only as random numbers would; a hash per task would cost four
    times as much.
    """
    return ((seed + counter * SPREAD) & SEED_MASK).to_bytes(8, "little") + actor_id


INDEX_BYTES = 4
"""Of an object's id: which of its task's objects it is. The rest is the task's id."""


def object_id_bytes(task_id: bytes, index: int) -> bytes:
    """The id of a task's `index`-th object: returns from 1, puts from PUT_INDEX_BASE."""
    return task_id + index.to_bytes(INDEX_BYTES, "little")


def object_name(object_id: bytes) -> str:
    """For people: short, and another one for each object, as the first digits of ids are not."""
    task_id, index = object_id[:-INDEX_BYTES], int.from_bytes(object_id[-INDEX_BYTES:], "little")
    if stands_for_actor(object_id):
        maker = f"the constructor of actor {task_id[TaskID.SIZE - ActorID.SIZE :].hex()[:8]}"
    elif task_id.startswith(_CREATION):
        maker = f"the driver of job {task_id[-JobID.SIZE :].hex()}"
    else:
        maker = f"task {task_id.hex()[:8]}…"
    if index > PUT_INDEX_BASE:
        return f"object {index - PUT_INDEX_BASE} put by {maker}"
    if task_id.startswith(_CREATION):
        return f"the object of {maker}"
    return f"object {task_id.hex()[:8]}…" + (f" (number {index})" if index > 1 else "")
