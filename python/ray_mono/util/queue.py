"""Queue: a first-in-first-out queue that tasks, actors and drivers share. It lives in an actor; a Queue
object is its handle.

Waiting happens in the actor, which is asynchronous: any number of callers may wait to put or get, each with
its own timeout. What is put is stored like an argument and moves to whoever gets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Iterable, Iterator
from typing import Any, cast

from ray_mono._private.argument_checks import plain, seconds
from ray_mono._private.remote_decorator import remote
from ray_mono._private.worker import get, kill, wait
from ray_mono.exceptions import RayTaskError

__tracebackhide__ = True


class Empty(queue.Empty):
    """There is nothing to get: at once, in time, or not that many."""


class Full(queue.Full):
    """There is no room to put: at once, in time, or not that much."""


class Queue:
    """A queue between processes. Travels in arguments and values; every copy is the same queue."""

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        """Makes the queue's actor.

        Args:
            maxsize: how many items it holds; 0 or less: any number.
            actor_options: of the actor, as for `.options()`, e.g. {"name": "work", "num_cpus": 0}.

        Raises TypeError for a maxsize that is no whole number, and what `.options()` raises.
        """
        maxsize = plain(maxsize)
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise TypeError(
                f"maxsize must be a whole number, got {maxsize!r} of type {type(maxsize).__name__}"
            )
        self.maxsize = maxsize
        actor_class: Any = remote(_QueueActor)
        self.actor: Any = actor_class.options(**(actor_options or {})).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items it holds; others may change that at any time."""
        return cast(int, get(self._actor().qsize.remote()))

    def qsize(self) -> int:
        """As size()."""
        return self.size()

    def empty(self) -> bool:
        """Whether it holds nothing."""
        return cast(bool, get(self._actor().empty.remote()))

    def full(self) -> bool:
        """Whether it holds maxsize items; never where maxsize is 0 or less."""
        return cast(bool, get(self._actor().full.remote()))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Adds an item at the end.

        Args:
            block: wait for room.
            timeout: in seconds; None waits as long as it takes. Without meaning where block is False.

        Raises Full; ValueError for a negative timeout; TypeError for an item that cannot be pickled;
        RayActorError where the queue's actor is dead.
        """
        if not block:
            self.put_nowait(item)
            return
        get(self._actor().put.remote(item, seconds(timeout)))

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As `put`, in an event loop."""
        actor = self._actor()
        if block:
            await actor.put.remote(item, seconds(timeout))
            return
        with _told_plainly():
            await actor.put_nowait.remote(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Takes the first item.

        Args:
            block: wait for an item.
            timeout: in seconds; None waits as long as it takes. Without meaning where block is False.

        Raises Empty; ValueError for a negative timeout; RayActorError where the queue's actor is dead.
        """
        if not block:
            return self.get_nowait()
        return get(self._actor().get.remote(seconds(timeout)))

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """As `get`, in an event loop."""
        actor = self._actor()
        if block:
            return await actor.get.remote(seconds(timeout))
        with _told_plainly():
            return await actor.get_nowait.remote()

    def put_nowait(self, item: Any) -> None:
        """Adds an item, or raises Full at once."""
        with _told_plainly():
            get(self._actor().put_nowait.remote(item))

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Adds all items, or, if they do not all fit, none and raises Full.

        Raises TypeError for what is not iterable.
        """
        if not isinstance(items, Iterable):
            raise TypeError(f"items must be iterable, got {items!r} of type {type(items).__name__}")
        get(self._actor().put_nowait_batch.remote(list(items)))

    def get_nowait(self) -> Any:
        """Takes the first item, or raises Empty at once."""
        with _told_plainly():
            return get(self._actor().get_nowait.remote())

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Takes the first num_items items, or, if there are fewer, none and raises Empty. Raises TypeError or
        ValueError for anything but a whole number of at least 0."""
        num_items = plain(num_items)
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError(
                f"num_items must be a whole number, got {num_items!r} of type {type(num_items).__name__}"
            )
        if num_items < 0:
            raise ValueError(f"num_items must be at least 0, got {num_items!r}")
        return cast("list[Any]", get(self._actor().get_nowait_batch.remote(num_items)))

    def shutdown(self, force: bool = False, grace_period_s: int = 5) -> None:
        """Ends the queue's actor, with all that it holds; this object cannot be used any more, other copies
        raise RayActorError.

        Args:
            force: at once; else the actor may finish the calls that it has, those that wait included.
            grace_period_s: for how many seconds; then it is ended at once all the same.

        Does nothing the second time.
        """
        actor, self.actor = self.actor, None
        if actor is None:
            return
        if not force:
            wait([actor.drain.remote()], timeout=grace_period_s)
        kill(actor, no_restart=True)

    def _actor(self) -> Any:
        if self.actor is None:
            raise RuntimeError("this queue was shut down: make a new one")
        return self.actor


@contextlib.contextmanager
def _told_plainly() -> Iterator[None]:
    """Full and Empty as such, as in Ray: that it was the actor who said it tells nobody anything."""
    try:
        yield
    except (Full, Empty) as error:
        plain = error.cause if isinstance(error, RayTaskError) else error
    else:
        return
    raise plain


class _QueueActor:
    """The queue itself. One event loop runs all of its methods, so that between awaits they are alone."""

    def __init__(self, maxsize: int) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)
        self._num_waiting = 0
        """Calls of put and get that have not ended."""
        self._nobody_waits = asyncio.Event()
        self._nobody_waits.set()

    async def qsize(self) -> int:
        return self._queue.qsize()

    async def empty(self) -> bool:
        return self._queue.empty()

    async def full(self) -> bool:
        return self._queue.full()

    async def put(self, item: Any, timeout_s: float | None = None) -> None:
        if timeout_s == 0:  # wait_for would not even try
            return await self.put_nowait(item)
        try:
            with self._waiting():
                await asyncio.wait_for(self._queue.put(item), timeout_s)
        except TimeoutError:
            raise Full(f"no room within {timeout_s!r} s: {self._held()}") from None

    async def get(self, timeout_s: float | None = None) -> Any:
        if timeout_s == 0:
            return await self.get_nowait()
        try:
            with self._waiting():
                return await asyncio.wait_for(self._queue.get(), timeout_s)
        except TimeoutError:
            raise Empty(f"no item within {timeout_s!r} s") from None

    async def put_nowait(self, item: Any) -> None:
        await self.put_nowait_batch([item])

    async def put_nowait_batch(self, items: list[Any]) -> None:
        if self._queue.maxsize > 0 and self._queue.qsize() + len(items) > self._queue.maxsize:
            raise Full(f"no room for {len(items)} more: {self._held()}")
        for item in items:
            self._queue.put_nowait(item)

    async def get_nowait(self) -> Any:
        return (await self.get_nowait_batch(1))[0]

    async def get_nowait_batch(self, num_items: int) -> list[Any]:
        if self._queue.qsize() < num_items:
            raise Empty(f"{num_items} asked for: {self._held()}")
        return [self._queue.get_nowait() for _ in range(num_items)]

    async def drain(self) -> None:
        """Returns when nobody waits to put or get."""
        await self._nobody_waits.wait()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self._num_waiting += 1
        self._nobody_waits.clear()
        try:
            yield
        finally:
            self._num_waiting -= 1
            if not self._num_waiting:
                self._nobody_waits.set()

    def _held(self) -> str:
        most = self._queue.maxsize if self._queue.maxsize > 0 else "any number"
        return f"the queue holds {self._queue.qsize()} items of at most {most}"
