"""Standard futures for references: `await` and concurrent.futures wait on them.

Whoever asks for the future of a value that is in the memory store reads the value at once. One thread
completes all other futures: unpickling runs user code, which the thread that leads the reactor must not run.
A value that lies on another node is brought here first, so that this thread does not wait for it. When the
session ends, so does every open future.

A driver's future is a wait only while somebody waits for it: in `result` or `exception`, where he waits as in
`get`, or in a coroutine, from when an event loop is told of the future. In a worker Python itself waits.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Container
from functools import partial
from typing import Any

from ray_mono.common import raw_error
from ray_mono.common.threads import start
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef, SessionEnded
from ray_mono.core_worker.objects.future_resolver import FutureResolver
from ray_mono.core_worker.objects.getter import Getter
from ray_mono.core_worker.objects.long_waits import LongWaits
from ray_mono.core_worker.objects.object_wait import ObjectWait
from ray_mono.core_worker.store_provider.memory_store import MemoryStore

logger = logging.getLogger(__name__)

_Future = concurrent.futures.Future
_OF_LOOPS = "asyncio.futures"
"""Whose callback ends what a coroutine awaits."""


class _DriversFuture(_Future[Any]):
    """Who waits for it is known meanwhile. An event loop asks for its result and for its error once it is
    done, so this is kept short."""

    def __init__(
        self, opened: Container[object], env: Environment, long_waits: LongWaits, object_id: bytes
    ) -> None:
        """opened: has it until it is done."""
        super().__init__()
        self._opened = opened
        self._env = env
        self._long_waits = long_waits
        self._object_id = object_id

    def result(self, timeout: float | None = None) -> Any:
        if self in self._opened and (timeout is None or timeout > 0):
            timeout = self._wait(timeout)
        try:
            return _Future.result(self, timeout)
        finally:
            del self  # the traceback of an error holds this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if self in self._opened and (timeout is None or timeout > 0):
            timeout = self._wait(timeout)
        return _Future.exception(self, timeout)

    def _wait(self, timeout_s: float | None) -> float | None:
        """Returns how much longer to wait."""
        wait = partial(self._env.reactor.rest_in, self._is_done_in)
        self._long_waits.wait(wait, (self._object_id,), timeout_s)
        return None if timeout_s is None else 0.0

    def _is_done_in(self, timeout_s: float | None) -> bool:
        try:
            _Future.exception(self, timeout_s)
        except concurrent.futures.CancelledError:
            pass
        except concurrent.futures.TimeoutError:
            return False
        return True

    def add_done_callback(self, fn: Callable[[_Future[Any]], object]) -> None:
        _Future.add_done_callback(self, fn)
        if getattr(fn, "__module__", None) == _OF_LOOPS:
            self._long_waits.begins(self, (self._object_id,))
            if self not in self._opened:
                self._long_waits.ends(self, has_come=True)


class ObjectFutures:
    """The open futures of one process."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        memory_store: MemoryStore,
        resolver: FutureResolver,
        getter: Getter,
        waits: ObjectWait,
        long_waits: LongWaits,
    ) -> None:
        self._env = env
        self._context = context
        self._memory_store = memory_store
        self._resolver = resolver
        self._getter = getter
        self._waits = waits
        self._long_waits = long_waits
        self._ready: queue.SimpleQueue[tuple[Any, ObjectRef[Any]] | None] | None = None
        # With the task that asked, and the object.
        self._open: dict[_Future[Any], tuple[bytes, bytes]] = {}

    def of(self, ref: ObjectRef[Any]) -> _Future[Any]:
        """A future that gets the value, or the error, of `ref`. Raises OSError where no thread is left."""
        with self._env.lock:
            if self._env.reactor.is_closed:
                raise SessionEnded
            self._resolver.ask_owner(ref._id)
            entry = self._memory_store.get(ref._id)
            if entry is None or entry.data is None:
                future: _Future[Any]
                if self._env.is_driver:
                    future = _DriversFuture(self._open, self._env, self._long_waits, ref._id)
                else:
                    future = _Future()
                self._complete_later(future, ref)
                return future
        future = _Future()
        self._read(future, ref)
        return future

    def _complete_later(self, future: _Future[Any], ref: ObjectRef[Any]) -> None:
        """Completes the future when the value is here, or cannot be brought here. Raises OSError where there
        can be no thread that does. Lock held."""
        if self._ready is None:
            ready: queue.SimpleQueue[tuple[Any, ObjectRef[Any]] | None] = queue.SimpleQueue()
            start(
                threading.Thread(target=self._complete, args=(ready,), name="ray_mono-futures", daemon=True)
            )
            self._ready = ready
        self._open[future] = self._context.get().task_id, ref._id
        complete = partial(self._ready.put, (future, ref))
        object_id = ref._id

        def known() -> None:
            entry = self._memory_store.get(object_id)
            if entry is not None and entry.locations and self._env.node_id not in entry.locations:
                self._waits.pull(object_id, complete)
            else:
                complete()

        def ended(future: _Future[Any]) -> None:
            self._open.pop(future, None)
            callback = waiting.pop()
            if future.cancelled():
                # A program may ask for the value again and again before it is there, and cancel each time.
                with self._env.lock:
                    self._memory_store.forget_waiter(object_id, callback)
                    self._long_waits.ends(future, has_come=False)
            else:
                self._long_waits.ends(future, has_come=True)

        # `ended` empties it. A future keeps its done-callbacks: with `known` among them it would hold itself
        # and the reference, in a circle.
        waiting = [known]
        future.add_done_callback(ended)
        if self._memory_store.when_ready(object_id, known):
            known()
        else:
            self._env.reactor.hand_over()

    def object_of(self, future: concurrent.futures.Future[Any]) -> bytes | None:
        """The object whose value an open future gets; None for a future of somebody else's."""
        asked = self._open.get(future)
        return None if asked is None else asked[1]

    def awaited_by(self, task_id: bytes) -> list[bytes]:
        """The objects whose values a task of this process awaits."""
        return [object_id for asked_by, object_id in list(self._open.values()) if asked_by == task_id]

    def close(self) -> None:
        """This process leaves. Futures that are still open get SessionEnded."""
        if self._ready is not None:
            self._ready.put(None)
        for future in list(self._open):
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_exception(SessionEnded())

    def _complete(self, ready: queue.SimpleQueue[tuple[Any, ObjectRef[Any]] | None]) -> None:
        while True:
            item = ready.get()
            if item is None:
                return
            future, ref = item
            # The future may end meanwhile: it is cancelled, or `close` ends it.
            try:
                if not future.done() and future.set_running_or_notify_cancel():
                    self._read(future, ref)
            except concurrent.futures.InvalidStateError:
                pass
            except BaseException:
                # concurrent.futures lets through what is no Exception. Other futures have to go on.
                logger.exception("a callback of a future of %r failed", ref)
            del item, future, ref

    def _read(self, future: _Future[Any], ref: ObjectRef[Any]) -> None:
        try:
            value = self._getter.get([ref], None)[0]
        except StopIteration as error:
            # No future takes a StopIteration, and no coroutine lets one through.
            future.set_exception(RuntimeError(f"the task raised StopIteration: {error}"))
        except BaseException as error:
            # Its frames hold the future and the reference, a cycle that would keep both. So it goes without.
            raw_error.set_traceback(error, None)
            future.set_exception(error)
        else:
            future.set_result(value)
