"""ObjectRef: a future and a name for a value that exists once in the cluster.

An instance counts as one local reference of this process; its finalizer may run at any allocation, perhaps
while this very thread holds the core worker's lock, so it only appends to a deque that the core worker
drains.

Its home is the core of this process, which counts it and reads it. The module is the lowest of the core
worker, for values have references inside: while a value is pickled, every reference met is noted in the
thread's list (`collect_into`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, Protocol, TypeVar

from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.ids import JobID, ObjectID, TaskID

T_co = TypeVar("T_co", covariant=True)
_NIL_ID = ObjectID.nil().binary()


class ReferenceHome(Protocol):
    """What references ask of the core of their process."""

    def reference_dropped(self, object_id: bytes) -> None:
        """An ObjectRef is gone. Any thread, any moment, perhaps under the lock; perhaps in a forked child."""
        ...

    def reference_arrived(self, object_id: bytes, owner: bytes) -> ObjectRef[Any]:
        """A reference was unpickled here; owner: the serialized Address of the process that owns the object."""
        ...

    def owner_address_of(self, ref: ObjectRef[Any]) -> bytes:
        """Raises RaySystemError for a reference of a session that is over."""
        ...

    def keep(self, ref: ObjectRef[Any]) -> None:
        """Until this process leaves: it was pickled where it cannot be counted."""
        ...

    def as_future(self, ref: ObjectRef[Any]) -> concurrent.futures.Future[Any]: ...


class SessionEnded(RaySystemError, asyncio.CancelledError):
    """For coroutines that wait for what a process which has left its cluster will not get. It cancels their
    asyncio task, so that nothing is printed where nobody asks for the task's result; who does gets this
    error."""

    def __init__(self) -> None:
        super().__init__("this process is disconnected from its cluster: call ray_mono.init() again")


def disconnected() -> RaySystemError:
    """What is raised where this process has left."""
    return RaySystemError("this process is disconnected from its cluster: call ray_mono.init() again")


def require_home(ref: ObjectRef[Any], home: ReferenceHome) -> None:
    """Raises RaySystemError for a reference of another session, in which other objects may have had the same
    ids."""
    if ref._home is not home:
        raise RaySystemError(f"{ref!r} belongs to a session that is over")


class _Thread(threading.local):
    collected: list[ObjectRef[Any]] | None = None


_thread = _Thread()
_find_home: Callable[[], ReferenceHome] | None = None


def found_by(find_home: Callable[[], ReferenceHome]) -> None:
    """Where references that are unpickled in this process find their home. find_home raises RaySystemError
    where there is none."""
    global _find_home
    _find_home = find_home


def collect_into(refs: list[ObjectRef[Any]] | None) -> list[ObjectRef[Any]] | None:
    """From now on references that this thread pickles are noted in `refs`. Returns what they were noted in
    before, to be given back."""
    before, _thread.collected = _thread.collected, refs
    return before


class ObjectRef(Generic[T_co]):
    """A reference to the value of a task, an actor call or a `put`. Made by ray_mono only."""

    __slots__ = ("__weakref__", "_home", "_id")

    def __init__(self, object_id: bytes, home: ReferenceHome) -> None:
        """Takes over one local reference that the caller has counted already."""
        self._id = object_id
        self._home = home

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
        ref._id, ref._home = _NIL_ID, None  # type: ignore[assignment]
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
        return self._home.as_future(self)

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
        if _thread.collected is not None:
            _thread.collected.append(self)
        elif self._home is not None:
            # Pickled outside of any value, by the user: what becomes of the bytes nobody can tell, so the
            # object stays.
            self._home.keep(self)
        return _arrived, (self._id, self._home.owner_address_of(self))

    def __copy__(self) -> ObjectRef[T_co]:
        return self

    def __deepcopy__(self, memo: Any) -> ObjectRef[T_co]:
        return self

    def __del__(self) -> None:
        home = getattr(self, "_home", None)
        if home is not None:
            home.reference_dropped(self._id)


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
    if _find_home is None:
        raise RaySystemError(
            "a reference was unpickled in a process that has no core worker: call ray_mono.init() first"
        )
    return _find_home().reference_arrived(object_id, owner_address)
