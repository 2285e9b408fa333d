"""Generators of local mode: what ObjectRefGenerator takes its references from.

A generator runs to its end inside `.remote()`, as any task does there. With
_generator_backpressure_num_objects it runs until it is so many items ahead of its reader, and goes on in
`next`. `get` of the reference that `completed()` returns runs it to its end, since nothing else would. A
generator that is dropped before its end is closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ray_mono.common import ids
from ray_mono.core_worker.context import TaskContext, WorkerContext
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.values import serialization


class LocalStream:
    """One generator and the references to what it has yielded. See object_ref_generator.ItemSource."""

    def __init__(
        self,
        context: WorkerContext,
        new_ref: Callable[[bytes, serialization.Serialized], ObjectRef[Any]],
        task: TaskContext,
        begin: Callable[[], Iterator[Any]],
        failed: Callable[[BaseException], serialization.Serialized | None],
        backpressure: int,
    ) -> None:
        """
        Args:
            new_ref: makes an object of an id and a value.
            begin: calls the user's function.
            failed: returns the error's value, or None if the task is to run again.
        """
        self._context = context
        self._new_ref = new_ref
        self._task = task
        self._begin = begin
        self._failed = failed
        self._backpressure = backpressure
        self._generator: Iterator[Any] | None = None
        # Items of this attempt, and of all attempts. What an earlier attempt yielded stays what it is.
        self._num_yielded = 0
        self._num_made = 0
        self._num_taken = 0
        self._items: deque[ObjectRef[Any]] = deque()
        self._is_ended = False

    def run(self) -> None:
        """Runs it as far as its reader allows."""
        while not self._is_ended and not 0 < self._backpressure <= len(self._items):
            self._step()

    def run_out(self) -> list[ObjectRef[Any]]:
        """Runs it to its end. Returns what nobody has taken."""
        while not self._is_ended:
            self._step()
        return list(self._items)

    def fail(self, error: serialization.Serialized) -> None:
        self._num_made += 1
        self._items.append(self._new_ref(self._item_id(self._num_made), error))
        self._is_ended = True

    def _step(self) -> None:
        token = self._context.enter(self._task)
        try:
            if self._generator is None:
                self._generator = self._begin()
            item = serialization.serialize(next(self._generator))
            self._num_yielded += 1
            if self._num_yielded > self._num_made:
                self._num_made += 1
                self._items.append(self._new_ref(self._item_id(self._num_made), item))
        except StopIteration:
            self._is_ended = True
        except BaseException as error:
            self._generator = None
            self._num_yielded = 0
            value = self._failed(error)
            if value is not None:
                self.fail(value)
        finally:
            self._context.leave(token)

    def _item_id(self, number: int) -> bytes:
        return ids.object_id_bytes(self._task.task_id, number + 1)

    # ---- for ObjectRefGenerator

    @property
    def is_ready(self) -> bool:
        return bool(self._items)

    @property
    def is_finished(self) -> bool:
        return self._is_ended and not self._items

    def next_id(self) -> bytes:
        return self._item_id(self._num_taken + 1)

    def take(self) -> ObjectRef[Any]:
        ref = self._items.popleft()
        self._num_taken += 1
        self.run()
        return ref

    def await_next(self, timeout_s: float | None) -> None:
        """Does nothing: an item that can be ready is so."""

    def when_next(self, callback: Callable[[], None]) -> bool:
        return True

    def forget_waiter(self, callback: Callable[[], None]) -> None:
        pass
