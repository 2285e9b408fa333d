"""ObjectRef: a future and a name for a value that exists once in the cluster.

An instance counts as one local reference of this process. Its finalizer may run at any allocation, perhaps
while this very thread holds the core worker's lock. So it only appends to a deque, which the core worker
drains.

The home of an instance is the core of this process, which counts and reads it. This module is the lowest of
the core worker, since values have references inside. While a value is pickled, each reference in it is noted
in a list of the thread (`collect_into`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
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
        """A reference was unpickled here. owner: the serialized Address of the process that owns the
        object."""
        ...

    def owner_address_of(self, ref: ObjectRef[Any]) -> bytes:
        """Raises RaySystemError for a reference of a session that is over."""
        ...

    def keep(self, ref: ObjectRef[Any]) -> None:
        """Keeps the object until this process leaves: the reference was pickled where it cannot be
        counted."""
        ...

    def as_future(self, ref: ObjectRef[Any]) -> concurrent.futures.Future[Any]: ...


class SessionEnded(RaySystemError, asyncio.CancelledError):
    """For coroutines that wait when this process leaves its cluster. It cancels their asyncio task. So
    nothing is printed where nobody asks for the result of that task; whoever asks gets this error."""

    def __init__(self) -> None:
        super().__init__("this process is disconnected from its cluster: call ray_mono.init() again")


def disconnected() -> RaySystemError:
    """The error of whatever needs the cluster when this process has left it."""
    return RaySystemError("this process is disconnected from its cluster: call ray_mono.init() again")


def require_home(ref: ObjectRef[Any], home: ReferenceHome) -> None:
    """Raises RaySystemError for a reference of another session, in which other objects may have had the same
    ids, and ValueError for the reference to nothing."""
    if ref._home is not home:
        if ref.is_nil():
            raise _nothing()
        raise RaySystemError(f"{ref!r} belongs to a session that is over")


def _nothing() -> ValueError:
    return ValueError("ObjectRef.nil() refers to nothing, so it has no value and no owner")


class _Thread(threading.local):
    collected: list[ObjectRef[Any]] | None = None


_thread = _Thread()
_find_home: Callable[[], ReferenceHome] | None = None


def found_by(find_home: Callable[[], ReferenceHome]) -> None:
    """References that are unpickled in this process find their home by find_home(). It raises RaySystemError
    if there is none."""
    global _find_home
    _find_home = find_home


def collect_into(refs: list[ObjectRef[Any]] | None) -> list[ObjectRef[Any]] | None:
    """From now on the references that this thread pickles are noted in `refs`. Returns the list, or None,
    that was in use before, for the caller to restore."""
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
        """How many bytes an id has."""
        return ObjectID.SIZE

    @classmethod
    def nil(cls) -> ObjectRef[Any]:
        """The reference to nothing: it has no value, and nobody counts it."""
        ref: ObjectRef[Any] = cls.__new__(cls)
        ref._id, ref._home = _NIL_ID, None  # type: ignore[assignment]
        return ref

    def is_nil(self) -> bool:
        return self._id == _NIL_ID

    def task_id(self) -> TaskID:
        """The id of the task that makes the value, or that put it."""
        return TaskID(self._id[: TaskID.SIZE])

    def job_id(self) -> JobID:
        return self.task_id().job_id()

    def future(self) -> concurrent.futures.Future[T_co]:
        """A future of concurrent.futures that gets the value or the error, at once if that is here. Raises
        RaySystemError for a reference of a session that is over, and ValueError for the reference to
        nothing."""
        if self._home is None:
            raise _nothing()
        return self._home.as_future(self)

    def as_future(self) -> asyncio.Future[T_co]:
        """A future of the running event loop, as `await` uses it. Raises RuntimeError if no loop runs, and
        what `future` raises."""
        return _on_loop(self.future())

    def __await__(self) -> Generator[Any, None, T_co]:
        """If the value is here, the coroutine goes on without a turn of the loop, as with a future that is
        done."""
        future = self.future()
        if not future.done():
            return asyncio.wrap_future(future, loop=asyncio.get_running_loop()).__await__()
        return _result(future) if future.exception() is None else _on_loop(future).__await__()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"ObjectRef({self._id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._home is None:
            raise _nothing()
        if _thread.collected is not None:
            _thread.collected.append(self)
        else:
            # The user pickled it by himself. Nobody can tell what becomes of the bytes, so the object stays.
            self._home.keep(self)
        return _arrived, (self._id, self._home.owner_address_of(self))

    def __copy__(self) -> ObjectRef[T_co]:
        return self

    def __deepcopy__(self, memo: Any) -> ObjectRef[T_co]:
        return self

    def __del__(self) -> None:
        try:
            home = self._home
        except AttributeError:
            return  # it was never made
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
        # The interpreter raises it then, so its traceback has no frame of a future's code.
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


def is_awaited(value: Any) -> bool:
    """Whether a call of an async actor waits for what its method returned: a coroutine, or the like. A
    reference is what it returned."""
    return inspect.isawaitable(value) and not isinstance(value, ObjectRef)
