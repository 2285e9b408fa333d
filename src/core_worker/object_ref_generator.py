"""What the caller of a generator holds. An ObjectRefGenerator hands out references to items while the
generator runs. A DynamicObjectRefGenerator holds all of them after its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar

from ray_mono.common.exceptions import GetTimeoutError
from ray_mono.common.short_tracebacks import shortened
from ray_mono.core_worker.object_ref import ObjectRef, ReferenceHome, SessionEnded, disconnected

T_co = TypeVar("T_co", covariant=True)
__tracebackhide__ = True


class ItemSource(Protocol):
    """Where a generator's references come from: generator_streams.Stream, or local mode's."""

    @property
    def is_ready(self) -> bool:
        """Whether `take` may be called."""
        ...

    @property
    def is_finished(self) -> bool: ...

    def next_id(self) -> bytes: ...

    def take(self) -> ObjectRef[Any]: ...

    def await_next(self, timeout_s: float | None) -> None: ...

    def when_next(self, callback: Callable[[], None]) -> bool: ...

    def forget_waiter(self, callback: Callable[[], None]) -> None: ...


class StreamingGeneratorStats(NamedTuple):
    """What `yield` gives to a generator that runs as a task. It is about the item that was yielded. In local
    mode `yield` gives None."""

    object_creation_dur_s: float
    """How long it took to make an object of the item."""


class ObjectRefGenerator(Generic[T_co]):
    """Iterates over the references to a generator's items, as the items are made; `async for` works, too.
    Only ray_mono makes it.

    An exception of the generator, or the loss of its worker, is the last item: `get` raises it. Items that
    were not taken are freed with this object. The generator itself then runs to its end, and what it yields
    is thrown away. Several threads must not use it at once.
    """

    __slots__ = ("__weakref__", "_generator_ref", "_handle", "_home", "_source")

    def __init__(self, source: ItemSource, end: ObjectRef[Any], handle: ObjectRef[Any] | None) -> None:
        """end: the object that is ready when the task ends. handle: when this reference ends, the items that
        were not taken are freed."""
        self._source = source
        self._generator_ref = end
        self._handle = handle
        self._home: ReferenceHome = end._home

    @property
    def _id(self) -> bytes:
        """The id of the next item, for which `wait` waits."""
        return self._source.next_id()

    def __iter__(self) -> Iterator[ObjectRef[T_co]]:
        return self

    def __next__(self) -> ObjectRef[T_co]:
        """The reference to the next item, once that is ready. Raises StopIteration after the last."""
        if self._source.is_ready:
            return self._source.take()
        try:
            return self._next_sync()
        except BaseException as error:
            raise shortened(error)  # noqa: B904

    def _next_sync(self, timeout_s: float | None = None) -> ObjectRef[T_co]:
        """As next(), but returns a nil reference if the item is not ready within timeout_s seconds. None:
        waits as long as it takes."""
        try:
            if not self._source.is_ready:
                self._source.await_next(timeout_s)
        except GetTimeoutError:
            return ObjectRef.nil()
        if not self._source.is_ready:
            if not self._source.is_finished:
                # The end of the session woke it.
                raise disconnected()
            raise StopIteration
        return self._source.take()

    def __aiter__(self) -> ObjectRefGenerator[T_co]:
        return self

    async def __anext__(self) -> ObjectRef[T_co]:
        return await self._next_async()

    async def _next_async(self, timeout_s: float | None = None) -> ObjectRef[T_co]:
        """As _next_sync, without blocking the event loop. Raises StopAsyncIteration after the last item."""
        if not self._source.is_ready and not await await_next(self._source, timeout_s):
            return ObjectRef.nil()
        if not self._source.is_ready:
            raise StopAsyncIteration
        return self._source.take()

    def next_ready(self) -> bool:
        """Whether next() would return at once. False after the last item: see is_finished()."""
        return self._source.is_ready

    def is_finished(self) -> bool:
        """Whether the task has ended and every item was taken."""
        return self._source.is_finished

    _stream_exhausted = is_finished
    """The name by which Ray's libraries ask."""

    def completed(self) -> ObjectRef[Any]:
        """A reference that is ready when the task ends. Its value is None, or the error if the generator did
        not end by itself."""
        return self._generator_ref

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an ObjectRefGenerator cannot be pickled, passed to a task or returned from one: pass the"
            " references that it yields, or make the generator with num_returns='dynamic', whose one"
            " reference can be passed on"
        )

    def send(self, value: Any) -> NoReturn:
        raise NotImplementedError(
            "a generator that runs elsewhere takes no values: gen.send is not supported"
        )

    def throw(self, value: Any) -> NoReturn:
        raise NotImplementedError(
            "a generator that runs elsewhere takes no exceptions: gen.throw is not supported"
        )

    def close(self) -> NoReturn:
        raise NotImplementedError("gen.close is not supported: delete the generator, or cancel its task")

    async def asend(self, value: Any) -> NoReturn:
        self.send(value)

    async def athrow(self, value: Any) -> NoReturn:
        self.throw(value)

    async def aclose(self) -> NoReturn:
        self.close()


class DynamicObjectRefGenerator(Generic[T_co]):
    """The value of a task with num_returns="dynamic": references to all of its items. It can be passed on. It
    hands out each reference once."""

    def __init__(self, refs: Iterable[ObjectRef[T_co]]) -> None:
        self._refs = deque(refs)

    def __iter__(self) -> Iterator[ObjectRef[T_co]]:
        while self._refs:
            yield self._refs.popleft()

    def __len__(self) -> int:
        """How many references are left."""
        return len(self._refs)


async def await_next(source: ItemSource, timeout_s: float | None) -> bool:
    """Waits without blocking the event loop. False where the next item, or the end, has not come in time.
    Raises SessionEnded."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()

    def wake() -> None:
        # The loop may be closed by then.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ready.set)

    if source.when_next(wake):
        return True
    try:
        await asyncio.wait_for(ready.wait(), timeout_s)
    except TimeoutError:
        return False
    finally:
        source.forget_waiter(wake)
    if not source.is_ready and not source.is_finished:
        # The end of the session woke it.
        raise SessionEnded
    return True
