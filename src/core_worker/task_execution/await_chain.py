"""What a coroutine of an async actor waits for, as asyncio's own objects show it. It only looks, and from
another thread: what moves on meanwhile is seen as it was, or as it is.

    its asyncio task ──waits for──► a future ──of another task, of gather()──► what those wait for
                                            ──of an ObjectRef──► the object
    its coroutine ──awaits──► coroutines of asyncio: sleep, wait, wait_for, Lock.acquire, a TaskGroup's end
                  ──awaits──► a queue, a semaphore, a condition, a barrier: whoever has it may do something

What is none of these (a socket, an executor) is not known, and may do what it does any time. An event is not
told of: those that serve for ever wait for one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import CoroutineType, FrameType
from typing import Any

from ray_mono.core_worker.object_ref_generator import await_next

DEPTH_MAX = 50
"""Of tasks that wait for tasks."""
LINKS = frozenset({"_chain_future.<locals>._call_check_cancel", "shield.<locals>._outer_done_callback"})
"""The callbacks of asyncio's futures that know which other future is waited for. Others lead back, or are a
user's."""
SIGNALS = frozenset(
    {"Queue.get", "Queue.put", "Queue.join", "Semaphore.acquire", "Condition.wait", "Barrier.wait"}
)
"""The methods of asyncio that wait until somebody does something with what they are of."""


@dataclass(frozen=True)
class Awaits:
    """What a coroutine waits for. By default: nothing that is known."""

    object_ids: tuple[bytes, ...] = ()
    num_enough: int | None = None
    """So many of these objects are; None: all are needed."""
    is_timed: bool = False
    """It goes on when a time is over."""
    lock: asyncio.Lock | None = None
    """It waits for this one."""
    signal: str = ""
    """It waits in this method of asyncio, until somebody puts an item, takes one, releases or notifies."""
    is_lexical: bool = True
    """With `async with`: whoever has the lock gives it back himself, if all want it so."""


NOTHING_KNOWN = Awaits()


class AwaitChain:
    """One look: each task is looked at once, since thousands may wait for the same. object_of(future): the
    object whose value that future of concurrent.futures gets; None for none."""

    def __init__(self, object_of: Callable[[concurrent.futures.Future[Any]], bytes | None]) -> None:
        self._object_of = object_of
        self._seen: dict[asyncio.Task[Any], Awaits] = {}
        # By loop: those within `async with asyncio.timeout()`.
        self._timed: dict[asyncio.AbstractEventLoop, set[Any]] = {}

    def of(self, task: asyncio.Task[Any], depth: int = 0) -> Awaits:
        if depth == DEPTH_MAX:
            return NOTHING_KNOWN
        found = self._seen.get(task)
        if found is None:
            self._seen[task] = NOTHING_KNOWN  # if the way leads back to it
            found = self._seen[task] = self._look(task, depth)
        return found

    def _look(self, task: asyncio.Task[Any], depth: int) -> Awaits:
        frames = list(_frames(task.get_coro()))
        # Of `async with` acquire() is the second frame in asyncio.
        inside = [False, *(frame.f_code.co_name == "__aenter__" for frame in frames)]
        looked = (self._of_frame(*each, depth) for each in zip(frames, inside, strict=False))
        found = next(filter(None, looked), None)
        if found is None:
            found = self._of_future(getattr(task, "_fut_waiter", None), depth)
        is_timed = any(map(_is_timed, frames)) or task in self._timed_of(task.get_loop())
        return replace(found, is_timed=True) if is_timed else found

    def _timed_of(self, loop: asyncio.AbstractEventLoop) -> set[Any]:
        """asyncio.timeout() has a timer of the loop, whose callback is a method of what knows the task."""
        if loop not in self._timed:
            callbacks = (getattr(each, "_callback", None) for each in list(getattr(loop, "_scheduled", ())))
            timers = (getattr(each, "__self__", None) for each in callbacks)
            self._timed[loop] = {
                getattr(each, "_task", None) for each in timers if isinstance(each, asyncio.Timeout)
            }
        return self._timed[loop]

    def _of_frame(self, frame: FrameType, is_inside: bool, depth: int) -> Awaits | None:
        """None where the coroutine says nothing. is_inside: within an `__aenter__`."""
        code, names = frame.f_code, frame.f_locals
        if code is await_next.__code__:
            source = names["source"]
            return Awaits((source.item_id(source.num_taken + 1),))
        if frame.f_globals.get("__package__") != "asyncio":
            return None
        if code.co_name == "wait_for" and isinstance(names.get("fut"), asyncio.Future):
            return self._of_future(names["fut"], depth)
        if code.co_name == "_wait":
            is_any = names.get("return_when") == asyncio.FIRST_COMPLETED
            return (self._any_of if is_any else self._all_of)(names.get("fs", ()), depth)
        this = names.get("self")
        if code.co_name == "acquire" and isinstance(this, asyncio.Lock):
            return Awaits(lock=this, is_lexical=is_inside)
        if code.co_qualname in SIGNALS:
            return Awaits(signal=f"asyncio.{code.co_qualname}()")
        if code.co_name == "__aexit__" and (tasks := getattr(this, "_tasks", None)):
            return self._all_of(list(tasks), depth)
        return None

    def _of_future(self, future: Any, depth: int) -> Awaits:
        if future is None or future.done():
            return NOTHING_KNOWN
        if isinstance(future, asyncio.Task):
            return self.of(future, depth + 1)
        if children := getattr(future, "_children", None):  # of gather()
            return self._all_of(children, depth)
        for callback, _ in getattr(future, "_callbacks", None) or ():
            if getattr(callback, "__qualname__", "") not in LINKS:
                continue
            for cell in callback.__closure__:
                other = cell.cell_contents
                if isinstance(other, concurrent.futures.Future):
                    object_id = self._object_of(other)
                    return NOTHING_KNOWN if object_id is None else Awaits((object_id,))
                if isinstance(other, asyncio.Future):
                    return self._of_future(other, depth)
        return NOTHING_KNOWN

    def _all_of(self, futures: Iterable[Any], depth: int) -> Awaits:
        """Those that are known."""
        found = [self._of_future(each, depth + 1) for each in list(futures)]
        needed = [each for each in found if not each.is_timed and each.num_enough is None]
        object_ids = [object_id for each in needed for object_id in each.object_ids]
        others = [each for each in needed if each.lock is not None or each.signal]
        return Awaits((*dict.fromkeys(object_ids),)) if object_ids or not others else others[0]

    def _any_of(self, futures: Iterable[Any], depth: int) -> Awaits:
        """Where each is known to need one object."""
        found = [self._of_future(each, depth + 1) for each in list(futures)]
        if any(each.is_timed or len(each.object_ids) != 1 for each in found):
            return NOTHING_KNOWN
        return Awaits(tuple(each.object_ids[0] for each in found), num_enough=1)


def _frames(coroutine: Any) -> Iterator[FrameType]:
    while isinstance(coroutine, CoroutineType):
        if coroutine.cr_frame is not None:
            yield coroutine.cr_frame
        coroutine = coroutine.cr_await


def _is_timed(frame: FrameType) -> bool:
    """It ends when a time is over."""
    names = frame.f_locals
    if frame.f_code is await_next.__code__:
        return names.get("timeout_s") is not None
    if frame.f_globals.get("__package__") != "asyncio":
        return False
    return frame.f_code.co_name == "sleep" or names.get("timeout") is not None
