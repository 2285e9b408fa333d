"""ObjectRef: a future and a name for a value that exists once in the cluster.

An instance counts as one local reference of this process; its finalizer may run at any allocation, perhaps while this very thread
holds the core worker's lock, so it only appends to a deque that the core worker drains.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ray_mono.common.ids import JobID, ObjectID, TaskID
from ray_mono.core_worker.process import current
from ray_mono.core_worker.values import serialization

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker

T_co = TypeVar("T_co", covariant=True)
_NIL_ID = ObjectID.nil().binary()


class ObjectRef(Generic[T_co]):
    """A reference to the value of a task, an actor call or a `put`. Made by ray_mono only."""

    __slots__ = ("__weakref__", "_core", "_id")

    def __init__(self, object_id: bytes, core: CoreWorker) -> None:
        """Takes over one local reference that the caller has counted already."""
        self._id = object_id
        self._core = core

    def binary(self) -> bytes:
        """The 28 bytes of the id."""
        return self._id

    def hex(self) -> str:
        return self._id.hex()

    @classmethod
    def size(cls) -> int:
        """Of the id, in bytes."""
        return ObjectID.SIZE

    @classmethod
    def nil(cls) -> ObjectRef[Any]:
        """The reference to nothing."""
        ref: ObjectRef[Any] = cls.__new__(cls)
        ref._id, ref._core = _NIL_ID, None  # type: ignore[assignment]
        return ref

    def is_nil(self) -> bool:
        return self._id == _NIL_ID

    def task_id(self) -> TaskID:
        """Of the task that makes the value."""
        return TaskID(self._id[:24])

    def job_id(self) -> JobID:
        return JobID(self._id[20:24])

    def future(self) -> concurrent.futures.Future[T_co]:
        """A standard future that gets the value or the error: at once, where that is here."""
        return self._core.as_future(self)

    def as_future(self) -> asyncio.Future[T_co]:
        """A future of the running event loop. Raises RuntimeError where none runs."""
        return _on_loop(self.future())

    def __await__(self) -> Generator[Any, None, T_co]:
        """Goes on without a turn of the loop where the value is here, as with a future that is done."""
        future = self.future()
        return (
            _result(future) if future.done() and future.exception() is None else _on_loop(future).__await__()
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"ObjectRef({self._id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        if not serialization.note_nested(self) and self._core is not None:
            # Pickled outside of any value, by the user: what becomes of the bytes nobody can tell, so the object stays.
            self._core.keep(self)
        return _arrived, (self._id, self._core.owner_address_of(self))

    def __copy__(self) -> ObjectRef[T_co]:
        return self

    def __deepcopy__(self, memo: Any) -> ObjectRef[T_co]:
        return self

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None:
            core.reference_dropped(self._id)


def _on_loop(future: concurrent.futures.Future[T_co]) -> asyncio.Future[T_co]:
    loop = asyncio.get_running_loop()
    if not future.done():
        return asyncio.wrap_future(future, loop=loop)
    done: asyncio.Future[T_co] = loop.create_future()
    error = future.exception()
    if error is None:
        done.set_result(future.result())
    else:
        # Raised by the interpreter: no frame of a future's stands in its traceback.
        done.set_exception(error)
    return done


def _result(future: concurrent.futures.Future[T_co]) -> Generator[Any, None, T_co]:
    return future.result()
    yield


def _arrived(object_id: bytes, owner_address: bytes) -> ObjectRef[Any]:
    """Unpickles a reference: the process becomes a borrower of it, or meets one of its own again."""
    return current.require().reference_arrived(object_id, owner_address)
